"""Tile sizes and pipeline depth of the convolution kernels: ``conv2d``, ``pointwise``, ``linear``.

M, N and K are the matrix product's: output pixels, filters, and filter area times channels; the
last two of one super-group (:mod:`fastres.kernels.packing`).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fastres.errors import OptionError
from fastres.kernels.packing import super_groups
from fastres.kernels.spec import ConvSpec
from fastres.kernels.tuning.cost import (
    L2_BYTES_PER_CYCLE,
    LATENCY_S,
    NOTHING,
    Estimate,
    Loop,
    Work,
    estimate,
    fetch_factor,
    instructions_around,
    loop_instructions,
    registers,
    streaming,
)
from fastres.kernels.tuning.gpus import Architecture, Gpu
from fastres.kernels.tuning.traffic import ELEMENT_BYTES


@dataclass(frozen=True)
class Conv2dConfig:
    """How one convolution is launched.

    Attributes:
        block_m, block_n: output pixels and filters of one program's tile.
        block_k: products added per step of the main loop.
        split_k: programs that share one tile's products; their sums are added by a second kernel.
        fused_sum: they are added in the same launch, by each tile's last program.
        group_m: tiles that are walked downwards before the next column, for L2.
        num_warps: warps per program.
        num_stages: loop steps in flight.
        descriptors: copy tiles by tensor descriptor, where :func:`allows_descriptors` says so.
        box_h, box_w: with descriptors, tiles are boxes of so many rows and columns of pixels, of
            as many images as make ``block_m``, where :func:`allows_boxes` says so. Zeros otherwise.

    Raises:
        OptionError: a value is not one that the kernels can be compiled with.
    """

    block_m: int
    block_n: int
    block_k: int
    split_k: int = 1
    group_m: int = 8
    num_warps: int = 4
    num_stages: int = 3
    descriptors: bool = False
    fused_sum: bool = False
    box_h: int = 0
    box_w: int = 0

    def __post_init__(self) -> None:
        for name in ("block_m", "block_n", "block_k"):
            size = getattr(self, name)
            if size < 16 or size & (size - 1):
                raise OptionError(f"{name}={size}: expected a power of two of at least 16")
        if self.num_warps not in (1, 2, 4, 8, 16):
            raise OptionError(f"num_warps={self.num_warps}: expected 1, 2, 4, 8 or 16")
        for name in ("split_k", "group_m", "num_stages"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.descriptors and self.split_k > 1:
            raise OptionError(
                f"split_k={self.split_k} with descriptors=True: expected one or the other"
            )
        if self.fused_sum and self.split_k == 1:
            raise OptionError("fused_sum=True with split_k=1: expected sums to add")
        if self.box_h or self.box_w:
            self._check_box()

    def _check_box(self) -> None:
        for name in ("box_h", "box_w"):
            size = getattr(self, name)
            if size < 1 or size & (size - 1):
                raise OptionError(f"{name}={size}: expected a power of two, or zero for both sides")
        if self.box_h * self.box_w > self.block_m:
            raise OptionError(
                f"a box of {self.box_h}x{self.box_w} pixels: expected at most block_m="
                f"{self.block_m}"
            )
        if not self.descriptors:
            raise OptionError(
                f"a box of {self.box_h}x{self.box_w} pixels with descriptors=False: only "
                "descriptors copy boxes"
            )

    @property
    def box_n(self) -> int:
        """Images of a box."""
        return self.block_m // (self.box_h * self.box_w)

    def shared_bytes(self, precision: str, target: Architecture) -> int:
        """Shared memory for the tiles of the main loop, as Triton 3.8 allocates it.

        Products that run asynchronously still read one step's tiles while the next arrive.
        """
        tile = (self.block_m + self.block_n) * self.block_k * ELEMENT_BYTES[precision]
        asynchronous = multiplies_asynchronously(precision, target)
        return tile * max(self.num_stages - (not asynchronous), 1)


def steps(spec: ConvSpec, config: Conv2dConfig) -> int:
    """Steps that the main loop takes over all of K; boxes are of one tap each."""
    if config.box_w:
        return spec.r * spec.s * math.ceil(spec.c / config.block_k)
    channels = spec.c // super_groups(spec.c, spec.k, spec.groups)
    return math.ceil(spec.r * spec.s * channels / config.block_k)


def used_splits(spec: ConvSpec, config: Conv2dConfig) -> int:
    """``split_k``, or fewer where some splits would have no step to take."""
    total = steps(spec, config)
    per_split = math.ceil(total / min(config.split_k, total))
    return math.ceil(total / per_split)


def tiles(spec: ConvSpec, config: Conv2dConfig) -> int:
    """Programs of the main kernel, each split counted."""
    groups = super_groups(spec.c, spec.k, spec.groups)
    if config.box_w:
        rows = boxes(spec, config)
    else:
        rows = math.ceil(spec.n * spec.p * spec.q / config.block_m)
    columns = math.ceil(spec.k // groups / config.block_n)
    return rows * columns * groups * used_splits(spec, config)


def boxes(spec: ConvSpec, config: Conv2dConfig) -> int:
    """Boxes that cover all pixels of the output; some reach beyond its last row and column."""
    down, across = math.ceil(spec.p / config.box_h), math.ceil(spec.q / config.box_w)
    return math.ceil(spec.n / config.box_n) * down * across


def counters(spec: ConvSpec, config: Conv2dConfig) -> int:
    """How many tiles count their splits: all, where their sums are added in the same launch."""
    splits = used_splits(spec, config)
    return tiles(spec, config) // splits if config.fused_sum and splits > 1 else 0


def is_pointwise(spec: ConvSpec) -> bool:
    """Whether the convolution is a plain matrix product of the tensors as they lie in memory."""
    return (
        (spec.r, spec.s) == (1, 1)
        and spec.stride == (1, 1)
        and spec.padding == (0, 0, 0, 0)
        and spec.groups == 1
    )


def allows_descriptors(spec: ConvSpec, precision: str) -> str | None:
    """None, or why tensor descriptors cannot address this convolution's tensors."""
    if not is_pointwise(spec):
        return "not pointwise"
    return _rows_allow_descriptors(spec, precision)


