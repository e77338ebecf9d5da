"""From a lowered subgraph to a plan: borders, buffers, phases, tables, the library's structures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from fastres.dtypes import BY_DTYPE
from fastres.kernels.quantized import ratio
from fastres.kernels.spec import ConvSpec
from fastres.runtime.native import schedule
from fastres.runtime.native.abi import (
    INPUT,
    ISAS,
    KINDS,
    OUTPUT,
    COp,
    CTensor,
)
from fastres.runtime.native.border import RUN
from fastres.runtime.native.convolution_structures import Convolutions, has_runs
from fastres.runtime.native.elementwise_structures import (
    copies,
    fill_map,
    fill_sources,
    fill_taps,
    fill_vectors,
    fill_window,
)
from fastres.runtime.native.layout import LINE, Layout
from fastres.runtime.native.memory_planner import MemoryPlanner
from fastres.runtime.native.operations import LoweredSubgraph, Op, Rescaling, Value
from fastres.runtime.native.packed_weights import PackedWeights
from fastres.runtime.native.plan import Phase, Plan
from fastres.runtime.native.release import releases
from fastres.runtime.native.tables import Tables
from fastres.runtime.native.winograd_errors import has_outlying_tap, is_cut_off


def uses_winograd(op: Op, isa: str) -> bool:
    """Whether a convolution runs as Winograd's F(2x2, 3x3)."""
    conv = op.conv
    assert conv is not None and op.input is not None
    return (
        isa in ("avx512", "avx512_bf16", "neon", "neon_bf16")
        and op.lattice is None  # it writes whole tiles
        and (conv.r, conv.s) == (3, 3)
        and conv.stride == conv.dilation == (1, 1)
        and conv.groups == 1
        and not op.input.layout.small
        and conv.c >= 32
        and conv.k >= 32
        and conv.padding == (1, 1, 1, 1)
        and schedule.winograd_pays(conv, op.input.layout.dtype.itemsize)
        and not is_cut_off(op.node)
        and not (op.weight is not None and has_outlying_tap(op.weight[1]))
    )


