"""Convolutions by boxes of pixels, and by pointers where that cannot be."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastres.dtypes import PRECISIONS
from fastres.kernels import reference
from fastres.kernels.activations import ACTIVATIONS
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.launch.conv2d import conv2d, conv2d_calls
from fastres.kernels.packing import pack_conv2d, packed_shape
from fastres.kernels.spec import ConvSpec
from fastres.kernels.tuning.conv2d import Conv2dConfig, allows_boxes
from tests.support.addresses import accesses, assert_within_bounds, last_program, touched
from tests.support.kernel_oracle import (
    fenced,
    guarded_output,
    judge,
    random_images,
    random_tensor,
    random_vector,
)


def boxes(
    images: int, high: int, wide: int, block_n: int = 16, block_k: int = 16, **more: Any
) -> Conv2dConfig:
    """A configuration with boxes of ``images`` by ``high`` by ``wide`` pixels."""
    tile = (images * high * wide, block_n, block_k)
    return Conv2dConfig(*tile, descriptors=True, box_h=high, box_w=wide, **more)


SMALL = boxes(1, 4, 4)
SAME = (1, 1, 1, 1)

SHAPES = {
    "several boxes, all partial": ConvSpec(2, 40, 5, 7, 24, 3, 3, padding=SAME),
    "whole boxes": ConvSpec(2, 32, 8, 4, 32, 3, 3, padding=SAME),
    "7x7": ConvSpec(3, 16, 7, 7, 16, 3, 3, padding=SAME),
    "13x29": ConvSpec(1, 8, 13, 29, 24, 3, 3, padding=SAME),
    "one row": ConvSpec(2, 16, 1, 21, 8, 3, 3, padding=SAME),
    "one column": ConvSpec(2, 16, 21, 1, 8, 3, 3, padding=SAME),
    "one pixel": ConvSpec(1, 16, 1, 1, 16, 3, 3, padding=SAME),
    "no padding": ConvSpec(1, 16, 7, 6, 8, 3, 3),
    "padding of four sizes": ConvSpec(1, 16, 4, 5, 8, 3, 3, padding=(0, 2, 3, 1)),
    "padding wider than the filter": ConvSpec(1, 16, 2, 2, 8, 2, 2, padding=(3, 4, 2, 3)),
    "even filter": ConvSpec(1, 16, 5, 4, 8, 4, 2, padding=(1, 0, 2, 1)),
    "long filter": ConvSpec(1, 8, 3, 20, 8, 1, 17, padding=(0, 8, 0, 8)),
    "dilation": ConvSpec(2, 16, 7, 8, 8, 3, 2, padding=(2, 1, 2, 3), dilation=(2, 3)),
    "padding around 1x1": ConvSpec(1, 24, 3, 5, 16, 1, 1, padding=(1, 0, 0, 2)),
}


def attributes(spec: ConvSpec, pre_activation: str = "none", activation: str = "relu") -> list[Any]:
    """What follows the tensors in the operator's arguments."""
    shape = [spec.stride, spec.padding, spec.dilation, spec.groups]
    return [*shape, pre_activation, activation]


def check(
    spec: ConvSpec,
    precision: str,
    device: str,
    config: Conv2dConfig = SMALL,
    has_bias: bool = True,
    has_residual: bool = True,
) -> None:
    """Run the kernel on random tensors between NaN, and judge its answer."""
    x = random_images(spec.n, spec.c, spec.h, spec.w, precision=precision, device=device)
    scale = (spec.r * spec.s * spec.c) ** -0.5
    weight = random_tensor(
        *(spec.k, spec.c, spec.r, spec.s), precision=precision, device=device, scale=scale
    )
    size = (spec.n, spec.k, spec.p, spec.q)
    residual = random_images(*size, precision=precision, device=device) if has_residual else None
    bias = random_vector(spec.k, device) if has_bias else None
    with guarded_output(*size, precision=precision, device=device) as out:
        (call,) = conv2d_calls(
            *(x, fenced(pack_conv2d(weight, 1, precision)), bias, residual, out, spec),
            *("none", "relu", config, precision),
        )
        assert call.name == "tiled_conv2d_kernel"
        call.run()
    arguments = (x, weight, bias, residual, *attributes(spec))
    judge(out, reference.conv2d, arguments, precision)


