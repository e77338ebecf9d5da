"""Which stems one kernel can run, and how: rows of products, tiles of pixels.

Neighbouring tiles compute the pixels on their seam twice. Of a 3x3 pool with stride 2, a tile of
16 x 16 pixels holds 7 x 7 windows, which need 15 x 15 of them; 256 products for 4 * 49 pixels are
31 % too many, and 8 x 32 with 3 x 15 windows 42 %. ResNet's 56 x 56 windows are 8 x 8 whole tiles
of 7 x 7.

Is it worth that? For an image of 224 x 224 in fp16, convolution and pool apart move 3.9 MB, of
which the tensor between them is 1.6 MB written and 1.6 MB read; the kernel moves 0.7 MB. It
multiplies 0.24 GFLOP * 1.31 for seams * 224 / 147 for rows filled up to powers of two. On an A100
(2.0 TB/s, 312 TFLOP/s) that is 1.9 us of memory time per image against 1.5 us of matrix time, on an
H100 1.2 against 0.5. Neither is what binds: with 3 channels, addresses and masks of copies of 4
bytes take most issue slots. As read off the machine code for sm_80, a pooled pixel of 64 filters
costs 155 slots of a scheduler here, and 142 in the convolution kernel alone, which has its pool
still to come. With the image filled up to 4 channels, copies are 8 bytes wide: 101 slots.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from fastres.errors import OptionError
from fastres.kernels.spec import StemSpec
from fastres.kernels.tuning.bottleneck import least_depth
from fastres.kernels.tuning.conv2d import multiplies_asynchronously, on_matrix_units
from fastres.kernels.tuning.cost import NOTHING, Estimate, Loop, Work, estimate, longer
from fastres.kernels.tuning.elementwise import power_of_two_from
from fastres.kernels.tuning.gpus import Architecture, Gpu
from fastres.kernels.tuning.traffic import ELEMENT_BYTES, least_bytes

LARGEST_ROW = 64
LARGEST_FILTER = 32
SLOWER = 1.4
"""Measured over modelled on an H100, ResNet-50's stem in fp16: 1.43 at batch 256, 1.31 at 32
(``benchmarks/results/gpu_day/2026-11-28b``)."""


@dataclass(frozen=True)
class StemConfig:
    """How one stem is launched.

    Attributes:
        tile_h, tile_w: pixels of the convolution that one program computes.
        block_n: filters of one program.
        num_warps: warps per program.
        num_stages: filter rows in flight.

    Raises:
        OptionError: a value is not one that the kernel can be compiled with.
    """

    tile_h: int
    tile_w: int
    block_n: int
    num_warps: int
    num_stages: int

    def __post_init__(self) -> None:
        for name, least in (("tile_h", 4), ("tile_w", 4), ("block_n", 16)):
            size = getattr(self, name)
            if size < least or size & (size - 1):
                raise OptionError(f"{name}={size}: expected a power of two of at least {least}")
        if self.num_warps not in (1, 2, 4, 8, 16):
            raise OptionError(f"num_warps={self.num_warps}: expected 1, 2, 4, 8 or 16")
        if self.num_stages < 1:
            raise OptionError(f"num_stages={self.num_stages}: expected at least 1")


@dataclass(frozen=True)
class RowLayout:
    """How the numbers under one row of the filter are read, and its weights packed.

    Attributes:
        size: numbers per row, a power of two.
        lead: of these before the filter's first.
        alignment: every row begins at a multiple of so many numbers; they are copied at once.
    """

    size: int
    lead: int
    alignment: int


def row_layout(spec: StemSpec, element_bytes: int) -> RowLayout:
    """The widest copies, unless narrower ones of 4 bytes at least need nothing cut off.

    Args:
        spec: the stem.
        element_bytes: of a number of the image: 1 where it is uint8.
    """
    conv = spec.conv
    numbers, before = conv.s * conv.c, conv.padding[1] * conv.c
    common = math.gcd(conv.stride[1] * conv.c, conv.w * conv.c, 16 // element_bytes)
    found = [1 << power for power in range(common.bit_length()) if common % (1 << power) == 0]
    exact = [
        width
        for width in found
        if width * element_bytes >= 4 and before % width == 0 and numbers % width == 0
    ]
    alignment = max(exact if exact and element_bytes > 1 else found)
    lead = -before % alignment
    least = least_depth("int8") if spec.quantized else 16
    return RowLayout(power_of_two_from(max(least, lead + numbers)), lead, alignment)


def image_bytes(spec: StemSpec, element_bytes: int) -> int:
    """Of one of the image's numbers, where others take ``element_bytes``."""
    return 1 if spec.uint8 or spec.quantized else element_bytes


def supports(spec: StemSpec) -> str | None:
    """None, or why no GPU runs this stem as one kernel."""
    conv = spec.conv
    if conv.groups != 1 or conv.dilation != (1, 1):
        return f"groups={conv.groups} and dilation={conv.dilation}: expected neither"
    if spec.pool_stride != (2, 2) or not set(spec.pool_kernel) <= {2, 3}:
        return (
            f"a pool of {spec.pool_kernel} with stride {spec.pool_stride}: expected two or three "
            "taps with a stride of two"
        )
    if conv.r > LARGEST_FILTER:
        return f"a filter {conv.r} pixels high is more than {LARGEST_FILTER}"
    if row_layout(spec, image_bytes(spec, 2)).size > LARGEST_ROW:
        return f"{conv.s} pixels of {conv.c} channels are more than {LARGEST_ROW} numbers"
    return None


