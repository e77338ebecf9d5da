"""In which order a plan goes through images, tiles and panels: a cost model on the cache sizes.

What there is to decide is where data comes from. A convolution reads each tile of activations once
for every panel of weights, and each panel once for every group of tiles. Groups are as large as
lets their activations stay near while the panels go by. Layers are grouped into phases, and a phase
runs for a few images at a time where that keeps its activations in the second-level cache; where
its weights are larger than that cache, more images at a time share one reading of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastres.kernels.spec import ConvSpec
from fastres.runtime.native.pack import PANEL, widest
from fastres.runtime.native.pack_groups import reads
from fastres.system.target import cpu

TILE_PIXELS = {
    "avx2": 6, "avx_vnni": 6, "avx512": 14, "avx512_vnni": 14, "avx512_bf16": 14, "amx_bf16": 32,
    "amx_int8": 32, "neon": 6, "neon_bf16": 6, "neon_i8mm": 6,
}  # fmt: skip
"""Most pixels of a tile, by instruction set: what its registers hold."""

VECTOR = {"avx2": 8, "avx_vnni": 8, "neon": 4, "neon_bf16": 4, "neon_i8mm": 4}
"""Lanes of 4 bytes of a register, where that is not 16."""

_DEPTHWISE_UINT8 = {"avx2": 2, "avx_vnni": 2, "avx512_vnni": 12, "neon_i8mm": 6}


def without_runs(isa: str) -> str:
    """The instruction set of what AMX has no kernels for: tiles of any pixels."""
    return {"amx_bf16": "avx512_bf16", "amx_int8": "avx512_vnni"}.get(isa, isa)


def tile_pixels(isa: str, form: str, dtype: torch.dtype) -> int:
    """Most pixels of a tile."""
    if form == "depthwise" and dtype == torch.uint8:  # whose sums are by four taps
        return _DEPTHWISE_UINT8[isa]
    return TILE_PIXELS[isa]


LINE_UNITS = 16
"""Units of a line, and of a K-step that reads all of it."""


def most_step_units(isa: str) -> int:
    """Most units of a K-step: of AMX what a row of a register holds, of the others any number."""
    return LINE_UNITS if isa.startswith("amx") else 1 << 20


def step_units(channels: int, group: int) -> int:
    """Units of a K-step that reads lines: all, or where that reads less, a half or a quarter.

    Args:
        channels: of the image.
        group: channels of a unit.
    """
    return min(
        (16, 8, 4), key=lambda units: (math.ceil(channels / (units * group)) * units, -units)
    )


@dataclass(frozen=True)
class Caches:
    """Bytes of the caches that one thread has to itself, and of the one that all share."""

    first: int
    second: int
    shared: int


def caches(sharing: int) -> Caches:
    """Of this machine; where the system does not tell, of a small one.

    Args:
        sharing: threads that work side by side on images of their own, each with its part of what
            all share.
    """
    processor = cpu()
    second = processor.l2_bytes or 1 << 20
    return Caches(
        processor.l1d_bytes or 32 << 10, second, max((processor.l3_bytes or 0) // sharing, second)
    )


@dataclass(frozen=True)
class Blocking:
    """How a convolution is cut: tiles of a group, panels of a chunk, whether to read ahead."""

    group: int
    chunk_panels: int
    prefetch: bool


def blocking(
    tiles: int, panels: int, tile_bytes: int, panel_bytes: int, threads: int, caches: Caches
) -> Blocking:
    """The cutting of a convolution.

    Args:
        tiles, panels: there are.
        tile_bytes: activations that a tile reads.
        panel_bytes: weights that a panel has.
    """
    weights = panels * panel_bytes
    if weights <= caches.second // 2:
        group = max(1, (caches.first // 2) // tile_bytes)
    else:
        group = max(1, (caches.second // 2) // tile_bytes)
    group = min(group, tiles)
    chunk_panels = panels
    if threads > 1:
        chunks = 4 * threads  # chunks: as many as make waiting for the slowest thread short
        if math.ceil(tiles / group) < chunks:
            if weights > caches.second // 2 or tiles < chunks:
                chunk_panels = max(1, panels // math.ceil(chunks / math.ceil(tiles / group)))
            else:
                group = max(1, tiles // chunks)
    return Blocking(group, chunk_panels, weights > caches.second // 2)


@dataclass(frozen=True)
class Load:
    """What an operation moves: weights in all, activations per image."""

    weight_bytes: int
    image_bytes: int


# Bytes, and multiplications of float32, per nanosecond and core, measured loosely on a Zen 5 core:
# only their relations matter.
_FROM_SECOND, _FROM_SHARED, _FROM_MEMORY = 100.0, 20.0, 8.0
_STREAMED = 15.0  # weights that are read in order and ahead
_MULTIPLIED = 115.0
_TRANSFORM = 11.0  # nanoseconds for 16 channels of a tile, in or out


MOST_BYTES = 1 << 32
"""Of a phase's activations: the tables' offsets reach twice as far."""


def images_at_once(loads: Sequence[Load], live_bytes: int, images: int, caches: Caches) -> int:
    """How many images a phase runs for at a time.

    Args:
        loads: of its operations.
        live_bytes: most activations of one image alive at once.
        images: there are.
    """
    weights = sum(load.weight_bytes for load in loads)
    moved = sum(load.image_bytes for load in loads)

    def time_per_image(count: int) -> float:
        room = caches.second * 0.75
        again = weights / count / (_FROM_SHARED if weights <= caches.shared / 2 else _FROM_MEMORY)
        if weights + live_bytes * count <= room:
            again = weights / count / _FROM_SECOND
        if live_bytes * count <= room:
            speed = _FROM_SECOND
        else:
            speed = _FROM_SHARED if live_bytes * count <= caches.shared / 2 else _FROM_MEMORY
        return again + moved / speed

    most = max(1, min(images, MOST_BYTES // max(1, live_bytes)))
    even = {math.ceil(images / parts) for parts in range(math.ceil(images / most), images + 1)}
    return min(sorted(even), key=time_per_image)


def form(conv: ConvSpec, unit: int, isa: str) -> str:
    """Which way of :data:`fastres.runtime.native.abi.FORMS` a convolution has the least to do.

    Args:
        unit: channels of a unit.
    """
    if conv.groups == 1:
        return "panels"
    if conv.groups == conv.c == conv.k:
        return "depthwise"
    vector = VECTOR.get(without_runs(isa), 16)
    blocks = widest(conv, unit * LINE_UNITS)
    dense = blocks * LINE_UNITS * PANEL // vector
    return "grouped" if reads(conv, unit, vector).multiplications < dense else "panels"


def blocking_of_groups(tiles: int, panels: int, image_tiles: int, threads: int) -> Blocking:
    """The cutting of a convolution whose panels read nothing in common.

    A panel goes through an image row by row, so that what one row of a filter reads is near when
    the next one reads it again.

    Args:
        tiles, panels: there are.
        image_tiles: tiles of an image.
    """
    if threads == 1:
        return Blocking(min(tiles, image_tiles), panels, prefetch=False)
    chunks = 4 * threads  # as many as make waiting for the slowest thread short
    group = min(tiles, image_tiles)
    group = min(group, max(1, math.ceil(tiles * panels / chunks)))
    return Blocking(group, 1, prefetch=False)


def winograd_pays(conv: ConvSpec, itemsize: int) -> bool:
    """Whether F(2x2, 3x3) is faster than the direct convolution of one image.

    It multiplies 16 numbers for 4 outputs where that takes 36, and transforms what it reads and
    writes; but it reads 16 weights instead of 9, and with few pixels reading takes the time. Both
    round differently, so one image decides for all batches.

    Args:
        itemsize: bytes of a number: 4, or 2 for bfloat16, of which twice as many are multiplied.
    """
    multiplied = _MULTIPLIED * 4 / itemsize
    tiles = math.ceil(conv.p / 2) * math.ceil(conv.q / 2)
    weights = conv.c * conv.k
    direct = max(conv.p * conv.q * 9 * weights / multiplied, 9 * itemsize * weights / _STREAMED)
    transforms = tiles * (conv.c + conv.k) / 16 * _TRANSFORM
    winograd = tiles * 16 * weights / multiplied + transforms
    return max(winograd, 16 * itemsize * weights / _STREAMED) < direct


def winograd_blocking(
    tiles: int, panels: int, blocks: int, panel_bytes: int, threads: int, caches: Caches
) -> Blocking:
    """The cutting of a Winograd convolution: tiles that are transformed together.

    The transformed tiles and one panel's products stay in the second-level cache.

    Args:
        tiles: of 2x2 output pixels.
        blocks: channel blocks of the input.
    """
    per_tile = 16 * (blocks + 2) * 64
    most = max(14, (caches.second // 2) // per_tile // 14 * 14)
    groups = math.ceil(tiles / most)
    chunk_panels = panels
    if threads > 1:
        chunks = 2 * threads
        if groups < chunks:
            if tiles >= 28 * chunks:  # two full tiles of the kernel at least
                groups = chunks
            else:
                chunk_panels = max(1, panels // math.ceil(chunks / groups))
    return Blocking(math.ceil(tiles / groups), chunk_panels, True)
