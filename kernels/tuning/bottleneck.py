"""Which bottleneck tails one kernel can run, and how: chunks of filters, tiles, pipelines.

A program holds, for its BLOCK_M pixels, the sums of one chunk of the convolution's filters, then
``narrow`` of all chunks together with a block of ``wide`` and the sums of the next block's head.
Registers and shared memory that this takes were read off the machine code of some 300
configurations (Triton 3.8; widths 64 to 512; sm_80, sm_89, sm_90, gfx90a, gfx942), and
:func:`shared_bytes` is a bound on all of them. :func:`registers` is a rougher one that tells
spills: of those that it lets pass, the only one with any is of fp32 on sm_90, of 8 bytes.

Grouped convolutions run in chunks of at most 64 channels, each dense with zeros for the other
groups. ResNeXt-50's 32 groups of 4 channels, 128 filters, are two chunks: 16 times the products
that are needed, yet no more than the two 1x1 convolutions beside them (64 * 9 * 128 against
128 * 256 + 256 * 128 per pixel), and ``narrow`` stays on the chip. From 16 channels per group on,
there are more chunks than pay.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from fastres.errors import OptionError
from fastres.kernels.spec import BottleneckSpec, ConvSpec
from fastres.kernels.tuning.conv2d import multiplies_asynchronously, on_matrix_units
from fastres.kernels.tuning.cost import (
    NOTHING,
    Estimate,
    Loop,
    Work,
    estimate,
    longer,
    loop_instructions,
)
from fastres.kernels.tuning.elementwise import power_of_two_from
from fastres.kernels.tuning.gpus import Architecture, Gpu
from fastres.kernels.tuning.traffic import ELEMENT_BYTES

LARGEST_CHUNK = 256
GROUPED_CHANNELS = 64
MOST_CHUNKS = 4
LARGEST_FILTER = 32


@dataclass(frozen=True)
class BottleneckConfig:
    """How one bottleneck tail is launched.

    Attributes:
        block_m: output pixels of one program.
        block_k: products added per step of the convolution's loop, and of the shortcut's.
        block_n: filters of ``wide`` that are made at a time.
        num_warps: warps per program.
        num_stages: loop steps in flight.

    Raises:
        OptionError: a value is not one that the kernel can be compiled with.
    """

    block_m: int
    block_k: int
    block_n: int
    num_warps: int
    num_stages: int

    def __post_init__(self) -> None:
        for name in ("block_m", "block_k", "block_n"):
            size = getattr(self, name)
            if size < 16 or size & (size - 1):
                raise OptionError(f"{name}={size}: expected a power of two of at least 16")
        if self.num_warps not in (1, 2, 4, 8, 16):
            raise OptionError(f"num_warps={self.num_warps}: expected 1, 2, 4, 8 or 16")
        if self.num_stages < 1:
            raise OptionError(f"num_stages={self.num_stages}: expected at least 1")


@dataclass(frozen=True)
class Chunks:
    """How the convolution's filters are divided.

    Attributes:
        count: chunks.
        filters: of each.
        channels: that each sees: all, or those of its groups.
    """

    count: int
    filters: int
    channels: int


def chunks_of(conv: ConvSpec) -> Chunks:
    """As few chunks as :data:`LARGEST_CHUNK` allows; with groups, of few channels each."""
    if conv.groups == 1:
        for size in (conv.k, 256, 128, 64):
            if size <= LARGEST_CHUNK and conv.k % size == 0:
                return Chunks(conv.k // size, size, conv.c)
        return Chunks(1, conv.k, conv.c)
    channels, filters = conv.c // conv.groups, conv.k // conv.groups
    limit = max(1, GROUPED_CHANNELS // max(channels, filters))
    together = max(n for n in range(1, limit + 1) if conv.groups % n == 0)
    return Chunks(conv.groups // together, together * filters, together * channels)


def supports(spec: BottleneckSpec) -> str | None:
    """None, or why no GPU runs this block as one kernel."""
    conv, shortcut = spec.conv, spec.shortcut
    chunks = chunks_of(conv)
    if max(conv.r, conv.s) > LARGEST_FILTER:
        return f"a filter of {conv.r}x{conv.s} pixels is larger than {LARGEST_FILTER}"
    if chunks.filters > LARGEST_CHUNK:
        return f"{conv.k} filters are more than {LARGEST_CHUNK} and no multiple of 64"
    if chunks.count > MOST_CHUNKS:
        return (
            f"{conv.k} filters in {conv.groups} groups take {chunks.count} chunks, more than "
            f"{MOST_CHUNKS}"
        )
    if shortcut is None:
        return None
    if (shortcut.r, shortcut.s, shortcut.groups) != (1, 1, 1) or any(shortcut.padding):
        return "the shortcut is not a plain 1x1 convolution"
    if (shortcut.n, shortcut.k, shortcut.p, shortcut.q) != (conv.n, spec.expand_k, conv.p, conv.q):
        return (
            f"the shortcut's output [{shortcut.n}, {shortcut.k}, {shortcut.p}, {shortcut.q}] is "
            f"not the block's, [{conv.n}, {spec.expand_k}, {conv.p}, {conv.q}]"
        )
    return None


def fits(spec: BottleneckSpec, precision: str, architecture: Architecture) -> bool:
    """Whether some configuration runs the block on the architecture, without spills."""
    return next(_fitting(spec, precision, architecture), None) is not None


def candidates(spec: BottleneckSpec, precision: str, gpu: Gpu) -> Iterator[BottleneckConfig]:
    """Every configuration worth considering: those that fit the block and the GPU."""
    return _fitting(spec, precision, gpu.architecture)


@functools.lru_cache(maxsize=4096)
def choose_bottleneck(spec: BottleneckSpec, precision: str, gpu: Gpu) -> BottleneckConfig | None:
    """The candidate that the cost model finds fastest, None if nothing fits.

    Of those within a hundredth of it, one with the deepest pipeline up to four steps, as for
    convolutions. Whether the kernel is faster than the convolutions one by one is another question:
    compare :func:`estimate_bottleneck` with theirs.
    """
    modelled = [
        (estimate_bottleneck(spec, config, precision, gpu).seconds, config)
        for config in candidates(spec, precision, gpu)
    ]
    best = min((seconds for seconds, _ in modelled), default=0.0)
    close = [entry for entry in modelled if entry[0] <= best * 1.01]
    if not close:
        return None
    return min(close, key=lambda it: (-min(it[1].num_stages, 4), -it[1].block_k, it[0]))[1]


def _fitting(
    spec: BottleneckSpec, precision: str, architecture: Architecture
) -> Iterator[BottleneckConfig]:
    if supports(spec) is not None:
        return
    if not on_matrix_units(precision, architecture) and precision != "fp32":
        return
    size = ELEMENT_BYTES[precision]
    heights, depths, stages = [32, 64, 128], [128 // size // 2, 128 // size], [2, 3, 4]
    if multiplies_asynchronously(precision, architecture):
        heights = [64, 128]
    widths, warps = [32, 64, 128], [4, 8]
    if not on_matrix_units(precision, architecture):
        # Plain multiply-adds unroll a step into registers; other sizes were seen to spill.
        heights, depths, widths, warps, stages = [64], [16], [32], [8], [2]
    if architecture.backend == "hip":
        # Four wavefronts may use all registers; eight, with half of them each, were seen to spill.
        widths, warps, stages = [width for width in widths if width <= 64], [4], [2]
    channels = chunks_of(spec.conv).channels
    depths = [depth for depth in depths if depth == depths[0] or channels % depth == 0]
    least = least_depth(precision)
    widths = [width for width in widths if width < 2 * max(spec.expand_k, least - 1)] or [least]
    for block_m, block_k, block_n, num_warps, num_stages in itertools.product(
        heights, depths, widths, warps, stages
    ):
        config = BottleneckConfig(block_m, block_k, block_n, num_warps, num_stages)
        smallest = block_m * min(block_k, block_n)
        if has_shortcut_loop(spec, config, precision) and precision != "fp32":
            smallest = min(smallest, block_n * block_shortcut(spec, config, precision))
        if smallest * size < 16 * num_warps * architecture.warp_size:
            continue  # too few for threads that copy 16 bytes each
        if (
            registers(spec, config, precision, architecture) <= architecture.registers_per_thread
            and shared_bytes(spec, config, precision, architecture)
            <= architecture.shared_bytes_per_block
        ):
            yield config


def least_depth(precision: str) -> int:
    """Products that matrix units add at once, which are the least that a step can have."""
    return 32 if precision == "int8" else 16


def block_chunk(spec: BottleneckSpec, precision: str) -> int:
    """Filters of a chunk, filled up to what can be multiplied."""
    return power_of_two_from(max(least_depth(precision), chunks_of(spec.conv).filters))


def block_shortcut(spec: BottleneckSpec, config: BottleneckConfig, precision: str) -> int:
    """Channels of the shortcut that are multiplied at a time; all, if they fit into 128 bytes."""
    if spec.shortcut is None:
        return least_depth(precision)
    whole = power_of_two_from(max(least_depth(precision), spec.shortcut.c))
    if precision == "fp32":  # without matrix units a deep step takes too many registers
        return min(whole, config.block_k)
    return whole if whole * ELEMENT_BYTES[precision] <= 128 else config.block_k


def has_shortcut_loop(spec: BottleneckSpec, config: BottleneckConfig, precision: str) -> bool:
    """Whether the shortcut's channels take more than one block."""
    return spec.shortcut is not None and spec.shortcut.c > block_shortcut(spec, config, precision)


