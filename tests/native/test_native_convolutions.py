"""Each convolution that the native engine plans, against float64, on every instruction set."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from fastres.kernels.activations import ACTIVATIONS
from fastres.kernels.spec import ConvSpec
from fastres.runtime.native import schedule
from fastres.runtime.native.library import Library
from fastres.runtime.native.plan_builder import uses_winograd
from fastres.runtime.native.subgraph import NativeSubgraph
from fastres.runtime.nonfinite import NonFinite
from tests.support.native.by_hand import Convolution, arguments_of, check, each_set, needs, subgraph
from tests.support.native.emulator import tile_instructions
from tests.support.oracle import PRECISIONS, assert_as_accurate

AROUND = (1, 1, 1, 1)

SHAPES = {
    "one pixel": ConvSpec(1, 16, 1, 1, 5, 1, 1),
    "one pixel under 3x3": ConvSpec(2, 33, 1, 1, 16, 3, 3, padding=AROUND),
    "one pixel out of many": ConvSpec(3, 20, 5, 4, 7, 5, 4),
    "one channel": ConvSpec(2, 1, 6, 5, 3, 3, 3, padding=AROUND),
    "one channel, one filter": ConvSpec(2, 1, 6, 5, 1, 3, 3, padding=AROUND),
    "one channel, 1x1": ConvSpec(2, 1, 6, 5, 40, 1, 1),
    "one filter": ConvSpec(2, 48, 3, 5, 1, 3, 3, padding=AROUND),
    "17 filters": ConvSpec(3, 24, 3, 5, 17, 1, 1),
    "33 filters": ConvSpec(2, 40, 5, 7, 33, 3, 2, padding=AROUND),
    "1000 filters": ConvSpec(3, 48, 1, 1, 1000, 1, 1),
    "channels in whole blocks": ConvSpec(2, 64, 4, 4, 64, 1, 1),
    "three channels, 7x7, stride 2": ConvSpec(1, 3, 11, 9, 64, 7, 7, (2, 2), (3, 3, 3, 3)),
    "three channels, 3x3, stride 2": ConvSpec(2, 3, 9, 8, 32, 3, 3, (2, 2), AROUND),
    "four channels, 17x17 filter": ConvSpec(1, 4, 18, 19, 20, 17, 17),
    "five channels, 7x7, stride 2": ConvSpec(2, 5, 9, 11, 20, 7, 7, (2, 2), (3, 3, 3, 3)),
    "eight channels, 7x7": ConvSpec(1, 8, 8, 9, 33, 7, 7, padding=(3, 3, 3, 3)),
    "three channels, 11x11, stride 4": ConvSpec(1, 3, 19, 23, 20, 11, 11, (4, 4), (2, 2, 2, 2)),
    "eight channels, 5x5": ConvSpec(1, 8, 6, 7, 20, 5, 5, padding=(2, 2, 2, 2)),
    "patches": ConvSpec(2, 3, 32, 48, 20, 16, 16, (16, 16)),
    "patches of many channels": ConvSpec(1, 40, 2, 96, 20, 2, 32, (2, 32)),
    "one channel, rows of 37": ConvSpec(1, 1, 3, 40, 20, 3, 37, padding=(1, 2, 1, 2)),
    "four channels": ConvSpec(2, 4, 9, 8, 20, 5, 5, padding=(2, 2, 2, 2)),
    "eight channels, stride 3": ConvSpec(2, 8, 9, 10, 20, 3, 3, (3, 3), AROUND),
    "nine channels": ConvSpec(2, 9, 6, 7, 20, 3, 3, padding=AROUND),
    "few channels, no row's run": ConvSpec(1, 5, 9, 9, 20, 3, 3, dilation=(2, 2)),
    "few channels, dilated rows": ConvSpec(1, 5, 9, 9, 20, 3, 3, dilation=(2, 1)),
    "few channels, rows of 1": ConvSpec(1, 3, 9, 4, 20, 5, 1, padding=(2, 0, 2, 0)),
    "flat": ConvSpec(1, 24, 4, 9, 12, 1, 7, padding=(0, 3, 0, 3)),
    "tall": ConvSpec(1, 24, 9, 4, 12, 7, 1, padding=(3, 0, 3, 0)),
    "2x2": ConvSpec(2, 24, 6, 5, 12, 2, 2, (2, 2)),
    "5x5": ConvSpec(1, 24, 6, 5, 12, 5, 5, padding=(2, 2, 2, 2)),
    "7x7": ConvSpec(1, 40, 6, 5, 12, 7, 7, (2, 2), (3, 3, 3, 3)),
    "pointwise, stride 2": ConvSpec(2, 32, 5, 7, 24, 1, 1, (2, 2)),
    "strides of two sizes": ConvSpec(2, 32, 7, 10, 24, 3, 3, (2, 3), AROUND),
    "stride larger than filter": ConvSpec(2, 16, 9, 8, 8, 2, 1, (4, 3)),
    "SAME, stride 2": ConvSpec(2, 16, 4, 6, 8, 3, 3, (2, 2), (0, 0, 1, 1)),
    "SAME of few channels": ConvSpec(2, 3, 8, 6, 8, 7, 7, (2, 2), (2, 2, 3, 3)),
    "padding of four sizes": ConvSpec(1, 16, 4, 5, 8, 3, 3, padding=(0, 2, 3, 1)),
    "padding wider than the filter": ConvSpec(1, 16, 2, 2, 8, 2, 2, padding=(3, 4, 2, 3)),
    "padding that no filter reaches": ConvSpec(1, 16, 5, 5, 8, 2, 2, (3, 3), (0, 0, 1, 1)),
    "dilation": ConvSpec(1, 16, 7, 8, 8, 3, 2, padding=(2, 1, 2, 3), dilation=(2, 3)),
    "dilation and stride": ConvSpec(2, 40, 7, 8, 8, 3, 3, (2, 1), (2, 3, 2, 3), (2, 3)),
    "dilation 2, as kept sizes have it": ConvSpec(
        1, 32, 7, 8, 32, 3, 3, padding=(2, 2, 2, 2), dilation=(2, 2)
    ),
    "ResNeXt 32x4d": ConvSpec(1, 128, 3, 3, 128, 3, 3, padding=AROUND, groups=32),
    "ResNeXt 32x8d, stride 2": ConvSpec(1, 256, 5, 4, 256, 3, 3, (2, 2), AROUND, groups=32),
    "groups of 5": ConvSpec(2, 15, 4, 3, 24, 3, 3, padding=AROUND, groups=3),
    "groups of 6 and 7": ConvSpec(1, 66, 4, 3, 77, 1, 1, groups=11),
    "groups of 24": ConvSpec(1, 72, 3, 3, 36, 1, 1, groups=3),
    "groups larger than a panel": ConvSpec(1, 80, 3, 4, 90, 3, 3, padding=AROUND, groups=2),
    "depthwise": ConvSpec(2, 72, 6, 7, 72, 3, 3, padding=AROUND, groups=72),
    "depthwise, 5x5, stride 2": ConvSpec(1, 40, 9, 10, 40, 5, 5, (2, 2), (2, 2, 2, 2), groups=40),
    "depthwise, 7x7, dilated": ConvSpec(
        1, 33, 9, 15, 33, 7, 7, (1, 2), (6, 3, 4, 5), (2, 1), groups=33
    ),
    "depthwise, more taps than a sum has": ConvSpec(
        1, 49, 18, 17, 49, 17, 17, padding=(8, 8, 8, 8), groups=49
    ),
    "depthwise, one tap": ConvSpec(2, 20, 4, 5, 20, 1, 1, groups=20),
    "depthwise, one pixel": ConvSpec(3, 100, 1, 1, 100, 1, 1, groups=100),
    "depthwise of two channels": ConvSpec(1, 2, 5, 6, 2, 3, 2, padding=AROUND, groups=2),
    "three filters a channel": ConvSpec(1, 30, 5, 6, 90, 3, 3, padding=AROUND, groups=30),
    "40 filters a channel": ConvSpec(1, 3, 5, 6, 120, 3, 3, padding=AROUND, groups=3),
    "two channels a group": ConvSpec(2, 70, 5, 4, 70, 3, 3, (2, 1), AROUND, groups=35),
    "three channels a group": ConvSpec(1, 99, 5, 4, 132, 3, 2, padding=AROUND, groups=33),
    "five channels a group, one filter": ConvSpec(1, 165, 4, 3, 33, 3, 3, groups=33),
    "groups that no line begins with": ConvSpec(1, 84, 4, 5, 84, 3, 3, padding=AROUND, groups=7),
    "groups of 4, 9x9": ConvSpec(1, 16, 9, 10, 16, 9, 9, padding=(4, 4, 4, 4), groups=4),
    "RegNet, groups of 16": ConvSpec(1, 96, 5, 5, 96, 3, 3, (2, 2), AROUND, groups=6),
    "groups of few channels": ConvSpec(1, 8, 5, 5, 10, 3, 3, padding=AROUND, groups=2),
}

WINOGRAD = {
    f"{h}x{w}, {c} -> {k}, batch {n}": ConvSpec(n, c, h, w, k, 3, 3, padding=AROUND)
    for n, c, h, w, k in [
        *((1, 32, 1, 1, 32), (2, 32, 1, 6, 33), (1, 40, 7, 1, 48), (3, 33, 2, 2, 40)),
        *((2, 64, 7, 7, 64), (1, 47, 8, 9, 65), (5, 32, 5, 4, 96), (1, 128, 14, 14, 32)),
    ]
}


@each_set
@pytest.mark.parametrize("spec", SHAPES.values(), ids=SHAPES)
def test_answers(spec: ConvSpec, precision: str, isa: str) -> None:
    check(spec, precision, isa)
    check(spec, precision, isa, residual=True, after="relu", guarded=True)


def test_which_form_groups_take() -> None:
    """The one that multiplies least: dense panels only where there are few zeros in them."""
    for per_group, form in ((1, "depthwise"), (2, "grouped"), (8, "grouped"), (16, "grouped")):
        for unit, isa in ((1, "avx2"), (1, "avx512"), (2, "amx_bf16"), (4, "avx512_vnni")):
            spec = ConvSpec(1, 128, 9, 9, 128, 3, 3, padding=AROUND, groups=128 // per_group)
            assert schedule.form(spec, unit, isa) == form
    for groups in (1, 2, 4):
        spec = ConvSpec(1, 128, 9, 9, 128, 3, 3, padding=AROUND, groups=groups)
        assert schedule.form(spec, 2, "avx512_bf16") == "panels"
    assert schedule.form(ConvSpec(1, 8, 9, 9, 16, 3, 3, groups=8), 1, "avx2") == "grouped"


@each_set
@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "none"])
@pytest.mark.parametrize("k", [32, 40])
def test_activations_of_groups(precision: str, isa: str, activation: str, k: int) -> None:
    for groups in (k, k // 4):
        spec = ConvSpec(1, k, 3, 4, k, 3, 3, padding=AROUND, groups=groups)
        check(spec, precision, isa, after=activation, weight_scale=4.0)
        check(
            spec, precision, isa, residual=True, before=activation, after="relu", weight_scale=4.0
        )


@each_set
@pytest.mark.parametrize("spec", WINOGRAD.values(), ids=WINOGRAD)
def test_small_filters_of_many_channels(spec: ConvSpec, precision: str, isa: str) -> None:
    """Winograd's where it fits and pays, and where it does not pay."""
    for pays in (schedule.winograd_pays, always):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(schedule, "winograd_pays", pays)
            check(spec, precision, isa)
            check(spec, precision, isa, residual=True, after="relu", bias=False)
            check(spec, precision, isa, residual=True, before="relu6", threads=3)


