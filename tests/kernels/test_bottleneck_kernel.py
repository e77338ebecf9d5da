"""The bottleneck tail's answers, on blocks that tiles do not fit."""

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
from fastres.kernels.launch.bottleneck import (
    bottleneck,
    bottleneck_calls,
    pack_bottleneck,
    pack_pointwise,
)
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.spec import BottleneckSpec, ConvSpec
from fastres.kernels.tuning import bottleneck as configs
from fastres.kernels.tuning.bottleneck import BottleneckConfig
from tests.support.addresses import accesses, last_program, touched
from tests.support.kernel_oracle import (
    PRECISIONS,
    assert_kernel_as_accurate,
    channels_last_strides,
    fenced,
    guarded_output,
    in_float64,
    in_precision,
    layouts,
    random_images,
    random_tensor,
    random_vector,
)

SMALL = BottleneckConfig(16, 16, 16, 4, 2)
"""Tiles so small that a few pixels and channels make several in each direction."""

BIASES = (2, 4, 9)
"""Positions of the biases among the operator's arguments."""


def block(conv: ConvSpec, k: int, next_k: int | None = None, stride: Any = None) -> BottleneckSpec:
    """``stride``: of a shortcut on 33 channels, with a row and columns that no stride reads."""
    beside = None
    if stride is not None:
        h, w = (conv.p - 1) * stride[0] + 1, conv.q * stride[1]
        beside = ConvSpec(conv.n, 33, h, w, k, 1, 1, stride=stride)
    return BottleneckSpec(conv, k, beside, next_k)