def tail_stages(spec: BottleneckSpec, config: BottleneckConfig, precision: str) -> int:
    """Pipeline depth behind the convolution: one block of filters ahead, whose copies are large.

    With a loop over the shortcut's channels, the steps are those of the convolution's loop.
    """
    deep = has_shortcut_loop(spec, config, precision)
    return config.num_stages if deep else min(config.num_stages, 2)


@dataclass(frozen=True)
class _Tiles:
    """Sizes of what a program holds, in elements."""

    chunk: int
    pixels: int
    weights: int
    narrow: int
    expand: int
    wide: int
    head: int
    held: int
    step: int


def _tiles(spec: BottleneckSpec, config: BottleneckConfig, precision: str) -> _Tiles:
    chunk = block_chunk(spec, precision)
    narrow = chunk * chunks_of(spec.conv).count
    shortcut = block_shortcut(spec, config, precision) if spec.shortcut else 0
    m, k, n = config.block_m, config.block_k, config.block_n
    loops = has_shortcut_loop(spec, config, precision)
    return _Tiles(
        chunk=m * chunk,
        pixels=m * k,
        weights=k * chunk,
        narrow=m * narrow,
        expand=n * (narrow + (0 if loops else shortcut)),
        wide=m * n,
        head=power_of_two_from(max(16, spec.next_k)) if spec.next_k else 0,
        held=0 if loops else m * shortcut,
        step=(m + n) * shortcut if loops else 0,
    )