class PlanBuilder:
    """Makes the plan of a subgraph for a number of images and threads.

    Args:
        threads: that work on it together.
        isa: the instruction set, or one for each dtype.
        sharing: plans that run side by side.
        guarded: fence every buffer with pages that nobody may touch, for tests.
    """

    def __init__(
        self,
        lowered: LoweredSubgraph,
        images: int,
        threads: int,
        isa: str | Mapping[torch.dtype, str],
        packed: PackedWeights,
        sharing: int = 1,
        guarded: bool = False,
    ) -> None:
        self.images, self.threads = images, threads
        self.isas = dict.fromkeys(lowered.dtypes, isa) if isinstance(isa, str) else dict(isa)
        self.packed = packed
        self.caches = schedule.caches(sharing)
        self.operations = [replace(op) for op in lowered.ops]
        slack = max(_beyond(op) if has_runs(self._isa(op)) else 0 for op in self.operations)
        self.arena = MemoryPlanner(images, slack, guarded)
        self.output_dtypes = lowered.output_dtypes
        self.kept: list[Any] = []
        self._tables = Tables(self.kept)
        self._rows = self._merge_exports()
        self.kinds = [
            "winograd" if op.kind == "convolution" and uses_winograd(op, self._isa(op)) else op.kind
            for op in self.operations
        ]
        self.layouts = self._bordered()
        self._convolutions = Convolutions(
            self.layouts, packed, self._tables, self.arena, threads, self.caches
        )

    def _isa(self, op: Op) -> str:
        """By the numbers that it reads, or of what comes in the numbers that it writes."""
        return self.isas[_dtype(op)]

    def plan(self) -> Plan:
        """The plan."""
        phases = self._phases()
        self.arena.allocate(phases, self.operations, self.layouts)
        structures = [self._structure(i, phase) for phase in phases for i in phase.ops]
        arena = self.arena
        released, live = releases(arena.buffers, phases, self.operations, arena.places, self.images)
        rest = max(arena.end, LINE) - sum(each.bytes for each in released)
        isas = ", ".join(dict.fromkeys(self.isas.values()))
        return Plan(
            self.images, isas, self.caches, self.operations, self.kinds, self.layouts,
            (COp * len(structures))(*structures), phases, arena.buffers,
            max(arena.end, LINE), arena.guards, self.kept, released, rest + live,
        )  # fmt: skip

    # A matrix product whose float32 result leaves the subgraph writes it where the caller wants it.
    def _merge_exports(self) -> set[int]:
        rows: set[int] = set()
        merged: list[Op] = []
        for op in self.operations:
            source = op.input
            if op.kind == "convolution" and op.output is None:
                rows.add(len(merged))
            if op.kind == "export" and source is not None and op.rescaling is None:
                makers = [i for i, other in enumerate(merged) if other.output is source]
                readers = [other for other in self.operations if source in other.reads]
                maker = merged[makers[0]] if makers else None
                fits = (
                    maker is not None
                    and maker.kind == "convolution"
                    and maker.residual is None
                    and source.whole is None
                    and not uses_winograd(maker, self._isa(maker))  # it stores whole lines
                    and source.layout.height * source.layout.width == 1
                    and readers == [op]
                    and self.output_dtypes[op.outside] == torch.float32
                )
                if fits and maker is not None:
                    merged[makers[0]] = replace(maker, output=None, outside=op.outside)
                    rows.add(makers[0])
                    continue
            merged.append(op)
        self.operations = merged
        return rows

    def _bordered(self) -> dict[Value, Layout]:
        borders: dict[Value, list[tuple[int, int, int, int]]] = {}
        layouts: dict[Value, Layout] = {}
        for op, kind in zip(self.operations, self.kinds, strict=True):
            for value in (*op.reads, *(() if op.output is None else (op.output,))):
                root, _ = value.root
                layouts[value], layouts[root] = value.layout, root.layout
            if op.conv is not None and op.input is not None:
                border = _border(op.conv, kind == "winograd")
                borders.setdefault(op.input.root[0], []).append(border)
        bordered: dict[Value, Layout] = {}
        for value, layout in layouts.items():
            root, _ = value.root
            layout = layout.bordered(borders.get(root, ()))
            if value is not root:
                layout = replace(layout, image_blocks=root.layout.blocks)
            bordered[value] = _without_needless_fill(layout)
        return bordered

    def _phases(self) -> list[Phase]:
        cuts = [0]
        pixels = None
        last_image = max(
            (i for i, op in enumerate(self.operations) if _pixels_made(op) > 1), default=0
        )
        for i, op in enumerate(self.operations):
            size = None if op.output is None else _pixels_made(op)
            if size == 1 and i < last_image:  # a gate, not where the image ends
                size = None
            if pixels is not None and size is not None and size < pixels and i:
                cuts.append(i)
            pixels = size if size is not None else pixels
        cuts.append(len(self.operations))
        phases = []
        for first, end in itertools.pairwise(cuts):
            ops = self.operations[first:end]
            loads = [self._load(op) for op in ops]
            live = max(self._live(op) for op in ops)
            phases.append(
                Phase(first, end, schedule.images_at_once(loads, live, self.images, self.caches))
            )
        return _joined(phases)

    def _load(self, op: Op) -> schedule.Load:
        weight = 0 if op.weight is None else op.weight[1].numel() * op.weight[1].element_size()
        return schedule.Load(weight, self._live(op))

    def _live(self, op: Op) -> int:
        values = op.reads if op.output is None else (*op.reads, op.output)
        return sum(self.layouts[root].image for root in {value.root[0] for value in values})

    def _structure(self, index: int, phase: Phase) -> COp:
        op, kind = self.operations[index], self.kinds[index]
        out = COp()
        out.kind = KINDS.index(kind)
        out.isa = ISAS.index(self._isa(op))
        out.dtype = BY_DTYPE[_dtype(op)].native_code
        out.images = phase.images
        for name, value in (("input", op.input), ("output", op.output), ("residual", op.residual)):
            if value is not None:
                setattr(out, name, self._tensor(value))
        out.has_residual = op.residual is not None
        out.before, out.after = op.before.structure(), op.after.structure()
        fill_vectors(out, op, self.packed, self.kept)
        out.tile, out.group, out.chunk_panels = 1, 1, 1
        if op.rescaling is not None:
            _rescale(out, op.rescaling)
        if kind in ("convolution", "winograd"):
            self._convolutions.fill(
                out, op, kind, self._isa(op), phase.images, rows=index in self._rows
            )
        elif kind == "map" and op.rescaling is None:
            fill_map(out, op, self._tensor)
        elif kind in ("import", "export"):
            self._outside(out, op)
        elif kind == "channel_convolution":
            fill_taps(out, op, self.packed, self.kept)
        out.epsilon = op.epsilon
        if op.groups:
            out.groups = op.groups
            assert op.output is not None
            out.scratch_bytes = 2 * math.ceil(op.output.layout.channels / 16) * LINE
            out.scratch_offset = self.arena.reserve(out.scratch_bytes * self.threads)
        if op.window is not None:
            fill_window(out, op.window)
        if op.copies and op.input is not None and op.output is not None:
            source, target = self.layouts[op.input], self.layouts[op.output]
            key = ("copies", op.copies, source, target)
            table = copies(op.copies, source, target)
            out.copies, out.copy_count = self._tables.keep(key, lambda: table), table.size // 3
        if op.sources is not None:
            fill_sources(out, op.sources, self._tables)
        return out

    def _tensor(self, value: Value) -> CTensor:
        layout = self.layouts[value]
        return layout.tensor(*self.arena.place(value, layout))

    def _outside(self, out: COp, op: Op) -> None:
        """The caller's side of an import or export; its address and strides come with each call."""
        side = CTensor(space=INPUT if op.kind == "import" else OUTPUT, index=op.outside, whole=1)
        inside = op.output if op.kind == "import" else op.input
        assert inside is not None
        side.channels, side.height, side.width = (
            inside.layout.channels, inside.layout.height, inside.layout.width,
        )  # fmt: skip
        setattr(out, "input" if op.kind == "import" else "output", side)
        out.small = self.layouts[inside].small