def arguments(spec: BottleneckSpec, precision: str, device: str, biases: bool = True) -> list[Any]:
    """The operator's, random."""
    conv, beside = spec.conv, spec.shortcut

    def weight(k: int, c: int, r: int = 1, s: int = 1) -> Tensor:
        scale = (c * r * s) ** -0.5
        return random_tensor(k, c, r, s, precision=precision, device=device, scale=scale)

    def images(*shape: int) -> Tensor:
        return random_images(*shape, precision=precision, device=device)

    def bias(size: int) -> Tensor | None:
        return random_vector(size, device) if biases else None

    identity = (conv.n, spec.expand_k, conv.p, conv.q)
    return [
        images(conv.n, conv.c, conv.h, conv.w),
        weight(conv.k, conv.c // conv.groups, conv.r, conv.s),
        bias(conv.k),
        weight(spec.expand_k, conv.k),
        bias(spec.expand_k),
        images(*identity) if beside is None else images(beside.n, beside.c, beside.h, beside.w),
        None if beside is None else weight(beside.k, beside.c),
        (1, 1) if beside is None else beside.stride,
        None if spec.next_k is None else weight(spec.next_k, spec.expand_k),
        None if spec.next_k is None else bias(spec.next_k),
        *(conv.stride, conv.padding, conv.dilation, conv.groups),
    ]


def judge_all(got: list[Tensor], given: list[Any], precision: str, factor: float = 2.0) -> None:
    wanted = reference.bottleneck(*in_float64(given))
    same = reference.bottleneck(*in_precision(given, precision))
    for one, oracle, torchs in zip(got, wanted, same, strict=True):
        assert_kernel_as_accurate(one, oracle, torchs, precision, factor)


def check(
    spec: BottleneckSpec,
    precision: str,
    device: str,
    config: BottleneckConfig | None = SMALL,
    biases: bool = True,
    factor: float = 2.0,
) -> None:
    given = arguments(spec, precision, device, biases)
    got = bottleneck(*given, config=config, precision=precision)
    for one in got:
        assert one.stride() == channels_last_strides(one.shape)
    judge_all(got, given, precision, factor)


PLAIN = ConvSpec(2, 20, 5, 4, 24, 3, 3, padding=(1, 1, 1, 1))

BLOCKS = {
    "plain": block(PLAIN, 40),
    "next": block(PLAIN, 40, 24),
    "shortcut": block(PLAIN, 40, None, (1, 1)),
    "shortcut and next": block(PLAIN, 40, 40, (2, 1)),
    "whole tiles": block(replace(PLAIN, c=32, k=32, w=8, h=2), 64, 16),
    "whole tiles, shortcut on 32 channels": BottleneckSpec(
        replace(PLAIN, c=16, k=16, h=4, w=4, stride=(1, 1)), 32, ConvSpec(2, 32, 4, 4, 32, 1, 1), 16
    ),
    "shortcut on 8 channels": BottleneckSpec(PLAIN, 16, ConvSpec(2, 8, 9, 8, 16, 1, 1, (2, 2)), 3),
    "stride 2": block(replace(PLAIN, stride=(2, 2)), 40, 16, (2, 2)),
    "one pixel": block(replace(PLAIN, n=1, h=1, w=1), 40, 24),
    "one pixel, shortcut": block(replace(PLAIN, n=1, h=1, w=1), 40, 24, (2, 2)),
    "one channel": block(replace(PLAIN, c=1, k=1), 1, 1),
    "1x1 instead of 3x3": block(replace(PLAIN, r=1, s=1, padding=(0, 0, 0, 0)), 24, 16),
    "padding of four sizes": block(replace(PLAIN, padding=(0, 2, 3, 1)), 16, None, (1, 3)),
    "padding below and right only": block(replace(PLAIN, stride=(2, 2), padding=(0, 0, 1, 1)), 24),
    "dilation": block(replace(PLAIN, dilation=(2, 3), padding=(2, 3, 2, 3)), 24, 16),
    "oblong filter": block(replace(PLAIN, r=1, s=5, padding=(0, 2, 0, 2)), 24),
    "stride larger than filter": block(replace(PLAIN, h=9, w=8, r=2, s=1, stride=(4, 3)), 24, 8),
    "wider head": block(PLAIN, 24, 70),
    "1000 classes": block(replace(PLAIN, n=1, h=2, w=2), 1000),
    "groups": block(ConvSpec(2, 24, 3, 4, 48, 3, 3, padding=(1, 1, 1, 1), groups=4), 40, 16),
    "groups in two chunks": block(
        ConvSpec(1, 96, 3, 3, 96, 3, 3, (2, 2), (1, 1, 1, 1), groups=6), 32, 16, (2, 2)
    ),
    "ResNeXt 32x4d": block(ConvSpec(1, 128, 2, 3, 128, 3, 3, (1, 1), (1, 1, 1, 1), groups=32), 48),
}


@pytest.mark.sampled(7)
@pytest.mark.parametrize("spec", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_answers(spec: BottleneckSpec, precision: str, device: str) -> None:
    config = replace(SMALL, block_n=128) if spec.expand_k == 1000 else SMALL
    check(spec, precision, device, config)


@pytest.mark.parametrize("name", ["plain", "shortcut and next"])
def test_answers_without_biases(name: str, device: str) -> None:
    check(BLOCKS[name], "fp16", device, biases=False)


@pytest.mark.parametrize(
    "config",
    [
        BottleneckConfig(32, 32, 32, 4, 3),
        BottleneckConfig(16, 64, 16, 4, 1),  # a step longer than a tap's channels
        BottleneckConfig(64, 16, 64, 8, 4),  # more rows than pixels, more filters than there are
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["plain", "shortcut and next", "groups in two chunks"])
def test_answers_with_other_tiles(config: BottleneckConfig, name: str, device: str) -> None:
    check(BLOCKS[name], "fp16", device, config)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["next", "shortcut"])
def test_answers_of_the_configuration_that_is_chosen(
    name: str, precision: str, device: str
) -> None:
    check(BLOCKS[name], precision, device, config=None)


@pytest.mark.parametrize("groups", [1, 2])
def test_filters_in_several_chunks(
    groups: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a width of 512, which is two chunks of 256."""
    conv = ConvSpec(1, 32, 3, 4, 32, 3, 3, padding=(1, 1, 1, 1), groups=groups)
    chunks = configs.Chunks(2, 16, 32 // groups)
    monkeypatch.setattr(configs, "chunks_of", lambda _: chunks)
    monkeypatch.setattr("fastres.kernels.launch.bottleneck.chunks_of", lambda _: chunks)
    check(block(conv, 40, 16), "fp32", device)


@st.composite
def random_blocks(draw: st.DrawFn) -> BottleneckSpec:
    sides = st.integers(1, 3)
    r, s = draw(sides), draw(sides)
    dilation, stride = draw(st.tuples(sides, sides)), draw(st.tuples(sides, sides))
    padding = draw(st.tuples(*[st.integers(0, 2)] * 4))
    groups = draw(st.sampled_from([1, 1, 1, 3]))
    conv = ConvSpec(
        n=draw(st.integers(1, 2)),
        c=groups * draw(st.integers(1, 9)),
        h=max(1, dilation[0] * (r - 1) + draw(sides)),
        w=max(1, dilation[1] * (s - 1) + draw(sides)),
        k=groups * draw(st.integers(1, 9)),
        r=r,
        s=s,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )
    shortcut = draw(st.sampled_from([None, (1, 1), (2, 3)]))
    next_k = draw(st.sampled_from([None, 1, 17]))
    return block(conv, draw(st.integers(1, 40)), next_k, shortcut)


@pytest.mark.campaign
@given(spec=random_blocks())
@settings(max_examples=25)
def test_random_blocks(spec: BottleneckSpec, device: str) -> None:
    # Of the eight numbers that such a block may have, torch's may be right by luck; what is looked
    # for here is off by thousands.
    check(spec, "fp32", device, replace(SMALL, block_n=32), factor=10.0)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 5], ids=["x", "residual"])
@pytest.mark.parametrize("name", ["next", "shortcut and next", "whole tiles"])
def test_nan_and_infinity(name: str, place: int, value: float, device: str) -> None:
    given = arguments(BLOCKS[name], "fp16", device)
    given[place][0, 3, 0, 0] = value
    got = bottleneck(*given, config=SMALL)
    judge_all(got, given, "fp16")
    assert not got[0].isfinite().all() or value == -math.inf
    assert got[0][-1, :, -1, -1].isfinite().all()  # of another image


@pytest.mark.sampled(3)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("next_k", "stride"),
    [(None, None), (24, None), (24, (1, 2))],
    ids=["alone", "next", "shortcut and next"],
)
def test_nan_and_infinity_stay_in_their_group(
    next_k: int | None, stride: Any, value: float, device: str
) -> None:
    """A chunk multiplies its other groups' pixels by zero, and that can make NaN.

    It would show: of an infinity become infinities and zeros in the filters of its own group, and
    positive weights make infinity of these, but NaN of a neighbour's NaN.
    """
    conv = ConvSpec(2, 80, 3, 4, 48, 3, 3, padding=(1, 1, 1, 1), groups=4)
    assert configs.chunks_of(conv) == configs.Chunks(2, 24, 40)
    given = arguments(block(conv, 40, next_k, stride), "fp32", device)
    for place in (3, 8):
        given[place] = None if given[place] is None else given[place].abs()
    given[0][1, 23, 0, 3] = value  # the second group of the first chunk
    given[0][1, 45, 2, 3] = value  # the first of the second, in part of the same windows
    got = bottleneck(*given, config=SMALL)
    judge_all(got, given, "fp32")
    for one in got:
        kind = one.isnan() if math.isnan(value) else one.isposinf()
        assert kind[1, :, :, 2:].all()
        assert one[0].isfinite().all()
        assert one[1, :, :, :2].isfinite().all()


def test_infinity_between_positive_weights(device: str) -> None:
    """It stays infinity: multiplied with the zeros that fill blocks up it would be NaN."""
    given = arguments(BLOCKS["next"], "fp16", device)
    given[0][0, 3, 0, 0] = math.inf
    for place in (1, 3, 8):
        given[place] = given[place].abs()
    got = bottleneck(*given, config=SMALL)
    assert all(one.isposinf().any() and not one.isnan().any() for one in got)
    judge_all(got, given, "fp16")


def test_an_overflow_of_narrow_is_infinity(device: str) -> None:
    """narrow is rounded to fp16 before the second product, as by torch."""
    given = arguments(BLOCKS["plain"], "fp16", device)
    given[2] += 1e6
    given[3] = given[3].abs()
    assert bottleneck(*given, config=SMALL)[0].isposinf().all()


def test_wide_is_rounded_before_the_third_product(device: str) -> None:
    given = arguments(BLOCKS["next"], "bf16", device)
    wide, head = bottleneck(*given, config=SMALL)
    weight = given[8].double().cpu()
    again = reference.conv2d(
        wide.double().cpu(), weight, given[9].double().cpu(), None, (1, 1), (0,) * 4, (1, 1), 1,
        "none", "relu",
    )  # fmt: skip
    # A sum of bfloat16 products in float32, rounded once.
    torch.testing.assert_close(head.double().cpu(), again, rtol=2**-8, atol=1e-5)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("place", [0, 5])
@pytest.mark.parametrize("name", ["next", "shortcut and next"])
def test_memory_layouts_do_not_matter(name: str, place: int, device: str) -> None:
    given = arguments(BLOCKS[name], "fp32", device)
    wanted = bottleneck(*given, config=SMALL)
    for layout, x in layouts(given[place]).items():
        changed: list[Any] = [*given[:place], x, *given[place + 1 :]]
        got = bottleneck(*changed, config=SMALL)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True)), layout


def test_weights_in_other_memory_and_half_biases(device: str) -> None:
    given = arguments(BLOCKS["shortcut and next"], "fp16", device)
    wanted = bottleneck(*given, config=SMALL)
    changed = list(given)
    for place in (1, 3, 6, 8):
        changed[place] = layouts(given[place])["strided"]
    for place in BIASES:
        changed[place] = given[place].repeat_interleave(2)[::2]
    got = bottleneck(*changed, config=SMALL)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_an_empty_batch(device: str) -> None:
    given = arguments(block(replace(PLAIN, n=0), 40, 24), "fp16", device)
    got = bottleneck(*given)
    assert [tuple(one.shape) for one in got] == [(0, 40, 5, 4), (0, 24, 5, 4)]


def prepared(
    spec: BottleneckSpec, given: list[Any], out: Tensor, next_out: Tensor | None
) -> list[Any]:
    """The tensors that ``bottleneck_calls`` takes."""
    x, weight, bias, expand, expand_bias, residual, shortcut, _, head, next_bias, *_ = given
    return [
        *(x, pack_bottleneck(weight, spec.conv.groups), bias, pack_pointwise(expand), expand_bias),
        residual,
        None if shortcut is None else pack_pointwise(shortcut),
        None if head is None else pack_pointwise(head),
        *(next_bias, out, next_out),
    ]


def calls(tensors: list[Any], spec: BottleneckSpec) -> list[KernelCall]:
    rest: tuple[Any, ...] = (spec, SMALL, "fp16")
    return bottleneck_calls(*tensors, *rest)


@pytest.mark.parametrize("name", ["next", "stride 2", "groups in two chunks"])
def test_nothing_else_is_read_or_written(name: str, device: str) -> None:
    """Weights lie between NaN; the images of ``arguments`` do anyway."""
    spec = BLOCKS[name]
    given = arguments(spec, "fp16", device)
    shape = (spec.conv.n, spec.expand_k, spec.conv.p, spec.conv.q)
    head = (shape[0], spec.next_k or 0, *shape[2:])
    with (
        guarded_output(*shape, precision="fp16", device=device) as out,
        guarded_output(*head, precision="fp16", device=device) as next_out,
    ):
        tensors = prepared(spec, given, out, next_out)
        for place in (1, 3, 6, 7):
            tensors[place] = None if tensors[place] is None else fenced(tensors[place])
        (call,) = calls(tensors, spec)
        call.run()
        judge_all([out, next_out], given, "fp16")


def test_the_residual_may_be_overwritten(device: str) -> None:
    spec = BLOCKS["next"]
    given = arguments(spec, "fp16", device)
    wanted = bottleneck(*given, config=SMALL)
    next_out = random_images(2, 24, 5, 4, precision="fp16", device=device)
    tensors = prepared(spec, given, given[5], next_out)
    (call,) = calls(tensors, spec)
    call.run()
    assert torch.equal(given[5], wanted[0])
    assert torch.equal(next_out, wanted[1])


def meta_call(spec: BottleneckSpec) -> KernelCall:
    conv, beside = spec.conv, spec.shortcut

    def images(n: int, c: int, h: int, w: int) -> Tensor:
        shape = (n, h, w, c)
        return torch.empty(shape, dtype=torch.float16, device="meta").permute(0, 3, 1, 2)

    def matrix(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float16, device="meta")

    wide = images(conv.n, spec.expand_k, conv.p, conv.q)
    (call,) = bottleneck_calls(
        images(conv.n, conv.c, conv.h, conv.w),
        matrix(conv.k, conv.r * conv.s * conv.c),
        None,
        matrix(spec.expand_k, conv.k),
        None,
        wide if beside is None else images(beside.n, beside.c, beside.h, beside.w),
        None if beside is None else matrix(beside.k, beside.c),
        None if spec.next_k is None else matrix(spec.next_k, spec.expand_k),
        None,
        wide,
        None if spec.next_k is None else images(conv.n, spec.next_k, conv.p, conv.q),
        *(spec, SMALL, "fp16"),
    )
    return call


def last_elements(n: int, c: int, h: int, w: int, pixels: int) -> list[int]:
    end = n * c * h * w
    return list(range(end - pixels * c, end))


def test_offsets_of_more_than_32_bits() -> None:
    """The last program reads and writes the last pixels: nothing wrapped around."""
    conv = ConvSpec(64, 16, 1480, 1480, 16, 3, 3, padding=(1, 1, 1, 1))
    call = meta_call(BottleneckSpec(conv, 32, None, 16))
    assert call.constants["INT64"]
    found = accesses(call, last_program(call))
    pixels = conv.n * conv.p * conv.q % 16 or 16
    for kind, name, k in (
        *(("load", "residual_ptr", 32), ("store", "out_ptr", 32)),
        ("store", "next_out_ptr", 16),
    ):
        wanted = last_elements(conv.n, k, conv.p, conv.q, pixels)
        assert touched(found, kind, name).tolist() == wanted
    below = (conv.q - pixels - 1) * 16  # the last rows, and one column more to the left
    rows = [(conv.n * conv.h - row) * conv.w * 16 for row in (2, 1)]
    wanted = [row + column for row in rows for column in range(below, conv.w * 16)]
    assert touched(found, "load", "x_ptr").tolist() == wanted


def test_offsets_of_more_than_32_bits_into_the_shortcut() -> None:
    conv = ConvSpec(8, 16, 4, 4, 16, 1, 1)
    beside = ConvSpec(8, 64, 2049, 2049, 32, 1, 1, stride=(682, 682))
    call = meta_call(BottleneckSpec(conv, 32, beside))
    assert call.constants["INT64"]
    found = touched(accesses(call, last_program(call)), "load", "residual_ptr")
    assert found[-1] == ((7 * 2049 + 3 * 682) * 2049 + 3 * 682) * 64 + 63
    assert found[0] == 7 * 2049 * 2049 * 64
    assert len(found) == 16 * 64


def test_offsets_have_32_bits_where_that_is_enough() -> None:
    assert not meta_call(BLOCKS["next"]).constants["INT64"]
    largest = ConvSpec(1, 16, 2048, 2048, 16, 1, 1)
    assert not meta_call(BottleneckSpec(largest, 512)).constants["INT64"]
    assert meta_call(BottleneckSpec(replace(largest, h=2049), 512)).constants["INT64"]


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (0, lambda x: x.float(), r"x is .*float32.*: expected \[2, 20, 5, 4\] of torch.float16"),
        (1, lambda w: w[:, :-1], r"packed weight is \[24, 179\].*expected \[24, 180\]"),
        (3, lambda w: w[:-1], r"expand is \[39, 24\].*expected \[40, 24\]"),
        (2, lambda b: b.half(), r"bias is .*float16.*expected \[24\] of torch.float32"),
        (5, lambda r: r.contiguous(), r"residual .* has strides .*channels-last"),
        (6, lambda _: torch.zeros(40, 33), r"shortcut is \[40, 33\].*the spec has none; pass None"),
        (7, lambda _: None, r"next_weight is None: the spec says \[24, 40\]"),
        (10, lambda _: None, r"next_out is None: the spec says \[2, 24, 5, 4\]"),
    ],
)
def test_unfit_tensors_are_refused(place: int, change: Any, message: str) -> None:
    spec = BLOCKS["next"]
    given = arguments(spec, "fp16", "cpu")
    out, next_out = (random_images(2, k, 5, 4, precision="fp16") for k in (40, 24))
    tensors = prepared(spec, given, out, next_out)
    tensors[place] = change(tensors[place])
    with pytest.raises(InputError, match=message):
        calls(tensors, spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (block(replace(PLAIN, k=300), 40), "300 filters are more than 256 and no multiple of 64"),
        (
            block(replace(PLAIN, c=512, k=512, groups=32), 40),
            "512 filters in 32 groups take 8 chunks, more than 4",
        ),
        (block(replace(PLAIN, r=33, h=40), 40), "a filter of 33x3 pixels is larger than 32"),
        (
            BottleneckSpec(PLAIN, 40, ConvSpec(2, 8, 9, 9, 40, 1, 1)),
            r"the shortcut's output \[2, 40, 9, 9\] is not the block's, \[2, 40, 5, 4\]",
        ),
        (
            BottleneckSpec(PLAIN, 40, ConvSpec(2, 8, 7, 6, 40, 3, 3)),
            "the shortcut is not a plain 1x1 convolution",
        ),
    ],
)
def test_unfit_blocks_are_refused(spec: BottleneckSpec, message: str) -> None:
    reason = configs.supports(spec)
    assert reason is not None and re.fullmatch(message, reason)
    given = arguments(BLOCKS["plain"], "fp16", "cpu")
    tensors = prepared(BLOCKS["plain"], given, given[5], None)
    with pytest.raises(OptionError, match=f"{message}; run its convolutions one by one"):
        calls(tensors, spec)


def test_the_function_refuses_such_blocks_too() -> None:
    with pytest.raises(OptionError, match="300 filters"):
        bottleneck(*arguments(block(replace(PLAIN, k=300, n=1), 40), "fp16", "cpu"))
    wide = block(ConvSpec(1, 4, 1, 1, 1024, 1, 1), 16)
    with pytest.raises(OptionError, match="too wide for one kernel on a100"):
        bottleneck(*arguments(wide, "fp32", "cpu"))
    given = arguments(BLOCKS["plain"], "fp16", "cpu")
    flat: list[Any] = [given[0][0], *given[1:]]
    with pytest.raises(InputError, match="x has 3 axes: expected four"):
        bottleneck(*flat)
    with pytest.raises(OptionError, match="precision='fp8': expected one of fp32"):
        bottleneck(*given, config=SMALL, precision="fp8")
