"""From a lowered subgraph to a plan: borders, buffers, phases, tables, the library's structures."""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastres.dtypes import BY_DTYPE
from fastres.errors import OutOfMemory
from fastres.kernels.spec import ConvSpec
from fastres.runtime.native import schedule
from fastres.runtime.native.abi import (
    ACTIVATIONS,
    INPUT,
    ISAS,
    KINDS,
    OUTPUT,
    COp,
    CTensor,
)
from fastres.runtime.native.border import RUN, for_images, pixel_offsets, runs
from fastres.runtime.native.layout import LINE, Layout
from fastres.runtime.native.lower import LoweredSubgraph, Op, Value
from fastres.runtime.native.memory_planner import PAGE, MemoryPlanner
from fastres.runtime.native.pack import panels, parts
from fastres.runtime.native.packed_weights import PackedWeights
from fastres.runtime.native.plan import Phase, Plan
from fastres.runtime.native.release import releases
from fastres.runtime.native.winograd_errors import has_outlying_tap, is_cut_off


def uses_winograd(op: Op, isa: str) -> bool:
    """Whether a convolution runs as Winograd's F(2x2, 3x3)."""
    conv = op.conv
    assert conv is not None and op.input is not None
    return (
        isa in ("avx512", "avx512_bf16")
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
        sharing: plans that run side by side.
        guarded: fence every buffer with pages that nobody may touch, for tests.
    """

    def __init__(
        self,
        lowered: LoweredSubgraph,
        images: int,
        threads: int,
        isa: str,
        packed: PackedWeights,
        sharing: int = 1,
        guarded: bool = False,
    ) -> None:
        self.images, self.threads, self.isa = images, threads, isa
        self.packed = packed
        self.caches = schedule.caches(sharing)
        self.operations = [replace(op) for op in lowered.ops]
        slack = max(map(_beyond, self.operations)) if isa == "amx_bf16" else 0
        self.arena = MemoryPlanner(images, slack, guarded)
        self.output_dtypes = lowered.output_dtypes
        self.kept: list[Any] = []
        self._tables: dict[Any, npt.NDArray[np.int32]] = {}
        self._made: dict[Any, Any] = {}
        self._rows = self._merge_exports()
        self.kinds = [
            "winograd" if op.kind == "convolution" and uses_winograd(op, isa) else op.kind
            for op in self.operations
        ]
        self.layouts = self._bordered()

    def plan(self) -> Plan:
        """The plan."""
        phases = self._phases()
        self.arena.allocate(phases, self.operations, self.layouts)
        structures = [self._structure(i, phase) for phase in phases for i in phase.ops]
        arena = self.arena
        released, live = releases(arena.buffers, phases, self.operations, arena.places, self.images)
        rest = max(arena.end, LINE) - sum(each.bytes for each in released)
        return Plan(
            self.images, self.isa, self.caches, self.operations, self.kinds, self.layouts,
            (COp * len(structures))(*structures), phases, arena.buffers,
            max(arena.end, LINE), arena.guards, self.kept, released, rest + live,
        )  # fmt: skip

    # A matrix product whose float32 result leaves the subgraph writes it where the caller wants it.
    def _merge_exports(self) -> set[int]:
        rows: set[int] = set()
        merged: list[Op] = []
        for op in self.operations:
            source = op.input
            if op.kind == "export" and source is not None:
                makers = [i for i, other in enumerate(merged) if other.output is source]
                readers = [
                    other for other in self.operations if source in (other.input, other.residual)
                ]
                maker = merged[makers[0]] if makers else None
                fits = (
                    maker is not None
                    and maker.kind == "convolution"
                    and maker.residual is None
                    and not uses_winograd(maker, self.isa)  # it stores whole lines
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
            for value in (op.input, op.output, op.residual):
                if value is not None:
                    layouts[value] = value.layout
            if op.conv is not None and op.input is not None:
                borders.setdefault(op.input, []).append(_border(op.conv, kind == "winograd"))
        return {value: layout.bordered(borders.get(value, ())) for value, layout in layouts.items()}

    def _phases(self) -> list[Phase]:
        cuts = [0]
        pixels = None
        for i, op in enumerate(self.operations):
            size = None if op.output is None else op.output.layout.height * op.output.layout.width
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
        values = {v for v in (op.input, op.output, op.residual) if v is not None}
        return sum(self.layouts[value].image for value in values)

    def _structure(self, index: int, phase: Phase) -> COp:
        op, kind = self.operations[index], self.kinds[index]
        some = op.output or op.input
        assert some is not None
        out = COp()
        out.kind = KINDS.index(kind)
        out.isa = ISAS.index(self.isa)
        out.dtype = BY_DTYPE[some.layout.dtype].native_code
        out.images = phase.images
        for name, value in (("input", op.input), ("output", op.output), ("residual", op.residual)):
            if value is not None:
                setattr(out, name, self._tensor(value))
        out.has_residual = op.residual is not None
        out.before, out.after = ACTIVATIONS[op.before], ACTIVATIONS[op.after]
        out.tile, out.group, out.chunk_panels = 1, 1, 1
        if kind in ("convolution", "winograd"):
            self._convolution(out, op, kind, index, phase)
        elif kind == "max_pool":
            assert op.window is not None
            for name, pair in zip(
                ("kernel", "stride", "padding", "dilation"), op.window, strict=True
            ):
                setattr(out, name, (ctypes.c_int32 * 2)(*pair))
        elif kind in ("import", "export"):
            self._outside(out, op)
        return out

    def _tensor(self, value: Value) -> CTensor:
        return self.layouts[value].tensor(
            self.arena.places[value].offset, value in self.arena.whole
        )

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

    def _convolution(self, out: COp, op: Op, kind: str, index: int, phase: Phase) -> None:
        conv = op.conv
        assert conv is not None and op.input is not None and op.weight is not None
        source = self.layouts[op.input]
        form = "winograd" if kind == "winograd" else "small" if source.small else "panels"
        most = schedule.STEP_UNITS[self.isa]
        weight = self.packed.weight(*op.weight, source.dtype, form, conv.c, conv.groups, most)
        bias = self.packed.bias(op.bias, conv.k)
        self.kept += [weight.panels, bias]
        out.weights, out.bias = weight.panels.data_ptr(), bias.data_ptr()
        out.panels = panels(conv.k)
        out.panel_bytes = weight.panels.numel() * weight.panels.element_size() // out.panels
        out.tile = schedule.TILE_PIXELS[self.isa]
        if index in self._rows:
            out.rows = 1
            out.output = CTensor(
                image=conv.k * 4, space=OUTPUT, index=op.outside, whole=1, channels=conv.k,
                height=1, width=1,
            )  # fmt: skip
        if kind == "winograd":
            self._winograd(out, conv, source, phase)
            return
        self._pixels(out, op, source, phase.images)
        n = phase.images
        steps, out.step_units = _steps(source, conv, weight.blocks, most)
        out.step_count = len(steps)
        out.steps = self._keep(("steps", tuple(steps)), lambda: np.array(steps))
        if weight.firsts is not None:
            firsts = weight.firsts.numpy().astype(np.int64) * (source.plane // 4)
            out.panel_input = self._keep(("panels", tuple(firsts)), lambda: firsts)
        # Filters of more than one tap come by most lines again; those of one see each only once.
        out.read_ahead = conv.r == conv.s == 1
        tiles = math.ceil(n * out.pixels / out.tile)
        read = out.tile * (conv.stride[0] * conv.stride[1] if conv.r > 1 else 1)
        blocking = schedule.blocking(
            tiles, out.panels, read * weight.blocks * source.pixel, out.panel_bytes, self.threads,
            self.caches,
        )  # fmt: skip
        out.group, out.chunk_panels, out.prefetch = (
            blocking.group,
            blocking.chunk_panels,
            blocking.prefetch,
        )

    def _winograd(self, out: COp, conv: ConvSpec, source: Layout, phase: Phase) -> None:
        tiles = math.ceil(conv.p / 2) * math.ceil(conv.q / 2) * phase.images
        blocking = schedule.winograd_blocking(
            tiles, out.panels, source.blocks, out.panel_bytes, self.threads, self.caches
        )
        out.group, out.chunk_panels, out.prefetch = (
            blocking.group,
            blocking.chunk_panels,
            blocking.prefetch,
        )
        out.pixels, out.step_units = conv.p * conv.q, 16
        size = 16 * blocking.group * (source.blocks + 2) * LINE + 4 * source.blocks
        out.scratch_bytes = math.ceil(size / PAGE) * PAGE + 5 * LINE
        out.scratch_offset = self.arena.reserve(out.scratch_bytes * self.threads)

    def _pixels(self, out: COp, op: Op, source: Layout, images: int) -> None:
        """The tables of where output pixels read and write."""
        conv = op.conv
        assert conv is not None
        size = (conv.p, conv.q)
        if self.isa == "amx_bf16":
            rows = self._shared(("runs", source, conv), lambda: runs(source, conv))
            read, out.row_step = rows.input_px, rows.step
        else:
            rows, read = None, pixel_offsets(source, *size, conv.stride)
        out.pixels = len(read)

        def table(key: Any, image_bytes: int, one: npt.NDArray[Any]) -> int:
            return self._keep(
                (key, conv.stride, size, self.isa, source, images),
                lambda: for_images(one, image_bytes, images),
            )

        def written(layout: Layout) -> npt.NDArray[Any]:
            one = pixel_offsets(layout, *size, (1, 1))
            return one if rows is None else rows.output_px(one)

        out.input_px = table("read", source.image, read)
        if op.output is None:  # [image][channel] of float32 in the caller's memory
            out.output_px = table(("rows", conv.k), conv.k * 4, written(source))
        else:
            layout = self.layouts[op.output]
            out.output_px = table(("written", layout), layout.image, written(layout))
        if op.residual is not None:
            layout = self.layouts[op.residual]
            out.residual_px = table(("written", layout), layout.image, written(layout))

    def _shared(self, key: Any, make: Any) -> Any:
        """What ``make`` makes, once."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _keep(self, key: Any, make: Any) -> int:
        """The address of a table that lives as long as the plan; equal ones are one."""
        if key not in self._tables:
            table = make()
            if table.size and table.max() >= 2**31:
                raise OutOfMemory(
                    "one image's activations would take more than 8 GiB, which the native engine's "
                    "tables do not reach: use a smaller image, or engine='onednn'"
                )
            self._tables[key] = np.ascontiguousarray(table, dtype=np.int32)
            self.kept.append(self._tables[key])
        return int(self._tables[key].ctypes.data)


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


def _steps(source: Layout, conv: ConvSpec, blocks: int, most: int) -> tuple[list[int], int]:
    """The K-steps' offsets from an output pixel's corner, in units of 4 bytes, and their length."""
    top, left, _, _ = conv.padding
    rows = [(r * conv.dilation[0] - top) * source.row for r in range(conv.r)]
    columns = [(s * conv.dilation[1] - left) * source.pixel for s in range(conv.s)]
    if source.small:
        firsts, length = parts(conv.s * source.pixel // 4, most)
        return [(row + columns[0]) // 4 + first for row in rows for first in firsts], length
    taps = [row + column for row in rows for column in columns]
    return [(block * source.plane + tap) // 4 for block in range(blocks) for tap in taps], 16