@pytest.mark.parametrize("spec", SHAPES.values(), ids=SHAPES)
def test_answers_of_tile_registers(spec: ConvSpec) -> None:
    """On processors without them, too; what is read stays in front of each buffer's fence."""
    with tile_instructions(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Library, "isas", frozenset({"amx_bf16"}))
        check(spec, "bf16", "amx_bf16", guarded=True)
        check(spec, "bf16", "amx_bf16", residual=True, after="relu", guarded=True)


@pytest.mark.parametrize(
    ("precision", "isa", "c"), [("fp32", "avx512", 16400), ("bf16", "avx512_bf16", 32800)]
)
def test_very_many_channels(
    precision: str, isa: str, c: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "winograd_pays", always)
    check(ConvSpec(1, c, 2, 3, 32, 3, 3, padding=AROUND), precision, isa, threads=2, guarded=True)


def always(_: ConvSpec, itemsize: int) -> bool:
    """For ``winograd_pays``: wherever it fits."""
    return True


def test_where_winograd_is_used() -> None:
    """Where it can be and pays; in large convolutions it does."""
    needs("avx512")
    large = ConvSpec(1, 64, 56, 56, 64, 3, 3, padding=AROUND)
    for spec in (*SHAPES.values(), *WINOGRAD.values(), large):
        given = arguments_of(spec, False)
        model = Convolution(spec)
        made = subgraph(model, model.graph(False), given, "avx512")
        (op,) = [op for op in made.lowered.ops if op.kind == "convolution"]
        fits = spec in WINOGRAD.values() or spec is large
        assert uses_winograd(op, "avx512") == (fits and schedule.winograd_pays(spec, 4)), spec
    assert schedule.winograd_pays(large, 4)


