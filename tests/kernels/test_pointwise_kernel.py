"""Pointwise convolutions by tensor descriptor, and by pointers where that cannot be."""

from __future__ import annotations

import pytest
import torch

from fastres.kernels import reference
from fastres.kernels.activations import ACTIVATIONS
from fastres.kernels.launch.conv2d import conv2d, conv2d_calls
from fastres.kernels.packing import pack_conv2d
from fastres.kernels.spec import ConvSpec, Padding, Pair
from fastres.kernels.tuning.conv2d import Conv2dConfig, allows_descriptors
from tests.support.kernel_oracle import (
    fenced,
    guarded_output,
    judge,
    random_images,
    random_tensor,
    random_vector,
)

SMALL = Conv2dConfig(16, 16, 16, descriptors=True)
PLAIN: tuple[Pair, Padding, Pair, int] = ((1, 1), (0, 0, 0, 0), (1, 1), 1)


@pytest.fixture(autouse=True)
def hardware_with_descriptors(device: str) -> None:
    if device == "cuda" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("this GPU does not copy by tensor descriptor")


SHAPES = {
    "several tiles, all partial": ConvSpec(2, 40, 3, 7, 24, 1, 1),
    "whole tiles": ConvSpec(2, 32, 4, 4, 32, 1, 1),
    "one pixel": ConvSpec(1, 16, 1, 1, 8, 1, 1),
    "one row of pixels": ConvSpec(1, 8, 1, 33, 16, 1, 1),
    "1000 classes": ConvSpec(3, 48, 1, 1, 1000, 1, 1),
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("precision", ["fp16", "bf16", "tf32", "fp32"])
@pytest.mark.parametrize("spec", SHAPES.values(), ids=SHAPES)
def test_answers(spec: ConvSpec, precision: str, has_residual: bool, device: str) -> None:
    x = random_images(spec.n, spec.c, spec.h, spec.w, precision=precision, device=device)
    weight = random_tensor(spec.k, spec.c, 1, 1, precision=precision, device=device, scale=0.2)
    residual = None
    if has_residual:
        residual = random_images(*(spec.n, spec.k, spec.h, spec.w), precision=precision)
        residual = fenced(residual.to(device))
    bias = random_vector(spec.k, device)
    config = SMALL if spec.k < 1000 else Conv2dConfig(16, 128, 32, descriptors=True)
    with guarded_output(
        *(spec.n, spec.k, spec.h, spec.w), precision=precision, device=device
    ) as out:
        (call,) = conv2d_calls(
            *(x, fenced(pack_conv2d(weight)), bias, residual, out, spec),
            *("none", "relu", config, precision),
        )
        assert call.name == "pointwise_kernel"
        call.run()
    arguments = (x, weight, bias, residual, *PLAIN, "none", "relu")
    judge(out, reference.conv2d, arguments, precision)


@pytest.mark.sampled(7)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pre_activation", ACTIVATIONS)
@pytest.mark.parametrize("value", [1.0, float("nan"), float("inf"), float("-inf")])
def test_activations_and_what_is_not_finite(
    value: float, pre_activation: str, activation: str, device: str
) -> None:
    x, residual = (random_images(1, 24, 3, 7, precision="fp32", device=device) for _ in range(2))
    weight = random_tensor(24, 24, 1, 1, precision="fp32", device=device)
    x[0, 3, 1, 2] = value
    residual[0, 20, 2, 2] = value
    rest = (*PLAIN, pre_activation, activation)
    got = conv2d(x, weight, None, residual, *rest, config=SMALL)
    assert value == value or got.isnan().any()
    judge(got, reference.conv2d, (x, weight, None, residual, *rest), "fp32")


def test_an_empty_batch_has_no_launch(device: str) -> None:
    x = torch.empty(0, 16, 3, 4, device=device)
    weight = torch.randn(8, 16, 1, 1, device=device)
    assert conv2d(x, weight, None, None, *PLAIN, "none", "relu", config=SMALL).shape == (0, 8, 3, 4)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (ConvSpec(1, 20, 3, 3, 16, 1, 1), "rows of C=20 not a multiple of 16 bytes"),
        (ConvSpec(1, 16, 3, 3, 20, 1, 1), "rows of K=20 not a multiple of 16 bytes"),
        (ConvSpec(1, 16, 3, 3, 16, 1, 1, stride=(2, 1)), "not pointwise"),
        (ConvSpec(1, 16, 3, 3, 16, 1, 1, padding=(0, 0, 0, 1)), "not pointwise"),
        (ConvSpec(1, 16, 3, 3, 16, 1, 2), "not pointwise"),
        (ConvSpec(1, 16, 3, 3, 16, 1, 1, groups=2), "not pointwise"),
    ],
    ids=str,
)
def test_where_descriptors_cannot_be_pointers_serve(spec: ConvSpec, why: str, device: str) -> None:
    assert allows_descriptors(spec, "fp16") == why
    x = random_images(spec.n, spec.c, spec.h, spec.w, precision="fp16", device=device)
    weight = random_tensor(
        *(spec.k, spec.c // spec.groups, spec.r, spec.s), precision="fp16", device=device
    )
    rest = (spec.stride, spec.padding, spec.dilation, spec.groups, "none", "relu")
    with guarded_output(*(spec.n, spec.k, spec.p, spec.q), precision="fp16", device=device) as out:
        (call,) = conv2d_calls(
            *(x, pack_conv2d(weight, spec.groups), None, None, out, spec),
            *("none", "relu", SMALL, "fp16"),
        )
        assert call.name == f"conv2d_kernel (by pointers: {why})"
        call.run()
    judge(out, reference.conv2d, (x, weight, None, None, *rest), "fp16")


@pytest.mark.parametrize("name", ["x", "weight", "residual", "out"])
def test_an_address_that_is_not_aligned(name: str, device: str) -> None:
    """A view into another tensor, say: its rows are aligned, its first is not."""

    def memory(of: str, size: int) -> torch.Tensor:
        start = 1 if of == name else 0
        return torch.randn(size + 8, device=device).half()[start : start + size]

    spec = ConvSpec(1, 16, 5, 1, 16, 1, 1)
    x, residual, out = (
        memory(of, 80).view(1, 5, 1, 16).permute(0, 3, 1, 2) for of in ("x", "residual", "out")
    )
    packed = memory("weight", 256).view(16, 16)
    (call,) = conv2d_calls(x, packed, None, residual, out, spec, "none", "none", SMALL, "fp16")
    assert call.name == f"conv2d_kernel (by pointers: {name} not aligned to 16 bytes)"
    call.run()
    arguments = (x, packed[:, :, None, None], None, residual, *PLAIN, "none", "none")
    judge(out, reference.conv2d, arguments, "fp16")


def test_more_rows_than_coordinates_count() -> None:
    spec = ConvSpec(1, 8, 2**16, 2**15, 8, 1, 1)
    x = torch.empty(1, 2**16, 2**15, 8, dtype=torch.float16, device="meta").permute(0, 3, 1, 2)
    packed = torch.empty(8, 8, dtype=torch.float16, device="meta")
    (call,) = conv2d_calls(x, packed, None, None, x, spec, "none", "none", SMALL, "fp16")
    assert call.name.startswith("conv2d_kernel (by pointers: more rows than")
    assert call.constants["INT64"] is True