def shared_bytes(
    spec: BottleneckSpec, config: BottleneckConfig, precision: str, architecture: Architecture
) -> int:
    """A bound on the shared memory of a program; see the top of this file."""
    tiles = _tiles(spec, config, precision)
    asynchronous = multiplies_asynchronously(precision, architecture)
    buffers = max(config.num_stages - (0 if asynchronous else 1), 1)
    head = config.block_n * tiles.head
    convolution = buffers * (tiles.pixels + tiles.weights)
    if architecture.backend == "hip":  # the pipeline passes through registers
        moved = 4 if precision == "int8" else 2  # sums of 32 bits change places too
        tail = max(tiles.expand + head + moved * tiles.wide, tiles.step + tiles.expand)
        return max(convolution, tail, tiles.chunk) * ELEMENT_BYTES[precision] + 1024
    if chunks_of(spec.conv).count > 1:
        convolution += tiles.narrow
    if tiles.step:
        tail = max(tiles.narrow, head) + 2 * tiles.expand + buffers * tiles.step + tiles.wide
    else:
        tail = 2 * (tiles.expand + tiles.wide + head) + tiles.held
        moved = tiles.narrow + 2 * (tiles.expand + tiles.wide) + head + tiles.held
        tail = tail + tiles.narrow if asynchronous else max(tail, moved)
    return max(convolution, tail) * ELEMENT_BYTES[precision] + 1024


def registers(
    spec: BottleneckSpec, config: BottleneckConfig, precision: str, architecture: Architecture
) -> int:
    """A bound on the registers of a thread; more than it can have means spills."""
    tiles = _tiles(spec, config, precision)
    threads = config.num_warps * architecture.warp_size
    size = ELEMENT_BYTES[precision] / 4
    chunks = chunks_of(spec.conv)
    asynchronous = multiplies_asynchronously(precision, architecture)
    earlier = tiles.narrow * (chunks.count - 1) / chunks.count / threads * size
    # Bytes are taken apart and put together again between steps on sm_80 and sm_89: as many
    # registers as `cost.registers` has for them (64 sums beside 16 of an earlier chunk spill).
    shuffled = precision == "int8" and not asynchronous
    sums = tiles.chunk / threads
    convolution = earlier + (48 + 3.0 * sums if shuffled else 100 + sums)
    # Warps beside each other hold the same rows of narrow.
    copies = max(1.0, config.num_warps * 16 / config.block_m)
    base = {0.25: 75 if shuffled else 60, 0.5: 50, 1.0: 90}[size] + (
        50 if tiles.step and precision != "fp32" else 0
    )
    base += (40 if precision == "int8" else 6) * (chunks.count - 1)
    tail = tiles.narrow / threads * size * copies + 2.5 * tiles.wide / threads + base
    return math.ceil(max(convolution, tail + config.block_m * tiles.head / threads))