@each_set
@pytest.mark.parametrize("batch", range(1, 8))
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_batches_and_threads(precision: str, isa: str, batch: int, threads: int) -> None:
    """Images of their own for each thread, and the rest together; more threads than processors."""
    grouped = ConvSpec(batch, 40, 3, 5, 50, 3, 3, padding=AROUND, groups=5)
    for spec in (ConvSpec(batch, 40, 3, 5, 40, 3, 3, padding=AROUND), grouped):
        check(spec, precision, isa, threads, residual=True, after="relu")


@pytest.mark.sampled(3)
@each_set
@pytest.mark.parametrize(
    ("before", "after", "residual"), [*itertools.product(ACTIVATIONS, ACTIVATIONS, [False, True])]
)
def test_activations(precision: str, isa: str, before: str, after: str, residual: bool) -> None:
    """On sums that reach beyond where they bend; of whole panels and of a part."""
    for k in (32, 40):
        for spec in (ConvSpec(1, 33, 3, 4, k, 3, 3, padding=AROUND), ConvSpec(1, 9, 3, 4, k, 1, 1)):
            check(
                spec, precision, isa, residual=residual, before=before, after=after,
                weight_scale=4.0,
            )  # fmt: skip


@each_set
@pytest.mark.parametrize("few", [True, False], ids=["few channels", "many channels"])
@pytest.mark.parametrize("threads", [1, 2])
def test_tensors_of_any_strides(precision: str, isa: str, few: bool, threads: int) -> None:
    spec = ConvSpec(3, 3 if few else 40, 5, 4, 20, 3, 3, padding=AROUND)
    for change in LAYOUTS.values():
        check(spec, precision, isa, threads, residual=True, change=change)


