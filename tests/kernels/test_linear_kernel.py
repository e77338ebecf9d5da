"""Fully connected layers by the convolution's kernels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastres.errors import InputError
from fastres.kernels import reference
from fastres.kernels.activations import ACTIVATIONS
from fastres.kernels.launch.linear import linear, linear_calls
from fastres.kernels.tuning.conv2d import Conv2dConfig
from tests.support.kernel_oracle import judge, random_tensor, random_vector, strided

SMALL = Conv2dConfig(16, 32, 16)

SHAPES: dict[str, tuple[tuple[int, ...], int]] = {
    "partial tiles": ((19, 40), 50),
    "whole tiles": ((32, 32), 64),
    "one row": ((1, 24), 33),
    "one input": ((5, 1), 7),
    "one output": ((5, 30), 1),
    "one vector": ((24,), 10),
    "rows in two axes": ((2, 9, 24), 10),
    "1000 classes": ((3, 72), 1000),
    "no rows": ((0, 24), 10),
    "no rows in the second axis": ((2, 0, 24), 10),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("precision", ["fp16", "bf16", "tf32", "fp32"])
@pytest.mark.parametrize("split_k", [1, 2])
def test_answers(
    shape: tuple[tuple[int, ...], int], precision: str, split_k: int, device: str
) -> None:
    rows, outputs = shape
    x = random_tensor(*rows, precision=precision, device=device)
    weight = random_tensor(outputs, rows[-1], precision=precision, device=device, scale=0.2)
    bias = random_vector(outputs, device)
    config = replace(SMALL, split_k=split_k, block_n=128 if outputs == 1000 else 32)
    got = linear(x, weight, bias, "relu", config=config, precision=precision)
    judge(got, reference.linear, (x, weight, bias, "relu"), precision)
    judge(
        linear(x, weight, None, "none", precision=precision),
        reference.linear,
        (x, weight, None, "none"),
        precision,
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str, device: str) -> None:
    x = random_tensor(5, 24, precision="fp32", device=device)
    x[2, 3] = float("nan")
    weight = random_tensor(10, 24, precision="fp32", device=device)
    got = linear(x, weight, None, activation, config=SMALL)
    assert got[2].isnan().all()
    judge(got, reference.linear, (x, weight, None, activation), "fp32")


def test_any_strides(device: str) -> None:
    x = random_tensor(6, 24, precision="fp16", device=device)
    weight = random_tensor(10, 24, precision="fp16", device=device)
    expected = linear(x, weight, None, "none", config=SMALL)
    for other in (strided(x), x.t().contiguous().t()):
        got = linear(other, strided(weight), None, "none", config=SMALL)
        assert torch.equal(got, expected)


def test_what_does_not_fit() -> None:
    with pytest.raises(InputError, match=r"x of shape \[3, 4\] and weight of shape \[5, 6\]"):
        linear(torch.zeros(3, 4), torch.zeros(5, 6), None, "none")
    with pytest.raises(InputError, match=r"flatten the others into rows"):
        linear_calls(
            *(torch.zeros(2, 3, 4), torch.zeros(5, 4), None, torch.zeros(6, 5)),
            *("none", SMALL, "fp32"),
        )
    with pytest.raises(InputError, match=r"strides"):
        linear_calls(
            *(torch.zeros(4, 3).t(), torch.zeros(5, 4), None, torch.zeros(3, 5)),
            *("none", SMALL, "fp32"),
        )
