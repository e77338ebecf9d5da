"""The bottleneck tail of int8 gives the integers of its convolutions one by one, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from fastres.errors import InputError, OptionError
from fastres.kernels import quantized
from fastres.kernels.launch.bottleneck import pack_bottleneck, pack_pointwise
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.launch.quantized_bottleneck import (
    BlockRescaling,
    Filters,
    quantized_bottleneck,
    quantized_bottleneck_calls,
)
from fastres.kernels.packing import pack_quantized_bias
from fastres.kernels.spec import BottleneckSpec, ConvSpec
from fastres.kernels.tuning.bottleneck import BottleneckConfig
from tests.kernels.test_bottleneck_kernel import BLOCKS as OF_FLOATS
from tests.kernels.test_bottleneck_kernel import PLAIN, block, random_blocks
from tests.kernels.test_quantized_conv2d_kernel import random_bytes
from tests.support.addresses import accesses, assert_within_bounds, last_program, touched
from tests.support.kernel_oracle import channels_last_strides, fenced, guarded_output, layouts

SMALL = BottleneckConfig(16, 32, 32, 4, 2)
"""Tiles so small that a few pixels and channels make several in each direction."""

BLOCKS = {
    **OF_FLOATS,
    "shortcut in steps": BottleneckSpec(
        replace(PLAIN, stride=(2, 2)), 40, ConvSpec(2, 150, 6, 4, 40, 1, 1, (2, 2)), 24
    ),
}

# Of x, narrow, the residual, the shortcut's result, wide and next.
BEHIND_RELU = ((0.02, 0.03, 0.05, 0.06, 0.04, 0.03), (0, 0, 0, 120, 0, 0))
ANY = ((0.02, 0.04, 0.05, 0.06, 0.07, 0.05), (131, 60, 90, 200, 40, 33))
HIGHEST = ((0.02, 0.04, 0.05, 0.06, 0.07, 0.05), (255, 9, 128, 128, 3, 7))
UNITS = {"behind ReLU": BEHIND_RELU, "any": ANY, "highest": HIGHEST}

PRODUCTS = {"conv": (1, 2, 3), "expand": (4, 5, 6), "shortcut": (8, 9, 10), "next": (12, 13, 14)}
"""Where the weight, its scale and the bias of each stand among the operator's arguments."""


