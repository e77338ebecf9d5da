"""The stem's answers: a convolution on few channels and its max-pool as one kernel."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastres.errors import InputError, OptionError
from fastres.kernels import reference
from fastres.kernels.activations import ACTIVATIONS
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.launch.stem import conv2d_max_pool2d, pack_stem, stem_calls
from fastres.kernels.spec import ConvSpec, StemSpec
from fastres.kernels.tuning.gpus import by_name
from fastres.kernels.tuning.stem import (
    StemConfig,
    choose_stem,
    recomputation,
    row_layout,
    supports,
    tiles,
)
from tests.support.addresses import accesses, last_program, touched
from tests.support.kernel_oracle import (
    PRECISIONS,
    assert_kernel_as_accurate,
    channels_last_strides,
    fenced,
    guarded_output,
    in_float64,
    in_precision,
    judge,
    layouts,
    random_images,
    random_tensor,
    random_vector,
)

SMALL = StemConfig(8, 8, 16, 4, 2)
"""Tiles of 3 x 3 windows of three taps: the larger images have several, and partial ones."""


def stem(conv: ConvSpec, taps: Any = (3, 3), padding: Any = (1, 1)) -> StemSpec:
    return StemSpec(conv, taps, (2, 2), padding)


RESNET = ConvSpec(2, 3, 17, 14, 20, 7, 7, (2, 2), (3, 3, 3, 3))

STEMS = {
    "ResNet's": stem(RESNET),
    "one channel": stem(replace(RESNET, c=1)),
    "four channels": stem(replace(RESNET, c=4)),
    "five channels": stem(replace(RESNET, c=5, n=1)),
    "odd width": stem(replace(RESNET, w=15)),
    "one filter": stem(replace(RESNET, k=1)),
    "whole tiles": stem(replace(RESNET, h=12, w=24, k=32)),
    "one pixel": stem(ConvSpec(2, 3, 1, 1, 8, 7, 7, (2, 2), (3, 3, 3, 3))),
    "one pixel of one channel, 1x1": stem(ConvSpec(1, 1, 1, 1, 1, 1, 1)),
    "3x3, stride 1": stem(ConvSpec(1, 3, 9, 10, 8, 3, 3, (1, 1), (1, 1, 1, 1))),
    "no padding": stem(ConvSpec(1, 3, 15, 16, 8, 3, 3, (2, 2)), padding=(0, 0)),
    "padding of four sizes": stem(ConvSpec(1, 4, 11, 9, 8, 3, 4, (1, 2), (0, 2, 3, 1))),
    "2x2 pool": stem(replace(RESNET, n=1), (2, 2), (0, 0)),
    "2x2 pool, padded": stem(replace(RESNET, n=1), (2, 2), (1, 1)),
    "2x3 pool": stem(replace(RESNET, n=1), (2, 3), (0, 1)),
    "3x2 pool": stem(replace(RESNET, n=1), (3, 2), (1, 0)),
    "oblong filter": stem(ConvSpec(1, 2, 8, 14, 8, 1, 9, (1, 2), (0, 4, 0, 4))),
    "stride larger than filter": stem(ConvSpec(1, 3, 16, 21, 8, 2, 2, (3, 4))),
    "8 pixels of 8 channels": stem(ConvSpec(1, 8, 8, 9, 8, 2, 8, (1, 1), (1, 4, 1, 3))),
}


def attributes(spec: StemSpec, activation: str = "relu") -> tuple[Any, ...]:
    """What follows the tensors."""
    conv = spec.conv
    pool = (spec.pool_kernel, spec.pool_stride, spec.pool_padding)
    return (conv.stride, conv.padding, activation, *pool)


def weights(spec: StemSpec, precision: str, device: str) -> tuple[Tensor, Tensor]:
    conv = spec.conv
    shape = (conv.k, conv.c, conv.r, conv.s)
    scale = (conv.c * conv.r * conv.s) ** -0.5
    weight = random_tensor(*shape, precision=precision, device=device, scale=scale)
    return weight, random_vector(conv.k, device)


def image(spec: StemSpec, precision: str, device: str) -> Tensor:
    conv = spec.conv
    return random_images(conv.n, conv.c, conv.h, conv.w, precision=precision, device=device)


def check(
    spec: StemSpec,
    precision: str,
    device: str,
    config: StemConfig | None = SMALL,
    activation: str = "relu",
    x: Tensor | None = None,
) -> Tensor:
    """Run the kernel on random tensors and judge its answer."""
    given = (
        image(spec, precision, device) if x is None else x,
        *weights(spec, precision, device),
        *attributes(spec, activation),
    )
    got = conv2d_max_pool2d(*given, config=config, precision=precision)
    assert got.stride() == channels_last_strides(got.shape)
    judge(got, reference.conv2d_max_pool2d, given, precision)
    return got


@pytest.mark.sampled(5)
@pytest.mark.parametrize("spec", STEMS.values(), ids=STEMS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_answers(spec: StemSpec, precision: str, device: str) -> None:
    check(spec, precision, device)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("spec", STEMS.values(), ids=STEMS)
def test_without_activation_padding_is_less_than_everything(spec: StemSpec, device: str) -> None:
    """With all answers far below zero, a padding of zeros would show."""
    weight, bias = weights(spec, "fp32", device)
    bias -= 100.0
    given = (image(spec, "fp32", device), weight, bias, *attributes(spec, "none"))
    got = conv2d_max_pool2d(*given, config=SMALL)
    assert got.max() < -50.0
    judge(got, reference.conv2d_max_pool2d, given, "fp32")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str, device: str) -> None:
    check(STEMS["2x3 pool"], "fp16", device, activation=activation)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "config",
    [
        StemConfig(4, 4, 32, 4, 3),  # one window of three taps
        StemConfig(4, 8, 16, 4, 2),
        StemConfig(8, 16, 16, 8, 1),
        StemConfig(16, 4, 32, 4, 4),
        StemConfig(16, 32, 16, 8, 2),  # one tile, larger than the image
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["ResNet's", "2x3 pool"])
def test_answers_with_other_tiles(config: StemConfig, name: str, device: str) -> None:
    check(STEMS[name], "fp16", device, config)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_answers_of_the_configuration_that_is_chosen(precision: str, device: str) -> None:
    check(STEMS["ResNet's"], precision, device, config=None)


@st.composite
def random_stems(draw: st.DrawFn) -> StemSpec:
    small = st.integers(1, 3)
    taps = draw(st.tuples(st.sampled_from([2, 3]), st.sampled_from([2, 3])))
    r, s = draw(small), draw(st.integers(1, 5))
    conv = ConvSpec(
        n=draw(st.integers(1, 2)),
        c=draw(st.integers(1, 4)),
        h=r + 2 + draw(st.integers(0, 5)),
        w=s + 2 + draw(st.integers(0, 9)),
        k=draw(st.integers(1, 20)),
        r=r,
        s=s,
        stride=(1, draw(small)) if r < 3 else (draw(small), 1),
        padding=draw(st.tuples(*[st.integers(0, 2)] * 4)),
    )
    padding = draw(st.sampled_from([(0, 0), (1, 0), (1, 1)]))
    return stem(conv, taps, padding if conv.p > 2 and conv.q > 2 else (1, 1))


@pytest.mark.campaign
@given(spec=random_stems())
@settings(max_examples=25)
def test_random_stems(spec: StemSpec, device: str) -> None:
    check(spec, "fp32", device, activation="none")


@pytest.mark.sampled(4)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("name", ["ResNet's", "four channels", "one channel"])
def test_nan_and_infinity(name: str, activation: str, value: float, device: str) -> None:
    """Also just beside a window, where the kernel multiplies with weights of zero."""
    spec = STEMS[name]
    x = image(spec, "fp16", device)
    for row, column in ((2, 3), (9, 8), (16, 13)):
        x[0, -1, row, column] = value
    got = check(spec, "fp16", device, activation=activation, x=x)
    assert got[1].isfinite().all()


def test_infinity_in_the_bias(device: str) -> None:
    spec = STEMS["2x3 pool"]
    weight, bias = weights(spec, "fp16", device)
    bias[3], bias[4], bias[5] = math.inf, -math.inf, math.nan
    given = (image(spec, "fp16", device), weight, bias, *attributes(spec, "none"))
    judge(conv2d_max_pool2d(*given, config=SMALL), reference.conv2d_max_pool2d, given, "fp16")


def pixels(spec: StemSpec, device: str) -> Tensor:
    conv = spec.conv
    shape = (conv.n, conv.h, conv.w, conv.c)
    return torch.randint(0, 256, shape, dtype=torch.uint8).to(device)


def normalisation(c: int, device: str) -> tuple[Tensor, Tensor]:
    """As of photographs: about (x / 255 - 0.45) / 0.22, another per channel."""
    scale = (torch.rand(c) + 1.0) / 50
    return scale.to(device), (-2.0 - torch.rand(c)).to(device)


def judge_normalised(got: Tensor, given: tuple[Any, ...], precision: str) -> None:
    """``given``: x, scale, shift, weight, bias and the attributes."""

    def oracle(x: Tensor, scale: Tensor, shift: Tensor, *rest: Any) -> Tensor:
        return reference.conv2d_max_pool2d(*(x, *rest, scale, shift))

    wanted = oracle(*in_float64(given))
    x, scale, shift, *rest = given
    same = oracle(x.cpu(), scale.cpu(), shift.cpu(), *in_precision(tuple(rest), precision))
    assert_kernel_as_accurate(got, wanted, same, precision)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "name", ["ResNet's", "one channel", "four channels", "odd width", "2x3 pool", "one pixel"]
)
def test_pixels_are_normalised(name: str, precision: str, device: str) -> None:
    spec = STEMS[name]
    x = pixels(spec, device)
    scale, shift = normalisation(spec.conv.c, device)
    tensors = weights(spec, precision, device)
    got = conv2d_max_pool2d(
        *(x, *tensors, *attributes(spec)),
        scale=scale,
        shift=shift,
        config=SMALL,
        precision=precision,
    )
    judge_normalised(got, (x, scale, shift, *tensors, *attributes(spec)), precision)


def test_the_border_is_zero_after_normalisation(device: str) -> None:
    """Pixels that become 1 everywhere under a filter of ones: each answer counts its pixels."""
    conv = ConvSpec(1, 3, 8, 8, 4, 3, 3, padding=(1, 1, 1, 1))
    spec = stem(conv, (2, 2), (0, 0))
    x = torch.full((1, 8, 8, 3), 200, dtype=torch.uint8, device=device)
    scale = torch.full((3,), 1 / 64, device=device)
    shift = torch.full((3,), 1 - 200 / 64, device=device)
    weight = torch.ones(4, 3, 3, 3, dtype=torch.float16, device=device)
    given = (x, weight, None, *attributes(spec, "none"))
    got = conv2d_max_pool2d(*given, scale=scale, shift=shift, config=SMALL)
    assert torch.equal(got, torch.full_like(got, 27.0))  # the pool picks the full windows
    negative = conv2d_max_pool2d(
        x, -weight, None, *attributes(spec, "none"), scale=scale, shift=shift, config=SMALL
    )
    counts = torch.full((4, 4), 27.0)
    counts[[0, -1], :] = counts[:, [0, -1]] = 18.0
    counts[[0, 0, -1, -1], [0, -1, 0, -1]] = 12.0
    assert torch.equal(-negative[0].cpu().float(), counts.expand(4, 4, 4))


def test_memory_layouts_do_not_matter(device: str) -> None:
    spec = STEMS["2x3 pool"]
    x, tensors = image(spec, "fp32", device), weights(spec, "fp32", device)
    wanted = conv2d_max_pool2d(x, *tensors, *attributes(spec), config=SMALL)
    for layout, other in layouts(x).items():
        got = conv2d_max_pool2d(other, *tensors, *attributes(spec), config=SMALL)
        assert torch.equal(got, wanted), layout
    weight, bias = layouts(tensors[0])["strided"], tensors[1].repeat_interleave(2)[::2]
    assert torch.equal(conv2d_max_pool2d(x, weight, bias, *attributes(spec), config=SMALL), wanted)
    wide = pixels(spec, device).repeat_interleave(2, dim=2)
    scale, shift = normalisation(3, device)
    given: tuple[Any, ...] = (*tensors, *attributes(spec))
    narrow, view = wide[:, :, ::2].contiguous(), wide[:, :, ::2]
    one = conv2d_max_pool2d(narrow, *given, scale=scale, shift=shift, config=SMALL)
    assert torch.equal(conv2d_max_pool2d(view, *given, scale=scale, shift=shift, config=SMALL), one)


def test_an_empty_batch(device: str) -> None:
    spec = stem(replace(RESNET, n=0))
    given = (image(spec, "fp16", device), *weights(spec, "fp16", device), *attributes(spec))
    assert tuple(conv2d_max_pool2d(*given).shape) == (0, 20, 5, 4)


@pytest.mark.parametrize("name", ["ResNet's", "2x2 pool, padded", "five channels"])
def test_nothing_else_is_read_or_written(name: str, device: str) -> None:
    """Weights lie between NaN, as images and biases do anyway."""
    spec = STEMS[name]
    x, (weight, bias) = image(spec, "fp16", device), weights(spec, "fp16", device)
    packed = fenced(pack_stem(weight, spec))
    shape = (spec.conv.n, spec.conv.k, spec.p, spec.q)
    with guarded_output(*shape, precision="fp16", device=device) as out:
        (call,) = stem_calls(x, packed, bias, out, spec, "relu", SMALL, "fp16")
        call.run()
        given = (x, weight, bias, *attributes(spec))
        judge(out, reference.conv2d_max_pool2d, given, "fp16")


def meta_call(spec: StemSpec, uint8: bool = False, config: StemConfig = SMALL) -> KernelCall:
    spec = replace(spec, uint8=uint8)
    conv, half = spec.conv, torch.float16

    def images(n: int, c: int, h: int, w: int) -> Tensor:
        return torch.empty((n, h, w, c), dtype=half, device="meta").permute(0, 3, 1, 2)

    x = images(conv.n, conv.c, conv.h, conv.w)
    if uint8:
        x = torch.empty((conv.n, conv.h, conv.w, conv.c), dtype=torch.uint8, device="meta")
    layout = row_layout(spec, 1 if uint8 else 2)
    vectors = [torch.empty(conv.c, device="meta") for _ in range(2)] if uint8 else []
    (call,) = stem_calls(
        x,
        torch.empty((conv.k, conv.r * layout.size), dtype=half, device="meta"),
        None,
        images(conv.n, conv.k, spec.p, spec.q),
        *(spec, "relu", config, "fp16"),
        *vectors,
    )
    return call


@pytest.mark.parametrize("uint8", [False, True])
def test_offsets_of_more_than_32_bits(uint8: bool) -> None:
    """The last program reads and writes the last pixels: nothing wrapped around."""
    conv = ConvSpec(1500, 4, 1000, 1000, 16, 7, 7, (4, 4), (3, 3, 3, 3))
    call = meta_call(stem(conv), uint8)
    assert call.constants["INT64"]
    found = accesses(call, last_program(call))
    read, written = touched(found, "load", "x_ptr"), touched(found, "store", "out_ptr")
    # The last tile holds windows 123 and 124 of 125 per axis, pixels 245 to 249 of 250; those
    # reach from 4 * 245 - 3 to the image's last pixel. Of uint8, one pixel more is copied.
    first = 977 - uint8
    wanted = [
        (((conv.n - 1) * 1000 + row) * 1000 + column) * 4 + c
        for row in range(977, 1000)
        for column in range(first, 1000)
        for c in range(4)
    ]
    assert read.tolist() == wanted
    assert written.tolist() == [
        (((conv.n - 1) * 125 + row) * 125 + column) * 16 + k
        for row in (123, 124)
        for column in (123, 124)
        for k in range(16)
    ]


def test_offsets_have_32_bits_where_that_is_enough() -> None:
    assert not meta_call(STEMS["ResNet's"]).constants["INT64"]
    conv = ConvSpec(1, 4, 16384, 32768, 8, 7, 7, (4, 4), (3, 3, 3, 3))
    assert not meta_call(stem(conv)).constants["INT64"]
    assert meta_call(stem(replace(conv, h=16385))).constants["INT64"]


def test_every_pooled_pixel_is_written_once() -> None:
    spec = STEMS["ResNet's"]
    call = meta_call(spec)
    seen: list[int] = []
    for x in range(call.grid[0]):
        for y in range(call.grid[1]):
            found = [a for a in accesses(call, (x, y, 0)) if a.kind == "store"]
            seen += [int(offset) for one in found for offset in one.offsets.ravel()]
    assert sorted(seen) == list(range(2 * 20 * spec.p * spec.q))


def test_layout_of_rows() -> None:
    half, pixel = 2, 1
    resnet = stem(ConvSpec(1, 3, 224, 224, 64, 7, 7, (2, 2), (3, 3, 3, 3)))
    layout = row_layout(resnet, half)
    # Windows begin 9 numbers before a multiple of 6: with one more, at even ones.
    assert (layout.size, layout.lead, layout.alignment) == (32, 1, 2)
    four = replace(resnet, conv=replace(resnet.conv, c=4))
    layout = row_layout(four, half)
    assert (layout.size, layout.lead, layout.alignment) == (32, 0, 4)
    layout = row_layout(four, pixel)
    assert (layout.size, layout.lead, layout.alignment) == (32, 4, 8)
    odd = replace(resnet, conv=replace(resnet.conv, w=223))
    assert row_layout(odd, half).alignment == 1
    for spec in STEMS.values():
        for size in (1, 2, 4):
            layout = row_layout(spec, size)
            conv = spec.conv
            assert (conv.padding[1] * conv.c + layout.lead) % layout.alignment == 0
            assert conv.stride[1] * conv.c % layout.alignment == 0
            assert conv.w * conv.c % layout.alignment == 0
            assert layout.lead < layout.alignment <= 16 // size
            assert layout.lead + conv.s * conv.c <= layout.size


def test_packed_weights() -> None:
    spec = STEMS["ResNet's"]
    weight = torch.randn(20, 3, 7, 7, dtype=torch.float16)
    packed = pack_stem(weight, spec).view(20, 7, 32)
    assert torch.equal(packed[4, 2, 1:22], weight[4, :, 2].T.flatten())
    assert packed[:, :, 0].count_nonzero() == packed[:, :, 22:].count_nonzero() == 0


def test_recomputation() -> None:
    resnet = stem(ConvSpec(32, 3, 224, 224, 64, 7, 7, (2, 2), (3, 3, 3, 3)))
    whole = StemConfig(16, 16, 64, 8, 3)
    assert tiles(resnet, whole) == (8, 8)
    assert recomputation(resnet, whole) == pytest.approx(256 / (4 * 49))
    even = replace(resnet, pool_kernel=(2, 2), pool_padding=(0, 0))
    assert recomputation(even, whole) == 1.0


@pytest.mark.parametrize("name", ["a100", "h100", "l4", "mi300x"])
def test_a_choice_for_every_gpu(name: str) -> None:
    resnet = stem(ConvSpec(32, 3, 224, 224, 64, 7, 7, (2, 2), (3, 3, 3, 3)))
    for precision in PRECISIONS:
        for uint8 in (False, True):
            assert choose_stem(replace(resnet, uint8=uint8), precision, by_name(name)) is not None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (stem(replace(RESNET, groups=3, k=21)), r"groups=3 and dilation=\(1, 1\): .*neither"),
        (stem(replace(RESNET, dilation=(2, 1))), r"groups=1 and dilation=\(2, 1\): .*neither"),
        (stem(RESNET, (4, 3)), r"a pool of \(4, 3\) with stride \(2, 2\): expected two or three.*"),
        (
            StemSpec(RESNET, (3, 3), (1, 2), (1, 1)),
            r"a pool of \(3, 3\) with stride \(1, 2\): expected two or three.*",
        ),
        (stem(replace(RESNET, r=33, h=40)), "a filter 33 pixels high is more than 32"),
        (stem(replace(RESNET, c=16)), "7 pixels of 16 channels are more than 64 numbers"),
    ],
)
def test_unfit_stems_are_refused(spec: StemSpec, message: str) -> None:
    reason = supports(spec)
    assert reason is not None and re.fullmatch(message, reason)
    x, packed = random_images(2, 3, 17, 14, precision="fp16"), torch.zeros(20, 224).half()
    with pytest.raises(OptionError, match=f"{message}; run convolution and pool one by one"):
        stem_calls(x, packed, None, x, spec, "relu", SMALL, "fp16")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(2, 3, 17, 14)}, InputError, r"x is .*float32.*of torch.float16"),
        (
            {"x": torch.zeros(2, 3, 17, 14).half()},
            InputError,
            "x .* has strides .*expected dense channels-last",
        ),
        ({"packed": torch.zeros(20, 147).half()}, InputError, r"packed weight .*\[20, 224\]"),
        ({"bias": torch.zeros(19)}, InputError, r"bias is \[19\].*expected \[20\]"),
        ({"scale": torch.zeros(3)}, InputError, "scale and shift: expected both for a stem"),
        (
            {"scale": torch.zeros(3), "shift": torch.zeros(3)},
            InputError,
            r"of bytes \(spec.uint8\), else neither",
        ),
        ({"spec": replace(STEMS["ResNet's"], uint8=True)}, InputError, "expected both for a stem"),
        (
            {
                "scale": torch.zeros(3),
                "shift": torch.zeros(3),
                "spec": replace(STEMS["ResNet's"], uint8=True),
            },
            InputError,
            r"x is .*expected \[2, 17, 14, 3\] of torch.uint8 where it is normalised",
        ),
        ({"activation": "gelu"}, OptionError, "activation 'gelu'"),
        ({"precision": "int8"}, OptionError, "precision='int8'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_unfit_tensors_are_refused(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    spec = STEMS["ResNet's"]
    given = {
        "x": random_images(2, 3, 17, 14, precision="fp16"),
        "packed": torch.zeros(20, 224).half(),
        "bias": None,
        "out": random_images(2, 20, 5, 4, precision="fp16"),
        **{"spec": spec, "activation": "relu", "config": SMALL, "precision": "fp16"},
        **change,
    }
    with pytest.raises(error, match=message):
        stem_calls(**given)


def test_the_function_refuses_too() -> None:
    spec = STEMS["ResNet's"]
    x, tensors = image(spec, "fp16", "cpu"), weights(spec, "fp16", "cpu")
    with pytest.raises(InputError, match="x with 3 axes"):
        conv2d_max_pool2d(x[0], *tensors, *attributes(spec))
    with pytest.raises(InputError, match="expected 2 channels, as x has"):
        conv2d_max_pool2d(x[:, :2], *tensors, *attributes(spec))
    with pytest.raises(InputError, match="image of 1x14 pixels: too small"):
        conv2d_max_pool2d(x[:, :, :1], *tensors, (2, 2), (0, 0, 0, 0), *attributes(spec)[2:])
    with pytest.raises(OptionError, match=r"a pool of .* run convolution and pool one by one"):
        conv2d_max_pool2d(x, *tensors, *attributes(stem(RESNET, (4, 4))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile_h": 2}, "tile_h=2: expected a power of two of at least 4"),
        ({"tile_w": 12}, "tile_w=12: expected a power of two of at least 4"),
        ({"block_n": 8}, "block_n=8: expected a power of two of at least 16"),
        ({"num_warps": 3}, "num_warps=3: expected 1, 2, 4, 8 or 16"),
        ({"num_stages": 0}, "num_stages=0: expected at least 1"),
    ],
)
def test_unfit_configurations_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        replace(SMALL, **change)