def meta_call(spec: ConvSpec, config: Conv2dConfig = SMALL, precision: str = "fp16") -> KernelCall:
    """The launch on tensors without memory, the residual in place."""
    kind: dict[str, Any] = {"dtype": PRECISIONS[precision].dtype, "device": "meta"}
    x = torch.empty(spec.n, spec.h, spec.w, spec.c, **kind).permute(0, 3, 1, 2)
    out = torch.empty(spec.n, spec.p, spec.q, spec.k, **kind).permute(0, 3, 1, 2)
    packed = torch.empty(packed_shape(spec.c, spec.k, spec.r, spec.s, 1), **kind)
    bias = torch.empty(spec.k, device="meta")
    (call,) = conv2d_calls(x, packed, bias, out, out, spec, "none", "relu", config, precision)
    return call


@pytest.fixture(autouse=True)
def hardware_with_descriptors(device: str) -> None:
    if device == "cuda" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("this GPU does not copy by tensor descriptor")


@pytest.mark.sampled(6)
@pytest.mark.parametrize("precision", ["fp16", "bf16", "tf32", "fp32"])
@pytest.mark.parametrize("spec", SHAPES.values(), ids=SHAPES)
def test_answers(spec: ConvSpec, precision: str, device: str) -> None:
    check(spec, precision, device)


@pytest.mark.campaign
@pytest.mark.parametrize(
    "config",
    [
        boxes(1, 1, 16),
        boxes(1, 16, 1),
        boxes(4, 2, 2),
        boxes(16, 1, 1),
        boxes(2, 8, 8, 64, 64),
        boxes(1, 2, 8, 32, 32, group_m=1),
        boxes(1, 4, 4, 16, 32, group_m=3, num_warps=8, num_stages=2),
    ],
    ids=lambda c: f"{c.box_n}x{c.box_h}x{c.box_w}",
)
def test_answers_of_other_boxes(config: Conv2dConfig, device: str) -> None:
    check(ConvSpec(5, 24, 5, 7, 40, 3, 3, padding=SAME), "fp16", device, config)


@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_optional_tensors(has_bias: bool, has_residual: bool, device: str) -> None:
    check(SHAPES["7x7"], "fp16", device, SMALL, has_bias, has_residual)


@pytest.mark.sampled(14)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pre_activation", ACTIVATIONS)
@pytest.mark.parametrize("value", [1.0, float("nan"), float("inf"), float("-inf")])
def test_activations_and_what_is_not_finite(
    value: float, pre_activation: str, activation: str, device: str
) -> None:
    """In corners and in the middle of images, and beside a box's edge."""
    spec = ConvSpec(2, 24, 5, 6, 16, 3, 3, padding=SAME)
    x = random_images(2, 24, 5, 6, precision="fp32", device=device)
    residual = random_images(2, 16, 5, 6, precision="fp32", device=device)
    weight = random_tensor(16, 24, 3, 3, precision="fp32", device=device)
    bias = random_vector(16, device, scale=6.0)
    for place in ((0, 3, 0, 0), (0, 23, 4, 5), (1, 0, 0, 5)):
        x[place] = value
    residual[0, 10, 2, 2] = residual[1, 15, 4, 0] = value
    rest = attributes(spec, pre_activation, activation)
    got = conv2d(x, weight, bias, residual, *rest, config=SMALL)
    assert value == value or got.isnan().any()
    judge(got, reference.conv2d, (x, weight, bias, residual, *rest), "fp32")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_stay_in_their_tap_and_filter(
    value: float, device: str
) -> None:
    """A step reaches beyond the last channel of a tap: into zeros, not into the next tap."""
    spec = ConvSpec(1, 24, 4, 4, 24, 3, 3, padding=(0, 0, 0, 0))
    x = random_images(1, 24, 4, 4, precision="fp16", device=device).abs_()
    weight = random_tensor(24, 24, 3, 3, precision="fp16", device=device, scale=0.1)
    weight[17, 0, 1, 1] = value
    rest = attributes(spec)
    got = conv2d(x, weight, None, None, *rest, config=SMALL)
    judge(got, reference.conv2d, (x, weight, None, None, *rest), "fp16")


