"""How activations lie in memory: lines of 64 bytes, with a border of zeros.

A tensor is [image][channel block][row][column] lines; a line is one pixel of 16 float32, 32
bfloat16 or 64 uint8 channels. An image of few channels that only convolutions read is [image][row]
[column][channel] numbers, so that a row of the filter is one run of numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from fastres.runtime.native.abi import ARENA, CTensor

LINE = 64
"""Bytes: of a cache line, of an AVX-512 register, of a row of an AMX tile."""

FEW = 8
"""Most channels of an image that is kept pixel by pixel."""


@dataclass(frozen=True)
class Layout:
    """A tensor's place in memory, without the place.

    Attributes:
        dtype: float32, bfloat16 or uint8.
        border: rows and columns of zeros (top, left, bottom, right).
        small: pixel by pixel; a pixel is a multiple of 4 bytes.
        fill: the byte that its border holds: what stands for zero.
        image_blocks: channel blocks from one image to the next, where it is a part of a
            concatenation; else 0.
    """

    channels: int
    height: int
    width: int
    dtype: torch.dtype
    border: tuple[int, int, int, int] = (0, 0, 0, 0)
    small: bool = False
    fill: int = 0
    image_blocks: int = 0

    @property
    def lanes(self) -> int:
        """Channels of a line."""
        return LINE // self.dtype.itemsize

    @property
    def blocks(self) -> int:
        """Channel blocks; one where pixels are kept whole."""
        return 1 if self.small else math.ceil(self.channels / self.lanes)

    @property
    def pixel(self) -> int:
        """Bytes from one column to the next."""
        if not self.small:
            return LINE
        return math.ceil(self.channels * self.dtype.itemsize / 4) * 4

    @property
    def row(self) -> int:
        """Bytes from one row to the next."""
        return (self.border[1] + self.width + self.border[3]) * self.pixel

    @property
    def plane(self) -> int:
        """Bytes from one channel block to the next."""
        return _lines((self.border[0] + self.height + self.border[2]) * self.row)

    @property
    def image(self) -> int:
        """Bytes from one image to the next."""
        return (self.image_blocks or self.blocks) * self.plane

    @property
    def first(self) -> int:
        """Bytes from the start to the first pixel inside the border."""
        return self.border[0] * self.row + self.border[1] * self.pixel

    def bordered(self, others: Iterable[tuple[int, int, int, int]]) -> Layout:
        """The same with a border that is wide enough for all."""
        border = self.border
        for other in others:
            top, left, bottom, right = map(max, border, other)
            border = (top, left, bottom, right)
        return replace(self, border=border)

    def tensor(self, offset: int, whole: bool) -> CTensor:
        """The structure of a tensor that starts at ``offset`` in the arena."""
        return CTensor(
            offset + self.first, self.image, self.plane, self.row, self.pixel, ARENA, 0, whole,
            self.channels, self.height, self.width,
        )  # fmt: skip


def _lines(size: int) -> int:
    return math.ceil(size / LINE) * LINE