def allows_boxes(spec: ConvSpec, precision: str) -> str | None:
    """None, or why tensor descriptors cannot copy this convolution's pixels box by box."""
    if spec.groups != 1:
        return f"{spec.groups} groups, and boxes are of all channels"
    if spec.stride != (1, 1):
        return "strides skip pixels, and boxes leave none out"
    return _rows_allow_descriptors(spec, precision)


def _rows_allow_descriptors(spec: ConvSpec, precision: str) -> str | None:
    for letter, channels in (("C", spec.c), ("K", spec.k)):
        if channels * ELEMENT_BYTES[precision] % 16:
            return f"rows of {letter}={channels} not a multiple of 16 bytes"
    return None


def on_matrix_units(precision: str, target: Architecture) -> bool:
    """Whether Triton's products of that precision run on the architecture's matrix units."""
    if precision == "fp32":
        return target.tensor_core == "mfma"
    return target.tensor_core != "none" and (precision != "tf32" or target.tf32)


def multiplies_asynchronously(precision: str, target: Architecture) -> bool:
    """Whether products are started and awaited, 64 rows at least, by groups of four warps."""
    return target.tensor_core in ("wgmma", "tcgen05") and precision != "fp32"


def candidates(spec: ConvSpec, precision: str, gpu: Gpu) -> Iterator[Conv2dConfig]:
    """Every configuration worth considering: those that fit the problem and the GPU.

    Those by boxes are apart, in :mod:`fastres.kernels.tuning.boxes`.
    """
    target = gpu.architecture
    groups = super_groups(spec.c, spec.k, spec.groups)
    largest = 256 if on_matrix_units(precision, target) else 64
    stages: Sequence[int] = range(2, 6) if largest > 64 else (2, 3)
    if target.backend == "hip":
        stages = [2]  # its pipeline passes through registers, one step ahead
    descriptors = [False]
    if target.tensor_descriptors and allows_descriptors(spec, precision) is None:
        descriptors.append(True)
    heights = _heights(spec, precision, target, largest)
    widths = powers_of_two(spec.k // groups, largest)
    fills_four_warps = heights[-1] * widths[-1] >= 4 * 4 * target.warp_size
    for block_m, block_n, block_k, num_warps, num_stages, by_descriptor in itertools.product(
        heights,
        widths,
        _depths(spec, precision, target),
        (1, 2, 4, 8),
        stages,
        descriptors,
    ):
        if num_warps < 4 and fills_four_warps:
            continue  # for problems of few smallest tiles only
        config = Conv2dConfig(
            block_m,
            block_n,
            block_k,
            num_warps=num_warps,
            num_stages=num_stages,
            descriptors=by_descriptor,
        )
        if fits(config, precision, target):
            yield config
            if not by_descriptor:
                yield from _splits(config, spec, gpu)


@functools.lru_cache(maxsize=4096)
def choose_conv2d(spec: ConvSpec, precision: str, gpu: Gpu) -> Conv2dConfig:
    """The candidate that the cost model finds fastest; see :mod:`fastres.kernels.tuning.cost`."""
    return fastest(
        [
            (estimate_conv2d(spec, config, precision, gpu).seconds, config)
            for config in candidates(spec, precision, gpu)
        ]
    )


def fastest(modelled: Sequence[tuple[float, Conv2dConfig]]) -> Conv2dConfig:
    """The configuration with the shortest of these times.

    Of those within a hundredth of it, one with the deepest pipeline up to four steps, and then the
    deepest steps: what the model says of latency is rougher than that.
    """
    best = min(seconds for seconds, _ in modelled)
    close = [entry for entry in modelled if entry[0] <= best * 1.01]
    return min(close, key=lambda it: (-min(it[1].num_stages, 4), -it[1].block_k, it[0]))[1]


def estimate_conv2d(
    spec: ConvSpec, config: Conv2dConfig, precision: str, gpu: Gpu, residual: bool = False
) -> Estimate:
    """The modelled time of a convolution with this configuration, that of adding splits included.

    Args:
        residual: whether the epilogue reads a tensor like the output.
    """
    if spec.n * spec.p * spec.q * spec.k == 0:
        return NOTHING
    size = ELEMENT_BYTES[precision]
    target = gpu.architecture
    splits = used_splits(spec, config)
    groups = super_groups(spec.c, spec.k, spec.groups)
    columns = math.ceil(spec.k // groups / config.block_n)
    elements = spec.n * spec.p * spec.q * spec.k
    written = elements * size * (2 if residual else 1)
    tile = (config.block_m, config.block_n, config.block_k)
    fetched = float((config.block_m + config.block_n) * config.block_k * size)
    width = math.gcd(spec.c // groups * size, 16)  # bytes that lie together and are aligned
    threads = config.num_warps * target.warp_size
    cut_off = 0.0
    if config.box_w and spec.c % config.block_k:  # read on sm_90: 2.9 to 3.4 per weight of a thread
        cut_off = 3.0 * config.block_n * config.block_k / threads
    loop = Loop(
        steps=math.ceil(steps(spec, config) / splits),
        flops=2.0 * math.prod(tile),
        fetched_bytes=fetched * fetch_factor(tile, size),
        instructions=cut_off
        + loop_instructions(
            target,
            tile,
            size,
            config.num_warps,
            gathered=not is_pointwise(spec),
            descriptors=config.descriptors,
            copy_bytes=width,
        ),
        stages=config.num_stages,
    )
    narrow = 0.0 if width == 16 else fetched / (width * threads)
    work = Work(
        programs=tiles(spec, config),
        num_warps=config.num_warps,
        registers=registers(target, config.block_m * config.block_n // threads, size, narrow),
        shared_bytes=config.shared_bytes(precision, target),
        loops=(loop,),
        bytes=_input_bytes(spec, config, size, gpu, columns)
        + (written if splits == 1 else splits * elements * 4),
        flops=2.0 * spec.multiply_adds,
        instructions=instructions_around(
            config.block_m * config.block_n // threads,
            gathered=not is_pointwise(spec),
            descriptors=config.descriptors,
            residual=residual,
            rescaled=precision == "int8",
            narrow_copies=narrow,
        ),
    )
    total = estimate(work, precision, gpu)
    if config.fused_sum and splits > 1:
        total += _fused_sum(spec, config, splits, written, gpu)
    elif splits > 1:
        total += streaming(splits * elements * 4 + written, splits * elements, gpu)
    return total


def _fused_sum(
    spec: ConvSpec, config: Conv2dConfig, splits: int, written: int, gpu: Gpu
) -> Estimate:
    """What each tile's last program adds: a counter to and fro, and the tile's sums out of L2.

    Modelled from the data sheet; nothing of it has been measured.
    """
    tile_bytes = splits * config.block_m * config.block_n * 4
    reading = tile_bytes / (L2_BYTES_PER_CYCLE * gpu.clock_hz)
    waves = math.ceil(tiles(spec, config) / splits / gpu.multiprocessors)
    seconds = max(waves * (2 * LATENCY_S + reading), written / gpu.memory_bytes_per_s)
    return Estimate(seconds, float(written), 0.0, float(waves), "latency")


def tuned_candidates(spec: ConvSpec, precision: str, gpu: Gpu) -> list[Conv2dConfig]:
    """What is worth timing, by modelled time: :func:`candidates`, and what only timing may choose.

    That is split sums added in the same launch: they save a launch, and no GPU has run them yet.
    """
    configs = list(candidates(spec, precision, gpu))
    configs += [replace(config, fused_sum=True) for config in configs if config.split_k > 1]
    return sorted(configs, key=lambda config: estimate_conv2d(spec, config, precision, gpu).seconds)


def _input_bytes(spec: ConvSpec, config: Conv2dConfig, size: int, gpu: Gpu, columns: int) -> float:
    """What comes from device memory at least: images once, weights once if L2 keeps them."""
    groups = super_groups(spec.c, spec.k, spec.groups)
    pixels = min(spec.h * spec.w, spec.p * spec.q * spec.r * spec.s)
    weights = spec.k * spec.r * spec.s * (spec.c // groups) * size
    again = 1
    if weights > gpu.l2_bytes / 2:  # each group of rows brings them in anew
        rows = spec.n * spec.p * spec.q
        at_once = min(config.group_m * columns, gpu.multiprocessors) / columns
        again = max(1, math.ceil(rows / (config.block_m * max(at_once, 1.0))))
    return float(spec.n * pixels * spec.c * size + weights * again)


def fits(config: Conv2dConfig, precision: str, target: Architecture) -> bool:
    """Whether tiles fit into shared memory, and the sums into half of a thread's registers."""
    sums = config.block_m * config.block_n // (config.num_warps * target.warp_size)
    shared = config.shared_bytes(precision, target)
    return 4 <= sums <= 128 and shared <= target.shared_bytes_per_block


def powers_of_two(size: int, largest: int) -> list[int]:
    """Powers of two from 16 to the first that covers ``size``, or ``largest``."""
    sizes = [16]
    while sizes[-1] < min(size, largest):
        sizes.append(sizes[-1] * 2)
    return sizes


def _heights(spec: ConvSpec, precision: str, target: Architecture, largest: int) -> list[int]:
    """Sizes of block_m; asynchronous products have 64 rows, and lower tiles would not use them."""
    smallest = 64 if multiplies_asynchronously(precision, target) else 16
    sizes = powers_of_two(max(spec.n * spec.p * spec.q, smallest), largest)
    return [size for size in sizes if size >= smallest]


def _depths(spec: ConvSpec, precision: str, target: Architecture) -> list[int]:
    """Sizes of block_k, the best last: 128 bytes deep, and within one tap if that costs little."""
    if not on_matrix_units(precision, target):
        return [16]
    channels = spec.c // super_groups(spec.c, spec.k, spec.groups)
    size = ELEMENT_BYTES[precision]
    least = 32 // size  # matrix units multiply 32 bytes at once
    deep = powers_of_two(max(spec.r * spec.s * channels, least), 128 // size)[-2:]
    deep = [depth for depth in deep if depth >= least]
    whole = [size for size in deep if channels % size == 0]
    return [size for size in deep if size not in whole] + whole


def _splits(config: Conv2dConfig, spec: ConvSpec, gpu: Gpu) -> Iterator[Conv2dConfig]:
    """``config`` with split sums, while one wave of programs holds them and each has work."""
    total, programs = steps(spec, config), tiles(spec, config)
    for split_k in (2, 3, 4, 6, 8, 12, 16):
        if split_k * 4 <= total and programs * split_k <= gpu.multiprocessors * 2:
            yield replace(config, split_k=split_k)
