"""Residual addition and scale-and-shift: as torch, on every shape, and nowhere else in memory."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fastres.errors import InputError, OptionError
from fastres.kernels import reference
from fastres.kernels.activations import ACTIVATIONS
from fastres.kernels.launch.elementwise import (
    add_relu,
    add_relu_calls,
    scale_shift,
    scale_shift_calls,
)
from fastres.kernels.tuning.elementwise import ElementwiseConfig
from tests.support.addresses import accesses, last_program, touched
from tests.support.kernel_oracle import (
    PRECISIONS,
    assert_kernel_as_accurate,
    fenced,
    guarded_output,
    judge,
    layouts,
    random_images,
    random_tensor,
    random_vector,
)

STORED = ("fp16", "bf16", "fp32")  # tf32 is a way to multiply matrices

SHAPES = {
    "several blocks and a partial one": (2, 24, 9, 7),
    "odd sizes": (3, 5, 7, 3),
    "whole blocks": (1, 64, 4, 4),
    "one pixel": (2, 8, 1, 1),
    "one channel": (2, 1, 5, 5),
    "one of everything": (1, 1, 1, 1),
    "empty batch": (0, 3, 4, 4),
    "1000 classes": (3, 1000),
    "rows": (2, 3, 7),
}
SPECIAL = (math.nan, math.inf, -math.inf, -0.0, 0.0, 6.0, -3.0, 3.0, 7.0, -1e4, 1e4)
SMALL = ElementwiseConfig(64)


def drawn(shape: tuple[int, ...], precision: str, device: str) -> Tensor:
    x = random_tensor(*shape, precision=precision, device=device)
    if x.dim() == 3:  # the kernels want channels innermost, the judge does not care
        return fenced(x.movedim(1, -1).contiguous()).movedim(-1, 1)
    return fenced(x)


def special_images(precision: str, device: str) -> Tensor:
    """Every special number, and an ordinary one beside each."""
    x = random_tensor(2, 11, 3, 2, precision="fp32")
    x[1, :, 1, 0] = torch.tensor(SPECIAL)
    return fenced(x.to(PRECISIONS[precision]).to(device))


def check_add_relu(shape: tuple[int, ...], precision: str, device: str) -> None:
    x, y = (fenced(random_tensor(*shape, precision=precision, device=device)) for _ in range(2))
    with guarded_output(*shape, precision=precision, device=device) as out:
        for call in add_relu_calls(x, y, out, SMALL):
            call.run()
    judge(out, reference.add_relu, (x, y), precision)


def check_scale_shift(shape: tuple[int, ...], precision: str, activation: str, device: str) -> None:
    x = drawn(shape, precision, device)
    scale, shift = random_vector(shape[1], device), random_vector(shape[1], device)
    if x.dim() == 3:
        judge_scale_shift(scale_shift(x, scale, shift, activation), x, scale, shift, activation)
        return
    with guarded_output(*shape, precision=precision, device=device) as out:
        for call in scale_shift_calls(x, scale, shift, out, activation, SMALL):
            call.run()
    judge_scale_shift(out, x, scale, shift, activation)


def judge_scale_shift(
    got: Tensor, x: Tensor, scale: Tensor, shift: Tensor, activation: str
) -> None:
    """The constants stay float32 for torch as well."""
    x, scale, shift = x.cpu(), scale.cpu(), shift.cpu()
    same = reference.scale_shift(x, scale, shift, activation)
    wanted = reference.scale_shift(x.double(), scale.double(), shift.double(), activation)
    precision = next(name for name in STORED if PRECISIONS[name] == x.dtype)
    assert_kernel_as_accurate(got, wanted, same, precision)


@pytest.mark.parametrize("precision", STORED)
@pytest.mark.parametrize("name", SHAPES)
def test_add_relu(name: str, precision: str, device: str) -> None:
    check_add_relu(SHAPES[name], precision, device)


@pytest.mark.parametrize("precision", STORED)
@pytest.mark.parametrize("name", SHAPES)
def test_scale_shift(name: str, precision: str, device: str) -> None:
    check_scale_shift(SHAPES[name], precision, "none", device)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_scale_shift_with_activation(activation: str, device: str) -> None:
    check_scale_shift((2, 5, 3, 3), "fp32", activation, device)


@pytest.mark.parametrize("precision", STORED)
def test_add_relu_of_special_numbers(precision: str, device: str) -> None:
    x = special_images(precision, device)
    for y in (torch.zeros_like(x), x, -x, x.flip(1)):
        y = fenced(y)
        judge(add_relu(x, y), reference.add_relu, (x, y), precision)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("precision", STORED)
def test_scale_shift_of_special_numbers(precision: str, activation: str, device: str) -> None:
    x = special_images(precision, device)
    one, nothing = torch.ones(11, device=device), torch.zeros(11, device=device)
    got = scale_shift(x, one, nothing, activation)
    judge_scale_shift(got, x, one, nothing, activation)


@pytest.mark.parametrize("layout", ["NCHW", "strided", "transposed", "batch last"])
def test_any_memory_format_at_the_public_functions(layout: str, device: str) -> None:
    x, y = (random_images(2, 3, 4, 5, precision="fp32", device=device) for _ in range(2))
    other = layouts(x)[layout]
    judge(add_relu(other, y), reference.add_relu, (x, y), "fp32")
    judge(add_relu(y, other), reference.add_relu, (x, y), "fp32")
    scale = random_vector(6, device)[::2]
    shift = random_vector(3, device)
    judge_scale_shift(scale_shift(other, scale, shift, "relu"), x, scale, shift, "relu")


def test_in_place(device: str) -> None:
    x, y = (random_images(2, 8, 5, 3, precision="fp16", device=device) for _ in range(2))
    before = x.clone()
    for call in add_relu_calls(x, y, x):
        call.run()
    judge(x, reference.add_relu, (before, y), "fp16")


def test_scale_shift_computes_in_float32(device: str) -> None:
    x = torch.full((1, 1, 1, 1), 3.0, dtype=torch.bfloat16, device=device)
    got = scale_shift(x, torch.tensor([1.001]).to(device), torch.tensor([-3.0]).to(device), "none")
    assert float(got) == pytest.approx(0.003, rel=0.01)


def check_offsets(size: int, wide: bool) -> None:
    """The addresses of the first and the last block of a tensor that is not there."""
    x = torch.empty(size, dtype=torch.float16, device="meta")
    (call,) = add_relu_calls(x, x, x)
    assert call.constants["INT64"] == wide
    block = call.constants["BLOCK_SIZE"]
    for program, start in (((0, 0, 0), 0), (last_program(call), (call.grid[0] - 1) * block)):
        found = accesses(call, program)
        wanted = np.arange(start, min(start + block, size))
        assert np.array_equal(touched(found, "load", "x_ptr"), wanted)
        assert np.array_equal(touched(found, "load", "y_ptr"), wanted)
        assert np.array_equal(touched(found, "store", "out_ptr"), wanted)


@pytest.mark.parametrize(
    ("size", "wide"),
    [
        (2**31 - 2**14, False),
        (2**31 - 5, True),  # the block's masked lanes would wrap around
        (2**31, True),
        (2**31 + 8, True),
        (2**33 + 3, True),
    ],
)
def test_offsets_are_64_bits_wide_where_needed(size: int, wide: bool) -> None:
    check_offsets(size, wide)


def check_channels_of_a_large_tensor() -> None:
    x = torch.empty(2**16, 33, 2**5, 2**6, dtype=torch.float16, device="meta")
    x = x.to(memory_format=torch.channels_last)
    scale = torch.empty(33, device="meta")
    (call,) = scale_shift_calls(x, scale, scale, x, "none")
    found = accesses(call, last_program(call))
    wanted = np.arange((call.grid[0] - 1) * call.constants["BLOCK_SIZE"], x.numel())
    assert np.array_equal(touched(found, "store", "out_ptr"), wanted)
    assert np.array_equal(touched(found, "load", "scale_ptr"), np.arange(33))


def test_channels_of_a_large_tensor() -> None:
    check_channels_of_a_large_tensor()


def bad_arguments() -> dict[str, tuple[tuple[Tensor, Tensor, Tensor], str]]:
    x = random_images(2, 3, 4, 5, precision="fp32")
    return {
        "shape": ((x, x[:1], x), r"y is \[1, 3, 4, 5\].*expected \[2, 3, 4, 5\]"),
        "dtype": ((x, x.half(), x), "y is .*float16.*: expected .*float32"),
        "not floating": ((x.int(), x.int(), x.int()), "x of torch.int32: expected float16"),
        "double": ((x.double(), x.double(), x.double()), "x of torch.float64: expected float16"),
        "layout": ((x, x, x.contiguous()), "out .*has strides .*expected dense channels-last"),
        "rows": ((x[0].mT,) * 3, "x .*has strides .*expected dense row-major"),
        "device": ((x, x.to("meta"), x), "y is on meta: expected cpu"),
    }


@pytest.mark.parametrize("name", bad_arguments())
def test_refusals_of_add_relu(name: str) -> None:
    arguments, message = bad_arguments()[name]
    with pytest.raises(InputError, match=message):
        add_relu_calls(*arguments)


def test_refusals_of_scale_shift() -> None:
    x, scale = random_images(2, 3, 4, 5, precision="fp32"), random_vector(3)
    with pytest.raises(InputError, match=r"scale is \[2\].*expected \[3\] of torch.float32"):
        scale_shift_calls(x, scale[:2], scale, x, "none")
    with pytest.raises(InputError, match=r"shift is .*float16.*expected .*float32"):
        scale_shift_calls(x, scale, scale.half(), x, "none")
    with pytest.raises(InputError, match=r"out is .*expected the like of"):
        scale_shift_calls(x, scale, scale, x.half(), "none")
    with pytest.raises(InputError, match=r"out .*has strides .*with channels innermost"):
        scale_shift_calls(x, scale, scale, x.contiguous(), "none")
    with pytest.raises(InputError, match="x has 1 axes"):
        scale_shift(x.flatten(), scale, scale, "none")
    with pytest.raises(OptionError, match="activation 'gelu': expected one of none, relu"):
        scale_shift_calls(x, scale, scale, x, "gelu")