def test_tf32_rounds_to_the_nearest(device: str) -> None:
    """Tensor cores cut off what does not fit, which would make all pixels and weights smaller."""
    x = torch.ones(1, 16, 4, 4, device=device)
    x[:, :, 1] += 0.9 * 2**-10
    x[:, :, 2] += 0.4 * 2**-10
    x[:, :, 3] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    weight = torch.full((16, 16, 1, 3), -1 - 0.9 * 2**-10, device=device)
    rest = attributes(ConvSpec(1, 16, 4, 4, 16, 1, 3), activation="none")
    got = conv2d(x, weight, None, None, *rest, config=SMALL, precision="tf32")
    next_number = 1 + 2.0**-10
    expected = torch.tensor([1.0, next_number, 1.0], device=device) * next_number * -48
    assert torch.allclose(got[0, 0, :3], expected[:, None], rtol=1e-6, atol=0.0)
    assert got[0, :, 3].isnan().all()


def test_the_residual_may_be_the_output(device: str) -> None:
    spec = SHAPES["several boxes, all partial"]
    x = random_images(spec.n, spec.c, spec.h, spec.w, precision="fp16", device=device)
    weight = random_tensor(spec.k, spec.c, 3, 3, precision="fp16", device=device, scale=0.05)
    residual = random_images(spec.n, spec.k, spec.p, spec.q, precision="fp16", device=device)
    out = fenced(residual)
    packed = pack_conv2d(weight)
    (call,) = conv2d_calls(x, packed, None, out, out, spec, "none", "relu", SMALL, "fp16")
    call.run()
    judge(out, reference.conv2d, (x, weight, None, residual, *attributes(spec)), "fp16")