def arguments(spec: BottleneckSpec, device: str, units: Any = ANY) -> list[Any]:
    """The operator's, random, of sizes at which most numbers are neither 0 nor 255."""
    conv, beside = spec.conv, spec.shortcut

    def filters(k: int | None, c: int, r: int = 1, s: int = 1) -> list[Any]:
        if k is None:
            return [None, None, None]
        weight = torch.randint(-127, 128, (k, c, r, s), dtype=torch.int8)
        scale = (torch.rand(k) + 0.2) * 0.02 * (c * r * s) ** -0.5
        bias = torch.randint(-3000, 3000, (k,), dtype=torch.int32)
        return [each.to(device) for each in (weight, scale, bias)]

    identity = (conv.n, spec.expand_k, conv.p, conv.q)
    if beside is not None:
        identity = (beside.n, beside.c, beside.h, beside.w)
    return [
        random_bytes(conv.n, conv.c, conv.h, conv.w, device=device),
        *filters(conv.k, conv.c // conv.groups, conv.r, conv.s),
        *filters(spec.expand_k, conv.k),
        random_bytes(*identity, device=device),
        *filters(None if beside is None else beside.k, 0 if beside is None else beside.c),
        (1, 1) if beside is None else beside.stride,
        *filters(spec.next_k, spec.expand_k),
        *(conv.stride, conv.padding, conv.dilation, conv.groups, *map(list, units)),
    ]


def defined(given: list[Any]) -> list[Tensor]:
    """The definition's answer, on the CPU."""
    moved: list[Any] = [each.cpu() if isinstance(each, Tensor) else each for each in given]
    return quantized.quantized_bottleneck(*moved)


def check(
    spec: BottleneckSpec,
    device: str,
    units: Any = ANY,
    config: BottleneckConfig | None = SMALL,
) -> list[Tensor]:
    """Run the kernel on random tensors; every number has to be the definition's."""
    given = arguments(spec, device, units)
    got = quantized_bottleneck(*given, config=config)
    want = defined(given)
    for one, other in zip(got, want, strict=True):
        assert one.stride() == channels_last_strides(one.shape)
        assert torch.equal(one.cpu(), other)
    return want


@pytest.mark.sampled(4)
@pytest.mark.parametrize("units", UNITS.values(), ids=UNITS)
@pytest.mark.parametrize("spec", BLOCKS.values(), ids=BLOCKS)
def test_answers(spec: BottleneckSpec, units: Any, device: str) -> None:
    config = replace(SMALL, block_n=128) if spec.expand_k == 1000 else SMALL
    for one in check(spec, device, units, config):
        assert one.numel() < 200 or len(one.unique()) > 20  # they say something


@pytest.mark.parametrize("name", ["shortcut in steps", "groups in two chunks"])
def test_answers_of_the_hardest(name: str, device: str) -> None:
    check(BLOCKS[name], device)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "config",
    [
        BottleneckConfig(32, 32, 32, 4, 3),
        BottleneckConfig(16, 64, 32, 4, 1),  # a step longer than a tap's channels
        BottleneckConfig(64, 32, 64, 8, 4),  # more rows than pixels, more filters than there are
        None,
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["plain", "shortcut and next", "groups in two chunks"])
def test_answers_with_other_tiles(config: BottleneckConfig | None, name: str, device: str) -> None:
    check(BLOCKS[name], device, config=config)


@pytest.mark.campaign
@given(spec=random_blocks())
@settings(max_examples=25)
def test_random_blocks(spec: BottleneckSpec, device: str) -> None:
    check(spec, device)


def test_the_shortcut_is_rounded_before_it_is_added(device: str) -> None:
    """Coarsely, so that a sum rounded once would be another number almost everywhere."""
    spec = BLOCKS["shortcut"]
    scales, zero_points = ANY
    coarse = ((*scales[:3], 2.0, *scales[4:]), zero_points)
    given = arguments(spec, device, coarse)
    (got,), (want,) = quantized_bottleneck(*given, config=SMALL), defined(given)
    assert torch.equal(got.cpu(), want)
    fine = [*given[:-2], list(ANY[0]), list(zero_points)]
    assert (defined(fine)[0] != want).float().mean() > 0.3


def test_layouts_and_an_empty_batch(device: str) -> None:
    given = arguments(BLOCKS["shortcut and next"], device)
    want = defined(given)
    for place in (0, 7):
        for layout, images in layouts(given[place]).items():
            changed: list[Any] = [*given[:place], images, *given[place + 1 :]]
            got = quantized_bottleneck(*changed, config=SMALL)
            assert all(torch.equal(a.cpu(), b) for a, b in zip(got, want, strict=True)), layout
    empty = quantized_bottleneck(*arguments(block(replace(PLAIN, n=0), 40, 24), device))
    assert [tuple(one.shape) for one in empty] == [(0, 40, 5, 4), (0, 24, 5, 4)]


def prepared(given: list[Any], groups: int = 1) -> tuple[list[Filters | None], BlockRescaling]:
    """What ``quantized_bottleneck_calls`` takes of weights, between fences, and of scales."""
    rescaling = BlockRescaling.of(given[-2], given[-1], given[8] is not None)
    units = (rescaling.conv, rescaling.expand, rescaling.shortcut, rescaling.following)
    found: list[Filters | None] = []
    for (name, places), unit in zip(PRODUCTS.items(), units, strict=True):
        weight, scale, bias = (given[place] for place in places)
        if weight is None:
            found.append(None)
            continue
        packed = pack_bottleneck(weight, groups) if name == "conv" else pack_pointwise(weight)
        shifted = pack_quantized_bias(bias, weight, unit.x_zero_point)
        vectors = (shifted, unit.multipliers(scale, "relu"))
        found.append(Filters(*map(fenced, (packed, *vectors))))
    return found, rescaling


def launches(*arguments: Any) -> list[KernelCall]:
    """``quantized_bottleneck_calls``, its arguments in several parts."""
    return quantized_bottleneck_calls(*arguments)


def calls(
    given: list[Any], spec: BottleneckSpec, out: Tensor, next_out: Tensor | None
) -> list[KernelCall]:
    (conv, expand, shortcut, following), rescaling = prepared(given, spec.conv.groups)
    assert conv is not None and expand is not None
    return quantized_bottleneck_calls(
        *(given[0], conv, expand, given[7], shortcut, following, out, next_out),
        *(spec, rescaling, SMALL),
    )


def check_inside(name: str, device: str) -> None:
    """Weights lie between fences, results between bytes that must stay as they are."""
    spec = BLOCKS[name]
    given = arguments(spec, device)
    shape = (spec.conv.n, spec.expand_k, spec.conv.p, spec.conv.q)
    head = (shape[0], spec.next_k or 0, *shape[2:])
    with (
        guarded_output(*shape, dtype=torch.uint8, device=device) as out,
        guarded_output(*head, dtype=torch.uint8, device=device) as next_out,
    ):
        (call,) = calls(given, spec, out, next_out if spec.next_k else None)
        call.run()
    got = [out, next_out] if spec.next_k else [out]
    for one, want in zip(got, defined(given), strict=True):
        assert torch.equal(one.cpu(), want)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["plain", "next", "stride 2", "groups in two chunks"])
def test_nothing_is_written_around_the_results(name: str, device: str) -> None:
    check_inside(name, device)


def test_the_residual_may_be_overwritten(device: str) -> None:
    spec = BLOCKS["plain"]
    given = arguments(spec, device)
    (want,) = defined(given)
    (call,) = calls(given, spec, given[7], None)
    call.run()
    assert torch.equal(given[7].cpu(), want)