def windows_per_tile(spec: StemSpec, config: StemConfig) -> tuple[int, int]:
    """Rows and columns of pooled pixels that a program makes."""
    return (
        config.tile_h // 2 - (spec.pool_kernel[0] - 2),
        config.tile_w // 2 - (spec.pool_kernel[1] - 2),
    )


def tiles(spec: StemSpec, config: StemConfig) -> tuple[int, int]:
    """Rows and columns of tiles per image."""
    high, wide = windows_per_tile(spec, config)
    return math.ceil(spec.p / high), math.ceil(spec.q / wide)


def recomputation(spec: StemSpec, config: StemConfig) -> float:
    """Pixels of the convolution computed, over those that there are."""
    down, across = tiles(spec, config)
    return down * across * config.tile_h * config.tile_w / (spec.conv.p * spec.conv.q)


def candidates(spec: StemSpec, precision: str, gpu: Gpu) -> Iterator[StemConfig]:
    """Every configuration worth considering: those that fit the stem and the GPU."""
    target = gpu.architecture
    if supports(spec) is not None or (
        not on_matrix_units(precision, target) and precision != "fp32"
    ):
        return
    narrow = [width for width in (16, 32, 64) if width < 2 * spec.conv.k] or [16]
    stages = [2, 3, 4] if target.backend == "cuda" else [2]
    for tile_h, tile_w, block_n, num_warps, num_stages in itertools.product(
        (4, 8, 16), (8, 16, 32), narrow, (4, 8), stages
    ):
        config = StemConfig(tile_h, tile_w, block_n, num_warps, num_stages)
        pixels = tile_h * tile_w
        sums = pixels * block_n // (num_warps * target.warp_size)
        lowest = 64 if multiplies_asynchronously(precision, target) else 32
        most = 64 if precision in ("fp16", "bf16", "int8") else 32
        if (
            lowest <= pixels <= 256
            and 8 <= sums <= most
            and shared_bytes(spec, config, precision, target) <= target.shared_bytes_per_block
        ):
            yield config


@functools.lru_cache(maxsize=4096)
def choose_stem(spec: StemSpec, precision: str, gpu: Gpu) -> StemConfig | None:
    """The candidate that the cost model finds fastest, None if nothing fits."""
    return min(
        candidates(spec, precision, gpu),
        key=lambda config: estimate_stem(spec, config, precision, gpu).seconds,
        default=None,
    )


def shared_bytes(
    spec: StemSpec, config: StemConfig, precision: str, architecture: Architecture
) -> int:
    """A bound on the shared memory of a program: filter rows in flight, later the tile."""
    size = ELEMENT_BYTES[precision]
    row = row_layout(spec, image_bytes(spec, size)).size
    pixels = config.tile_h * config.tile_w
    deeper = multiplies_asynchronously(precision, architecture)
    buffers = max(config.num_stages - (0 if deeper else 1), 1)
    loop = (buffers * (pixels + config.block_n) + pixels) * row * size
    return max(loop, pixels * config.block_n * size) + 1024


def estimate_stem(spec: StemSpec, config: StemConfig, precision: str, gpu: Gpu) -> Estimate:
    """The modelled time of the kernel; see :mod:`fastres.kernels.tuning.cost`.

    Instructions are fitted to the machine code for sm_80, of 256 pixels, 64 filters and 8 warps.
    Per filter row and warp: 256 with 3 channels, of which 73 cut off numbers before the first; 119
    with 4. Before and after the loop: 1,780 and 1,430.
    """
    conv = spec.conv
    if conv.n * conv.k * spec.p * spec.q == 0:
        return NOTHING
    size = ELEMENT_BYTES[precision]
    pixel_bytes = image_bytes(spec, size)
    layout = row_layout(spec, pixel_bytes)
    pixels = config.tile_h * config.tile_w
    threads = config.num_warps * gpu.architecture.warp_size
    numbers, sums = pixels * layout.size / threads, pixels * config.block_n / threads
    per_row = 55 + 8 * numbers / layout.alignment
    if spec.uint8:
        per_row += 8 * numbers
    elif (not spec.quantized and layout.lead) or (layout.lead + conv.s * conv.c) % layout.alignment:
        per_row += 2.3 * numbers
    down, across = tiles(spec, config)
    loops = (
        Loop(
            steps=conv.r,
            flops=2.0 * pixels * layout.size * config.block_n,
            # Neighbouring pixels read the same numbers, which the first-level cache has.
            fetched_bytes=pixels * conv.stride[1] * conv.c * pixel_bytes
            + layout.size * config.block_n * size,
            instructions=per_row,
            stages=config.num_stages,
        ),
        Loop(
            steps=1,
            flops=0.0,
            fetched_bytes=0.0,
            instructions=300 + 16 * sums + 7 * numbers,
            stages=1000,
        ),
    )
    work = Work(
        programs=conv.n * down * across * math.ceil(conv.k / config.block_n),
        num_warps=config.num_warps,
        registers=min(round(60 + 2.1 * sums), gpu.architecture.registers_per_thread),
        shared_bytes=shared_bytes(spec, config, precision, gpu.architecture),
        loops=loops,
        bytes=float(least_bytes(spec, precision)),
        flops=2.0 * conv.multiply_adds,
    )
    found = estimate(work, precision, gpu)
    slower = SLOWER if multiplies_asynchronously(precision, gpu.architecture) else 1.0
    return longer(found, slower)