def estimate_bottleneck(
    spec: BottleneckSpec, config: BottleneckConfig, precision: str, gpu: Gpu
) -> Estimate:
    """The modelled time of the kernel; see :mod:`fastres.kernels.tuning.cost`."""
    conv, target, size = spec.conv, gpu.architecture, ELEMENT_BYTES[precision]
    rows = conv.n * conv.p * conv.q
    if rows == 0:
        return NOTHING
    chunks, tiles = chunks_of(conv), _tiles(spec, config, precision)
    m, k, n = config.block_m, config.block_k, config.block_n
    blocks = math.ceil(spec.expand_k / n)
    loops = [
        Loop(
            steps=chunks.count * conv.r * conv.s * math.ceil(chunks.channels / k),
            flops=2.0 * tiles.chunk * k,
            fetched_bytes=(tiles.pixels + tiles.weights) * size,
            instructions=loop_instructions(
                target, (m, tiles.chunk // m, k), size, config.num_warps, gathered=True
            ),
            stages=config.num_stages,
        )
    ]
    # What is computed per element of wide: bias, residual, ReLU, rounding, storing.
    finishing = 6.0 * tiles.wide / (config.num_warps * target.warp_size)
    depth = (tiles.narrow + tiles.held) // m
    residual = 0 if spec.shortcut else tiles.wide
    loops.append(
        Loop(
            steps=blocks,
            flops=2.0 * tiles.wide * (depth + tiles.head),
            fetched_bytes=(tiles.expand + residual + n * tiles.head) * size,
            instructions=finishing
            + loop_instructions(target, (m, n, depth), size, config.num_warps, gathered=False)
            + (
                loop_instructions(
                    target, (m, tiles.head, n), size, config.num_warps, gathered=False
                )
                if tiles.head
                else 0.0
            ),
            stages=tail_stages(spec, config, precision),
        )
    )
    moved = conv.n * conv.c * min(conv.h * conv.w, conv.p * conv.q * conv.r * conv.s)
    moved += conv.k * conv.r * conv.s * chunks.channels + spec.expand_k * conv.k
    moved += rows * (spec.expand_k + (spec.next_k or 0)) + spec.expand_k * (spec.next_k or 0)
    if spec.shortcut is None:
        moved += rows * spec.expand_k
    else:
        shortcut = spec.shortcut
        moved += rows * shortcut.c + spec.expand_k * shortcut.c
        if tiles.step:
            deep = block_shortcut(spec, config, precision)
            loops.append(
                Loop(
                    steps=blocks * math.ceil(shortcut.c / deep),
                    flops=2.0 * tiles.wide * deep,
                    fetched_bytes=tiles.step * size,
                    instructions=loop_instructions(
                        target, (m, n, deep), size, config.num_warps, gathered=True
                    ),
                    stages=config.num_stages,
                )
            )
    work = Work(
        programs=math.ceil(rows / m),
        num_warps=config.num_warps,
        registers=registers(spec, config, precision, target),
        shared_bytes=shared_bytes(spec, config, precision, target),
        loops=tuple(loops),
        bytes=float(moved * size),
        flops=2.0 * spec.multiply_adds,
    )
    return longer(estimate(work, precision, gpu), _serial(spec, bool(tiles.step), precision, gpu))


def _serial(spec: BottleneckSpec, shortcut_in_steps: bool, precision: str, gpu: Gpu) -> float:
    """What the products of the second loop take longer for waiting for each other.

    Asynchronous products are awaited one by one where one reads what another wrote. Measured over
    modelled, ResNet-50 in fp16 on an H100 (``benchmarks/results/gpu_day/2026-11-28b``), at batches
    of 256 and 32: 1.1 and 0.9 without a next convolution, 1.27 to 1.59 and 0.9 to 1.44 with one,
    2.2 and 1.9 where the shortcut's channels are a loop in the loop.
    """
    if not multiplies_asynchronously(precision, gpu.architecture):
        return 1.0
    factor = 1.35 if spec.next_k is not None else 1.05
    return factor * (2.0 if shortcut_in_steps else 1.0)