def _joined(phases: Sequence[Phase]) -> list[Phase]:
    """Neighbours that run for as many images at a time, as one."""
    joined: list[Phase] = []
    for phase in phases:
        if joined and joined[-1].images == phase.images:
            joined[-1] = Phase(joined[-1].first, phase.end, phase.images)
        else:
            joined.append(phase)
    return joined


def _beyond(op: Op) -> int:
    """Bytes behind its image that an operation of AMX reads: a run of pixels less one."""
    if op.conv is None or op.input is None:
        return 0
    return RUN * op.conv.stride[1] * op.input.layout.pixel


def _border(conv: ConvSpec, winograd: bool) -> tuple[int, int, int, int]:
    """Zeros around an image so that every tap of every output pixel is inside."""
    top, left, _, _ = conv.padding
    if winograd:  # whole tiles of 2x2 outputs
        rows, columns = 2 * math.ceil(conv.p / 2), 2 * math.ceil(conv.q / 2)
    else:
        rows, columns = conv.p, conv.q
    bottom = (rows - 1) * conv.stride[0] + conv.dilation[0] * (conv.r - 1) - top - (conv.h - 1)
    right = (columns - 1) * conv.stride[1] + conv.dilation[1] * (conv.s - 1) - left - (conv.w - 1)
    return top, left, max(bottom, 0), max(right, 0)


def _dtype(op: Op) -> torch.dtype:
    """Of the numbers that an operation computes with."""
    some = op.input or op.output
    assert some is not None
    return some.layout.dtype


def _pixels_made(op: Op) -> int:
    return 0 if op.output is None else op.output.layout.height * op.output.layout.width


def _rescale(out: COp, rescaling: Rescaling) -> None:
    """The numbers of a quantised operation but a convolution's multipliers."""
    out.input_zero = rescaling.x_zero
    out.residual_zero = rescaling.residual_zero
    out.output_zero = rescaling.zero
    out.input_multiplier = ratio(rescaling.x_scale, rescaling.unit)
    out.residual_multiplier = ratio(rescaling.residual_scale, rescaling.unit)
    out.output_multiplier = ratio(rescaling.unit, rescaling.scale)
    out.outside_scale = rescaling.scale
    if KINDS[out.kind] == "export":
        out.input_zero = rescaling.zero


def _without_needless_fill(layout: Layout) -> Layout:
    """Layouts without a border are alike whatever would be in it, and share buffers."""
    return layout if any(layout.border) else replace(layout, fill=0)