LAYOUTS: dict[str, Any] = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: x.new_full([2 * size for size in x.shape], torch.nan)[
        ::2, 1::2, ::2, 1::2
    ].copy_(x),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "batch last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "part of more images": lambda x: torch.cat([x, x, x])[len(x) : 2 * len(x)],
    "part of more channels": lambda x: torch.cat([x, x], 1)[:, x.shape[1] :],
}


@each_set
@pytest.mark.parametrize("threads", [1, 2])
def test_expanded_tensors(precision: str, isa: str, threads: int) -> None:
    """Steps of 0 from one image, channel, row or column to the next."""
    needs(isa)
    spec = ConvSpec(3, 40, 5, 4, 20, 3, 3, padding=AROUND)
    dtype = PRECISIONS[precision]
    model = Convolution(spec)
    for dims in ((0,), (1,), (2, 3), (0, 1, 2, 3)):
        x = torch.randn([1 if i in dims else size for i, size in enumerate((3, 40, 5, 4))])
        x = x.to(dtype).expand(3, 40, 5, 4)
        native = subgraph(model.to(dtype), model.graph(False), [x], isa, threads)
        assert_as_accurate(
            model.float(), lambda _, x=x, f=native: f(x), x.float(), precision=precision
        )


@each_set
@pytest.mark.parametrize("channels", [3, 40])
def test_inputs_of_the_other_dtype(precision: str, isa: str, channels: int) -> None:
    """They are rounded on their way in, as ``x.to(dtype)`` does."""
    needs(isa)
    dtype = PRECISIONS[precision]
    (other,) = {torch.float32, torch.bfloat16} - {dtype}
    model = Convolution(ConvSpec(2, channels, 5, 4, 20, 3, 3, padding=AROUND)).to(dtype)
    given = torch.randn(2, channels, 5, 4).to(other)
    cast = given.to(dtype)
    same, both = (
        subgraph(model, model.graph(False), [cast], isa, sources=[kind]) for kind in (dtype, other)
    )
    assert torch.equal(both(given), same(cast))


