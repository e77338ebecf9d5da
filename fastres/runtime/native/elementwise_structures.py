"""What the library's structure of an operation holds that is not a convolution."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from fastres.runtime.native.abi import COp, CTensor
from fastres.runtime.native.layout import Layout
from fastres.runtime.native.operations import Axis, Op, Value, Window
from fastres.runtime.native.packed_weights import PackedWeights
from fastres.runtime.native.tables import Tables


def fill_window(out: COp, window: Window) -> None:
    """Of a pooling."""
    for name in ("kernel", "stride", "padding", "dilation"):
        setattr(out, name, (ctypes.c_int32 * 2)(*getattr(window, name)))
    out.divisor = window.divisor
    out.counts_padding = window.counts_padding
    out.adaptive = window.adaptive


def fill_vectors(out: COp, op: Op, packed: PackedWeights, kept: list[Any]) -> None:
    """A number for each channel, of functions and of maps."""
    for name in ("slopes", "scale", "shift"):
        named = getattr(op, name)
        if named is not None:
            assert op.output is not None
            vector = packed.vector(named, op.output.layout.channels)
            kept.append(vector)
            setattr(out, name, vector.data_ptr())


def fill_taps(out: COp, op: Op, packed: PackedWeights, kept: list[Any]) -> None:
    """Of a convolution of neighbouring channels."""
    assert op.weight is not None
    name, filters = op.weight
    taps = packed.vector((f"{name} as taps", filters), filters.numel())
    kept.append(taps)
    out.weights = taps.data_ptr()
    if op.bias is not None:
        bias = packed.vector(op.bias, 1)
        kept.append(bias)
        out.bias = bias.data_ptr()


def fill_map(out: COp, op: Op, tensor: Callable[[Value], CTensor]) -> None:
    """Of a map of floating-point numbers."""
    out.residual_multiplier = op.residual_multiplier
    if op.factor is not None:
        out.factor = tensor(op.factor)
        out.has_factor = 1


def copies(
    ranges: Sequence[tuple[int, int, int]], source: Layout, target: Layout
) -> npt.NDArray[Any]:
    """Copies of channels, each cut where a line of either side ends.

    Args:
        ranges: (channel of the source, channel of the target, how many).
    """
    found: list[tuple[int, int, int]] = []
    lanes, size = source.lanes, source.dtype.itemsize

    def offset(layout: Layout, channel: int) -> int:
        return channel // lanes * layout.plane + channel % lanes * size

    for read, written, channels in ranges:
        done = 0
        while done < channels:
            count = min(
                channels - done, lanes - (read + done) % lanes, lanes - (written + done) % lanes
            )
            found.append(
                (offset(source, read + done), offset(target, written + done), count * size)
            )
            done += count
    return np.array(found).reshape(-1)


def _interleaved(axis: Axis) -> npt.NDArray[Any]:
    return np.array([axis.first, axis.second]).T.reshape(-1)


def fill_sources(out: COp, sources: tuple[Axis, Axis], tables: Tables) -> None:
    """Of a resized or padded image."""
    for name, axis in zip(("source_rows", "source_columns"), sources, strict=True):
        setattr(
            out,
            name,
            tables.keep(("sources", axis.first, axis.second), partial(_interleaved, axis)),
        )
    for name, axis in zip(("row_shares", "column_shares"), sources, strict=True):
        if axis.share is not None:
            shares = np.array(axis.share, dtype=np.float32)
            tables.kept.append(shares)
            setattr(out, name, shares.ctypes.data)
