"""The stem of int8 gives the bytes of its convolution and max-pool one by one, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from fastres.errors import InputError, OptionError
from fastres.kernels import quantized
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.launch.quantized_conv2d import Rescaling
from fastres.kernels.launch.quantized_stem import (
    quantized_conv2d_max_pool2d,
    quantized_stem_calls,
)
from fastres.kernels.launch.stem import pack_stem
from fastres.kernels.packing import pack_quantized_bias
from fastres.kernels.spec import ConvSpec, StemSpec
from fastres.kernels.tuning.gpus import by_name
from fastres.kernels.tuning.stem import StemConfig, choose_stem, row_layout
from tests.kernels.test_quantized_conv2d_kernel import random_bytes
from tests.kernels.test_stem_kernel import RESNET, SMALL, STEMS, random_stems, stem
from tests.support.addresses import accesses, assert_within_bounds, last_program, touched
from tests.support.kernel_oracle import channels_last_strides, fenced, guarded_output, layouts

# Scale and zero point of x, and of the result.
ANY = (0.02, 131, 0.05, 60)
UNITS = {
    "behind ReLU": (0.02, 0, 0.05, 0),
    "any": ANY,
    "highest": (0.02, 255, 0.05, 9),
    "nothing is 0": (0.02, 131, 0.05, 255),
}


def arguments(
    spec: StemSpec, device: str, units: tuple[Any, ...] = ANY, activation: str = "none"
) -> list[Any]:
    """The operator's, random, of sizes at which most numbers are neither 0 nor 255."""
    conv = spec.conv
    weight = torch.randint(-127, 128, (conv.k, conv.c, conv.r, conv.s), dtype=torch.int8)
    scale = (torch.rand(conv.k) + 0.2) * 0.02 * (conv.c * conv.r * conv.s) ** -0.5
    bias = torch.randint(-3000, 3000, (conv.k,), dtype=torch.int32)
    return [
        random_bytes(conv.n, conv.c, conv.h, conv.w, device=device),
        *(each.to(device) for each in (weight, scale, bias)),
        *(conv.stride, conv.padding, activation),
        *(spec.pool_kernel, spec.pool_stride, spec.pool_padding, *units),
    ]


def defined(given: list[Any]) -> Tensor:
    """The definition's answer, on the CPU."""
    moved: list[Any] = [each.cpu() if isinstance(each, Tensor) else each for each in given]
    return quantized.quantized_conv2d_max_pool2d(*moved)


def check(
    spec: StemSpec,
    device: str,
    units: tuple[Any, ...] = ANY,
    activation: str = "none",
    config: StemConfig | None = SMALL,
) -> Tensor:
    """Run the kernel on random tensors; every number has to be the definition's."""
    given = arguments(spec, device, units, activation)
    got, want = quantized_conv2d_max_pool2d(*given, config=config), defined(given)
    assert got.stride() == channels_last_strides(got.shape)
    assert torch.equal(got.cpu(), want)
    return want


@pytest.mark.sampled(4)
@pytest.mark.parametrize("units", UNITS.values(), ids=UNITS)
@pytest.mark.parametrize("spec", STEMS.values(), ids=STEMS)
def test_answers(spec: StemSpec, units: Any, device: str) -> None:
    want = check(spec, device, units)
    assert want.numel() < 200 or units[3] == 255 or len(want.unique()) > 20  # it says something


def test_answers_of_resnet(device: str) -> None:
    check(STEMS["ResNet's"], device)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("activation", ["relu", "relu6", "hardswish"])
def test_activations(activation: str, device: str) -> None:
    check(STEMS["2x3 pool"], device, (0.02, 131, 0.03, 40), activation)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "config",
    [
        StemConfig(4, 4, 32, 4, 3),  # one window of three taps
        StemConfig(8, 16, 16, 8, 1),
        StemConfig(16, 32, 16, 8, 2),  # one tile, larger than the image
        None,
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["ResNet's", "2x3 pool"])
def test_answers_with_other_tiles(config: StemConfig | None, name: str, device: str) -> None:
    check(STEMS[name], device, config=config)


@pytest.mark.campaign
@given(spec=random_stems())
@settings(max_examples=25)
def test_random_stems(spec: StemSpec, device: str) -> None:
    check(spec, device)


def test_layouts_and_an_empty_batch(device: str) -> None:
    given = arguments(STEMS["2x3 pool"], device)
    want = defined(given)
    for layout, images in layouts(given[0]).items():
        got = quantized_conv2d_max_pool2d(*[images, *given[1:]], config=SMALL)
        assert torch.equal(got.cpu(), want), layout
    empty = arguments(stem(replace(RESNET, n=0)), device)
    assert tuple(quantized_conv2d_max_pool2d(*empty).shape) == (0, 20, 5, 4)


def prepared(given: list[Any], spec: StemSpec) -> list[Any]:
    """What ``quantized_stem_calls`` takes in front of the result, weights between fences."""
    x, weight, scale, bias = given[:4]
    unit = Rescaling(*given[-4:])
    vectors = (
        pack_quantized_bias(bias, weight, unit.x_zero_point),
        unit.multipliers(scale, "none", given[6]),
    )
    return [x, *map(fenced, (pack_stem(weight, spec), *vectors))]