def one_channel(
    precision: str, isa: str, sources: list[torch.dtype] | None = None
) -> NativeSubgraph:
    """A subgraph that takes channel 7 of 40 as it is."""
    needs(isa)
    model = Convolution(ConvSpec(2, 40, 2, 3, 32, 1, 1), bias=False)
    weight = model.get_buffer("weight")
    weight.zero_()
    weight[0, 7] = 1.0
    dtype = PRECISIONS[precision]
    like = torch.zeros(2, 40, 2, 3, dtype=dtype)
    return subgraph(model.to(dtype), model.graph(False), [like], isa, sources=sources)


@pytest.mark.parametrize("bits", [0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x5F7E8000])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_numbers_on_their_way_to_bfloat16(bits: int, sign: float) -> None:
    """To the nearest, halves to even."""
    native = one_channel("bf16", "avx512_bf16", [torch.float32])
    x = torch.zeros(2, 40, 2, 3)
    x[1, 7, 1, 2] = sign * torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    assert torch.equal(native(x)[1, 0, 1, 2], x.bfloat16()[1, 7, 1, 2])


@each_set
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 2.0**64, -(2.0**64)])
def test_what_is_not_ordinary_is_given_up(precision: str, isa: str, value: float) -> None:
    """Wherever it lies in the input, and whatever dtype the caller's tensor has."""
    for source in (torch.float32, torch.bfloat16):
        native = one_channel(precision, isa, [source])
        x = torch.zeros(2, 40, 2, 3, dtype=source)
        x[1, 0, 0, 0] = 0.99 * 2.0**64
        native(x)
        for place in ((0, 0, 0, 0), (1, 39, 1, 2), (0, 17, 1, 0), (1, 7, 0, 1)):
            wrong = x.clone()
            wrong[place] = value
            with pytest.raises(NonFinite):
                native(wrong)


@each_set
@pytest.mark.parametrize("rows", [False, True])
def test_what_has_become_huge_is_given_up(precision: str, isa: str, rows: bool) -> None:
    """In any of the results, images or rows, from numbers that were ordinary."""
    needs(isa)
    size = (1, 1) if rows else (2, 3)
    dtype = PRECISIONS[precision]
    for k, channel in ((40, 0), (40, 39), (32, 31), (17, 16)):
        model = Convolution(ConvSpec(2, 40, *size, k, 1, 1))
        model.get_buffer("weight")[channel] = 2.0**10
        x = torch.ones(2, 40, *size, dtype=dtype)
        native = subgraph(model.to(dtype), model.graph(False), [x], isa)
        native(x)
        x[1, :, -1, -1] = 2.0**60
        with pytest.raises(NonFinite):
            native(x)
