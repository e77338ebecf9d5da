"""What the library's structure of a convolution holds: weights, tables of pixels, how it is cut."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastres.dtypes import BY_DTYPE
from fastres.kernels.spec import ConvSpec
from fastres.runtime.native import pack_groups, schedule
from fastres.runtime.native.abi import FORMS, ISAS, OUTPUT, COp, CTensor
from fastres.runtime.native.border import for_images, pixel_offsets
from fastres.runtime.native.border import runs as runs_of
from fastres.runtime.native.layout import LINE, Layout
from fastres.runtime.native.memory_planner import PAGE, MemoryPlanner
from fastres.runtime.native.operations import Op, Value
from fastres.runtime.native.pack import PANEL, panels, parts
from fastres.runtime.native.packed_weights import PackedWeights, Panels
from fastres.runtime.native.tables import Tables


def has_runs(isa: str) -> bool:
    """Whether tiles are runs of pixels at a constant distance."""
    return isa.startswith("amx")


@dataclass
class Convolutions:
    """Fills the structures of one plan's convolutions.

    Attributes:
        threads: that work on one together.
    """

    layouts: Mapping[Value, Layout]
    packed: PackedWeights
    tables: Tables
    arena: MemoryPlanner
    threads: int
    caches: schedule.Caches

    def fill(self, out: COp, op: Op, kind: str, isa: str, images: int, rows: bool) -> None:
        """What a convolution's structure holds beside its tensors.

        Args:
            kind: ``"convolution"`` or ``"winograd"``.
            isa: of the numbers that it reads.
            images: of a sub-batch.
            rows: it writes float32 where the caller wants it.
        """
        conv = op.conv
        assert conv is not None and op.input is not None and op.weight is not None
        source = self.layouts[op.input]
        form = schedule.form(conv, BY_DTYPE[source.dtype].group, isa)
        out.form = FORMS.index(form)
        if form != "panels":
            isa = schedule.without_runs(isa)
        out.isa = ISAS.index(isa)
        units = schedule.LINE_UNITS
        widened = op.rescaling is not None and isa == "avx2"
        if form == "panels":
            if source.small:
                units = schedule.most_step_units(isa)
            elif op.rescaling is not None and conv.groups == 1:
                units = schedule.step_units(conv.c, source.lanes // schedule.LINE_UNITS)
            layout = "winograd" if kind == "winograd" else "small" if source.small else "panels"
            weight = self.packed.weight(
                *op.weight, source.dtype, layout, conv.c, conv.groups, units, widened
            )
        else:
            vector = schedule.VECTOR.get(isa, 16)
            weight = self.packed.of_groups(*op.weight, conv, form, vector, widened)
        if op.rescaling is None:
            bias = self.packed.bias(op.bias, conv.k)
        else:
            rescaling = op.rescaling
            assert op.bias is not None and rescaling.weight_scale is not None
            bias = self.packed.integer_bias(op.bias, op.weight, rescaling.x_zero, conv.k)
            multiplier = self.packed.multiplier(
                rescaling.weight_scale, rescaling.x_scale, rescaling.unit
            )
            self.tables.kept.append(multiplier)
            out.multiplier = multiplier.data_ptr()
        self.tables.kept += [weight.panels, bias]
        out.weights, out.bias = weight.panels.data_ptr(), bias.data_ptr()
        out.panels = panels(conv.k)
        out.panel_bytes = weight.panels.numel() * weight.panels.element_size() // out.panels
        out.tile = schedule.tile_pixels(isa, form, source.dtype)
        if rows:
            out.rows = 1
            out.output = CTensor(
                image=conv.k * 4, space=OUTPUT, index=op.outside, whole=1, channels=conv.k,
                height=1, width=1,
            )  # fmt: skip
        if kind == "winograd":
            self._winograd(out, conv, source, images)
            return
        self._pixels(out, op, source, images, runs=has_runs(isa))
        if form != "panels":
            self._groups(out, conv, source, weight, images)
            return
        steps, out.step_units = _steps(source, conv, weight.blocks, units)
        out.step_count = len(steps)
        out.steps = self.tables.keep(("steps", tuple(steps)), lambda: np.array(steps))
        if weight.firsts is not None:
            firsts = weight.firsts.numpy().astype(np.int64) * (source.plane // 4)
            out.panel_input = self.tables.keep(("panels", tuple(firsts)), lambda: firsts)
        # Filters of more than one tap come by most lines again; those of one see each only once.
        out.read_ahead = conv.r == conv.s == 1
        tiles = math.ceil(images * out.pixels / out.tile)
        read = out.tile * (conv.stride[0] * conv.stride[1] if conv.r > 1 else 1)
        blocking = schedule.blocking(
            tiles, out.panels, read * weight.blocks * source.pixel, out.panel_bytes, self.threads,
            self.caches,
        )  # fmt: skip
        _cut(out, blocking)

    def _groups(
        self, out: COp, conv: ConvSpec, source: Layout, weight: Panels, images: int
    ) -> None:
        """What a convolution reads whose panels have no zeros between groups."""
        taps = [tap // 4 for tap in _taps(source, conv)]
        if weight.reads is None:  # depthwise: a step has a tap for each number of a unit
            unit = BY_DTYPE[source.dtype].group
            taps = pack_groups.steps(taps, unit)
            out.step_count, out.step_units = len(taps) // unit, 1
            line, rest = np.divmod(np.arange(out.panels) * (PANEL * source.dtype.itemsize), LINE)
            offsets = line * (source.plane // 4) + rest // 4
        else:
            out.step_count, out.step_units = len(taps), weight.reads.units
            out.reads = weight.reads.of_panel
            offsets = weight.reads.offsets(source.plane)
        out.steps = self.tables.keep(("steps", tuple(taps)), lambda: np.array(taps))
        out.panel_input = self.tables.keep(("panels", tuple(offsets)), lambda: offsets)
        blocking = schedule.blocking_of_groups(
            math.ceil(images * out.pixels / out.tile), out.panels,
            math.ceil(out.pixels / out.tile), self.threads,
        )  # fmt: skip
        _cut(out, blocking)

    def _winograd(self, out: COp, conv: ConvSpec, source: Layout, images: int) -> None:
        tiles = math.ceil(conv.p / 2) * math.ceil(conv.q / 2) * images
        blocking = schedule.winograd_blocking(
            tiles, out.panels, source.blocks, out.panel_bytes, self.threads, self.caches
        )
        _cut(out, blocking)
        out.pixels, out.step_units = conv.p * conv.q, 16
        size = 16 * blocking.group * (source.blocks + 2) * LINE + 4 * source.blocks
        out.scratch_bytes = math.ceil(size / PAGE) * PAGE + 5 * LINE
        out.scratch_offset = self.arena.reserve(out.scratch_bytes * self.threads)

    def _pixels(self, out: COp, op: Op, source: Layout, images: int, runs: bool) -> None:
        """The tables of where output pixels read and write.

        Args:
            runs: tiles are runs of pixels at a constant distance.
        """
        conv = op.conv
        assert conv is not None
        size = (conv.p, conv.q)
        if runs:
            rows = self.tables.shared(("runs", source, conv), lambda: runs_of(source, conv))
            read, out.row_step = rows.input_px, rows.step
        else:
            rows, read = None, pixel_offsets(source, *size, conv.stride)
        out.pixels = len(read)

        def table(key: Any, image_bytes: int, one: npt.NDArray[Any]) -> int:
            return self.tables.keep(
                (key, conv.stride, size, runs, source, images, op.lattice),
                lambda: for_images(one, image_bytes, images),
            )

        def written(layout: Layout) -> npt.NDArray[Any]:
            if op.lattice is None:
                one = pixel_offsets(layout, *size, (1, 1))
            else:
                row, column = op.lattice.first
                first = (row * layout.row + column * layout.pixel) // 4
                one = first + pixel_offsets(layout, *size, op.lattice.stride)
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


def _cut(out: COp, blocking: schedule.Blocking) -> None:
    out.group, out.chunk_panels = blocking.group, blocking.chunk_panels
    out.prefetch = blocking.prefetch


def _taps(source: Layout, conv: ConvSpec) -> list[int]:
    """Where each tap of a filter reads, in bytes from an output pixel's corner."""
    top, left, _, _ = conv.padding
    rows = [(r * conv.dilation[0] - top) * source.row for r in range(conv.r)]
    columns = [(s * conv.dilation[1] - left) * source.pixel for s in range(conv.s)]
    return [row + column for row in rows for column in columns]


def _steps(source: Layout, conv: ConvSpec, blocks: int, units: int) -> tuple[list[int], int]:
    """The K-steps' offsets from an output pixel's corner, in units of 4 bytes, and their length.

    Args:
        units: of a step; of an image that is kept pixel by pixel, at most.
    """
    top, left, _, _ = conv.padding
    rows = [(r * conv.dilation[0] - top) * source.row for r in range(conv.r)]
    columns = [(s * conv.dilation[1] - left) * source.pixel for s in range(conv.s)]
    if source.small:
        firsts, length = parts(conv.s * source.pixel // 4, units)
        return [(row + columns[0]) // 4 + first for row in rows for first in firsts], length
    taps = _taps(source, conv)
    if conv.groups > 1:
        return [(block * source.plane + tap) // 4 for block in range(blocks) for tap in taps], 16
    bytes_of = units * 4
    starts = range(0, math.ceil(conv.c * source.dtype.itemsize / bytes_of) * bytes_of, bytes_of)
    planes = [start // LINE * source.plane + start % LINE for start in starts]
    return [(plane + tap) // 4 for plane in planes for tap in taps], units