def check_inside(name: str, device: str) -> None:
    """Weights lie between fences, results between bytes that must stay as they are."""
    spec = replace(STEMS[name], quantized=True)
    given = arguments(spec, device)
    shape = (spec.conv.n, spec.conv.k, spec.p, spec.q)
    with guarded_output(*shape, dtype=torch.uint8, device=device) as out:
        (call,) = quantized_stem_calls(
            *[*prepared(given, spec), out, spec, "none", Rescaling(*ANY), SMALL]
        )
        call.run()
    assert torch.equal(out.cpu(), defined(given))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["ResNet's", "2x2 pool, padded", "five channels"])
def test_nothing_is_written_around_the_result(name: str, device: str) -> None:
    check_inside(name, device)


def meta_call(spec: StemSpec) -> KernelCall:
    spec = replace(spec, quantized=True)
    conv = spec.conv

    def images(n: int, c: int, h: int, w: int) -> Tensor:
        return torch.empty((n, h, w, c), dtype=torch.uint8, device="meta").permute(0, 3, 1, 2)

    depth = conv.r * row_layout(spec, 1).size
    (call,) = quantized_stem_calls(
        images(conv.n, conv.c, conv.h, conv.w),
        torch.empty((conv.k, depth), dtype=torch.int8, device="meta"),
        torch.empty(conv.k, dtype=torch.int32, device="meta"),
        torch.empty(conv.k, dtype=torch.float32, device="meta"),
        images(conv.n, conv.k, spec.p, spec.q),
        *(spec, "none", Rescaling(*ANY), SMALL),
    )
    return call


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", STEMS)
def test_no_address_is_outside(name: str) -> None:
    assert_within_bounds([meta_call(STEMS[name])], "out_ptr")


def test_offsets_of_more_than_32_bits() -> None:
    """The last program writes the last windows: nothing wrapped around."""
    conv = ConvSpec(1500, 4, 1000, 1000, 16, 7, 7, (4, 4), (3, 3, 3, 3))
    call = meta_call(stem(conv))
    assert call.constants["INT64"]
    found = accesses(call, last_program(call))
    assert touched(found, "load", "x_ptr").tolist()[-1] == conv.n * 1000 * 1000 * 4 - 1
    # The last tile holds windows 123 and 124 of 125 per axis.
    assert touched(found, "store", "out_ptr").tolist() == [
        (((conv.n - 1) * 125 + row) * 125 + column) * 16 + k
        for row in (123, 124)
        for column in (123, 124)
        for k in range(16)
    ]
    assert not meta_call(STEMS["ResNet's"]).constants["INT64"]


def test_rows_are_as_long_as_products_are() -> None:
    spec = stem(replace(RESNET, c=1))
    assert row_layout(spec, 1).size == 16
    assert row_layout(replace(spec, quantized=True), 1).size == 32


@pytest.mark.parametrize("name", ["a100", "h100", "l4", "mi300x"])
def test_a_choice_for_every_gpu(name: str) -> None:
    resnet = stem(ConvSpec(32, 3, 224, 224, 64, 7, 7, (2, 2), (3, 3, 3, 3)))
    assert choose_stem(replace(resnet, quantized=True), "int8", by_name(name)) is not None


def launches(*arguments: Any) -> list[KernelCall]:
    """``quantized_stem_calls``, its arguments in several parts."""
    return quantized_stem_calls(*arguments)


def test_what_is_refused() -> None:
    spec = replace(STEMS["ResNet's"], quantized=True)
    given = arguments(spec, "cpu")
    good = [*prepared(given, spec), random_bytes(2, 20, 5, 4), spec, "none", Rescaling(*ANY), SMALL]
    for place, value, message in (
        (0, good[0].float(), r"x is .*float32.*: expected \[2, 3, 17, 14\] of torch.uint8"),
        (1, good[1][:, :-1], r"packed weight is \[20, 223\].*expected \[20, 224\]"),
        (2, good[2].float(), r"bias is .*float32.*of torch.int32"),
        (3, good[3][:-1], r"multiplier is \[19\].*expected \[20\]"),
        (4, good[4].float(), r"out is .*float32.*of torch.uint8"),
    ):
        with pytest.raises(InputError, match=message):
            launches(*good[:place], value, *good[place + 1 :])
    for place, value, message in (
        (5, replace(spec, quantized=False), "expected quantized=True and uint8=False"),
        (5, replace(spec, uint8=True), "expected quantized=True and uint8=False"),
        (5, replace(spec, pool_stride=(1, 2)), "a pool of .*run convolution and pool one by one"),
        (6, "silu", "activation 'silu': .*expected one of"),
        (7, Rescaling(0.02, 131, None, 0), "scale=None: expected that of the bytes"),
    ):
        with pytest.raises(OptionError, match=message):
            launches(*good[:place], value, *good[place + 1 :])


def test_the_function_refuses_too() -> None:
    given = arguments(STEMS["ResNet's"], "cpu")
    with pytest.raises(InputError, match="x with 3 axes"):
        quantized_conv2d_max_pool2d(*[given[0][0], *given[1:]])
    with pytest.raises(OptionError, match=r"a pool of .* run convolution and pool one by one"):
        quantized_conv2d_max_pool2d(*arguments(stem(RESNET, (4, 4)), "cpu"))
