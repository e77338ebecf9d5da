"""Where each output pixel of a convolution reads and writes: offsets in units of 4 bytes.

For AMX a tile's row is a pixel, and the hardware steps through 16 rows by one constant distance.
Runs of 16 therefore go along an image's rows, or, where that wastes less and the convolution's
stride is 1, straight on through the zeros between the rows; what is computed there has no pixel and
is dropped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastres.kernels.spec import ConvSpec, Pair
from fastres.runtime.native.layout import Layout

RUN = 16
"""Rows of an AMX tile."""

NO_PIXEL = -1


def pixel_offsets(layout: Layout, rows: int, columns: int, stride: Pair) -> npt.NDArray[Any]:
    """The offsets of ``rows`` x ``columns`` pixels, ``stride`` apart, from the first one."""
    row = np.arange(rows)[:, None] * stride[0] * layout.row
    column = np.arange(columns)[None, :] * stride[1] * layout.pixel
    return (row + column).reshape(-1) // 4


def for_images(one: npt.NDArray[Any], image_bytes: int, images: int) -> npt.NDArray[Any]:
    """The same pixels in every image; rows without a pixel stay so."""
    image = np.arange(images)[:, None] * (image_bytes // 4)
    return np.where(one[None, :] == NO_PIXEL, NO_PIXEL, one[None, :] + image).reshape(-1)


@dataclass(frozen=True)
class Runs:
    """One image's rows for AMX, a multiple of 32.

    Attributes:
        input_px: offsets; 16 by 16 they are ``step`` bytes apart.
        pixel: which output pixel a row is, or :data:`NO_PIXEL`.
        step: bytes from a row to the next of its run.
    """

    input_px: npt.NDArray[Any]
    pixel: npt.NDArray[Any]
    step: int

    def output_px(self, target: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Offsets in a tensor whose pixels lie at ``target``."""
        return np.where(self.pixel == NO_PIXEL, NO_PIXEL, target[self.pixel])


def runs(source: Layout, conv: ConvSpec) -> Runs:
    """The rows of a convolution of ``source``: the way that has the fewest."""
    step = conv.stride[1] * source.pixel
    starts = [  # (offset of the run's first row, its output pixels)
        (
            p * conv.stride[0] * source.row + q * step,
            [p * conv.q + q + i if q + i < conv.q else NO_PIXEL for i in range(RUN)],
        )
        for p in range(conv.p)
        for q in range(0, conv.q, RUN)
    ]
    if conv.stride == (1, 1):
        pitch = source.row // source.pixel
        length = (conv.p - 1) * pitch + conv.q
        if math.ceil(length / RUN) < len(starts):
            positions = np.arange(math.ceil(length / RUN) * RUN)
            row, column = np.divmod(positions, pitch)
            inside = (column < conv.q) & (row < conv.p)
            pixel = np.where(inside, row * conv.q + column, NO_PIXEL).reshape(-1, RUN)
            starts = [(i * RUN * step, list(each)) for i, each in enumerate(pixel)]
    if len(starts) % 2:  # tiles are two runs high
        starts.append((starts[-1][0], [NO_PIXEL] * RUN))
    first = np.array([start for start, _ in starts])[:, None] + np.arange(RUN)[None, :] * step
    return Runs(first.reshape(-1) // 4, np.array([p for _, each in starts for p in each]), step)