def meta_call(spec: BottleneckSpec) -> KernelCall:
    conv, beside = spec.conv, spec.shortcut

    def images(n: int, c: int, h: int, w: int) -> Tensor:
        return torch.empty((n, h, w, c), dtype=torch.uint8, device="meta").permute(0, 3, 1, 2)

    def filters(k: int | None, depth: int) -> Any:
        if k is None:
            return None
        kinds: Any = ({"dtype": torch.int8}, {"dtype": torch.int32}, {"dtype": torch.float32})
        shapes = ((k, depth), (k,), (k,))
        made = (
            torch.empty(s, **kind, device="meta") for s, kind in zip(shapes, kinds, strict=True)
        )
        return Filters(*made)

    wide = images(conv.n, spec.expand_k, conv.p, conv.q)
    (call,) = quantized_bottleneck_calls(
        images(conv.n, conv.c, conv.h, conv.w),
        filters(conv.k, conv.r * conv.s * conv.c),
        filters(spec.expand_k, conv.k),
        wide if beside is None else images(beside.n, beside.c, beside.h, beside.w),
        None if beside is None else filters(beside.k, beside.c),
        filters(spec.next_k, spec.expand_k),
        wide,
        None if spec.next_k is None else images(conv.n, spec.next_k, conv.p, conv.q),
        *(spec, BlockRescaling.of(*ANY, beside is not None), SMALL),
    )
    return call


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["next", "shortcut and next", "one pixel", "dilation"])
def test_no_address_is_outside(name: str) -> None:
    call = meta_call(BLOCKS[name])
    for result in ("out_ptr", *(["next_out_ptr"] if BLOCKS[name].next_k else [])):
        assert_within_bounds([call], result)


def test_offsets_of_more_than_32_bits() -> None:
    """The last program reads and writes the last pixels: nothing wrapped around."""
    conv = ConvSpec(64, 16, 1480, 1480, 32, 3, 3, padding=(1, 1, 1, 1))
    call = meta_call(BottleneckSpec(conv, 32, None, 16))
    assert call.constants["INT64"]
    found = accesses(call, last_program(call))
    pixels = conv.n * conv.p * conv.q % 16 or 16
    for kind, name, k in (
        *(("load", "residual_ptr", 32), ("store", "out_ptr", 32)),
        ("store", "next_out_ptr", 16),
    ):
        end = conv.n * k * conv.p * conv.q
        assert touched(found, kind, name).tolist() == list(range(end - pixels * k, end))
    assert not meta_call(BLOCKS["next"]).constants["INT64"]


def test_what_is_refused() -> None:
    spec = BLOCKS["next"]
    given = arguments(spec, "cpu")
    out, next_out = (random_bytes(2, k, 5, 4) for k in (40, 24))
    (conv, expand, _, following), rescaling = prepared(given)
    assert conv is not None and expand is not None and following is not None
    good: list[Any] = [given[0], conv, expand, given[7], None, following, out, next_out, spec]
    good += [rescaling, SMALL]
    for place, value, message in (
        (0, given[0].float(), r"x is .*float32.*: expected \[2, 20, 5, 4\] of torch.uint8"),
        (1, conv._replace(weight=conv.weight[:, :-1]), r"conv.weight is \[24, 179\]"),
        (2, expand._replace(bias=expand.bias.float()), r"expand.bias vector is .*float32"),
        (2, (*expand[:2], None), r"expand.multiplier is None: the spec says \[40\]"),
        (4, expand, r"shortcut.weight is \[40, 24\].*the spec has none; pass None"),
        (5, None, r"following.weight is None: the spec says \[24, 40\]"),
        (7, None, r"next_out is None: the spec says \[2, 24, 5, 4\]"),
    ):
        changed = [*good[:place], value, *good[place + 1 :]]
        with pytest.raises(InputError, match=message):
            launches(*changed)
    with pytest.raises(OptionError, match="expected block_k and block_n of 32 bytes or more"):
        launches(*good[:-1], replace(SMALL, block_n=16))
    with pytest.raises(OptionError, match=r"300 filters .*; run its convolutions one by one"):
        launches(*good[:-3], block(replace(PLAIN, k=300), 40), *good[-2:])
    with pytest.raises(OptionError, match="5 scales and 6 zero points: expected six each"):
        BlockRescaling.of(ANY[0][:5], ANY[1], False)
    with pytest.raises(OptionError, match="zero_point=256: expected 0 to 255"):
        BlockRescaling.of(ANY[0], (*ANY[1][:4], 256, 0), False)


def test_the_function_refuses_too() -> None:
    given = arguments(BLOCKS["next"], "cpu")
    with pytest.raises(InputError, match="next_weight without its scale and bias"):
        quantized_bottleneck(*[*given[:13], None, *given[14:]])
    with pytest.raises(InputError, match="x has 3 axes: expected four"):
        quantized_bottleneck(given[0][0], *given[1:])
    with pytest.raises(OptionError, match="300 filters"):
        quantized_bottleneck(*arguments(block(replace(PLAIN, k=300, n=1), 40), "cpu"))
    wide = block(ConvSpec(1, 4, 1, 1, 1024, 1, 1), 16)
    with pytest.raises(OptionError, match="too wide for one kernel on a100"):
        quantized_bottleneck(*arguments(wide, "cpu"))