def test_an_empty_batch_has_no_launch(device: str) -> None:
    x, weight = torch.empty(0, 16, 3, 4, device=device), torch.randn(8, 16, 3, 3, device=device)
    rest = attributes(ConvSpec(0, 16, 3, 4, 8, 3, 3, padding=SAME))
    assert conv2d(x, weight, None, None, *rest, config=SMALL).shape == (0, 8, 3, 4)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (ConvSpec(1, 20, 3, 3, 16, 3, 3), "rows of C=20 not a multiple of 16 bytes"),
        (ConvSpec(1, 16, 3, 3, 20, 3, 3), "rows of K=20 not a multiple of 16 bytes"),
        (
            ConvSpec(1, 16, 5, 5, 16, 3, 3, stride=(1, 2)),
            "strides skip pixels, and boxes leave none out",
        ),
        (ConvSpec(1, 16, 3, 3, 16, 3, 3, groups=2), "2 groups, and boxes are of all channels"),
    ],
    ids=str,
)
def test_where_boxes_cannot_be_pointers_serve(spec: ConvSpec, why: str, device: str) -> None:
    assert allows_boxes(spec, "fp16") == why
    x = random_images(spec.n, spec.c, spec.h, spec.w, precision="fp16", device=device)
    weight = random_tensor(
        *(spec.k, spec.c // spec.groups, spec.r, spec.s), precision="fp16", device=device
    )
    with guarded_output(*(spec.n, spec.k, spec.p, spec.q), precision="fp16", device=device) as out:
        (call,) = conv2d_calls(
            *(x, pack_conv2d(weight, spec.groups), None, None, out, spec),
            *("none", "relu", SMALL, "fp16"),
        )
        assert call.name == f"conv2d_kernel (by pointers: {why})"
        call.run()
    judge(out, reference.conv2d, (x, weight, None, None, *attributes(spec)), "fp16")


@pytest.mark.parametrize("name", ["x", "weight", "residual", "out"])
def test_an_address_that_is_not_aligned(name: str, device: str) -> None:
    def memory(of: str, size: int) -> torch.Tensor:
        start = 1 if of == name else 0
        return torch.randn(size + 8, device=device).half()[start : start + size]

    spec = ConvSpec(1, 16, 5, 1, 16, 3, 1, padding=(1, 0, 1, 0))
    x, residual, out = (
        memory(of, 80).view(1, 5, 1, 16).permute(0, 3, 1, 2) for of in ("x", "residual", "out")
    )
    packed = memory("weight", 768).view(16, 48)
    (call,) = conv2d_calls(x, packed, None, residual, out, spec, "none", "none", SMALL, "fp16")
    assert call.name == f"conv2d_kernel (by pointers: {name} not aligned to 16 bytes)"


def test_more_boxes_than_32_bits_count() -> None:
    call = meta_call(ConvSpec(2**16, 8, 2**10, 2**10, 8, 3, 3, padding=SAME))
    assert call.name.startswith("conv2d_kernel (by pointers: more boxes than a number of 32 bits")
    assert call.constants["INT64"] is True


@pytest.mark.sampled(6)
@pytest.mark.parametrize("config", [SMALL, boxes(4, 1, 4), boxes(2, 2, 8)], ids=str)
@pytest.mark.parametrize("spec", SHAPES.values(), ids=SHAPES)
def test_nothing_outside_is_touched_and_all_is_written_once(
    spec: ConvSpec, config: Conv2dConfig
) -> None:
    assert_within_bounds([meta_call(spec, config)], "out_desc")


def test_reading_and_writing_past_two_to_the_31() -> None:
    """Descriptors' coordinates are small however far apart the pixels lie."""
    spec = ConvSpec(300, 64, 400, 400, 64, 3, 3, padding=SAME)
    call = meta_call(spec, boxes(1, 16, 16, 64, 64))
    found = accesses(call, last_program(call))
    size = 300 * 400 * 400 * 64
    assert size > 2**31
    pixels = np.arange(384, 400)
    y, x = (np.arange(383, 400) for _ in range(2))
    written = ((299 * 400 + pixels[:, None]) * 400 + pixels)[..., None] * 64 + np.arange(64)
    read = ((299 * 400 + y[:, None]) * 400 + x)[..., None] * 64 + np.arange(64)
    assert np.array_equal(touched(found, "store", "out_desc"), written.ravel())
    assert np.array_equal(touched(found, "load", "x_desc"), read.ravel())


@pytest.mark.campaign
def test_boxes_of_any_order_cover_everything_once() -> None:
    """Whatever GROUP_M, and for all positions of the last box."""
    for n, h, w, group_m in itertools.product((1, 3), (1, 4, 5), (3, 8), (1, 2)):
        config = boxes(2, 2, 4, group_m=group_m)
        call = meta_call(ConvSpec(n, 8, h, w, 24, 3, 3, padding=SAME), config)
        assert_within_bounds([call], "out_desc")


@st.composite
def specs(draw: st.DrawFn) -> ConvSpec:
    """Convolutions of a few pixels that boxes can copy."""

    def few(least: int, most: int) -> int:
        return draw(st.integers(least, most))

    r, s = few(1, 4), few(1, 4)
    dilation = few(1, 3), few(1, 3)
    padding = few(0, 3), few(0, 3), few(0, 3), few(0, 3)
    least_h = max(1, dilation[0] * (r - 1) + 1 - padding[0] - padding[2])
    least_w = max(1, dilation[1] * (s - 1) + 1 - padding[1] - padding[3])
    return ConvSpec(
        n=few(1, 3),
        c=8 * few(1, 4),
        h=few(least_h, least_h + 6),
        w=few(least_w, least_w + 6),
        k=8 * few(1, 4),
        r=r,
        s=s,
        padding=padding,
        dilation=dilation,
    )


@pytest.mark.campaign
@given(
    spec=specs(),
    precision=st.sampled_from(["fp16", "bf16", "tf32", "fp32"]),
    config=st.sampled_from([SMALL, boxes(1, 2, 8), boxes(2, 8, 1, 32, 16), boxes(4, 2, 4, 16, 32)]),
    residual=st.booleans(),
)
@settings(max_examples=40)
def test_any_convolution(
    device: str, spec: ConvSpec, precision: str, config: Conv2dConfig, residual: bool
) -> None:
    check(spec, precision, device, config, has_residual=residual)
