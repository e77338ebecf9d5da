"""Tile sizes and pipeline depth of the convolution kernels: ``conv2d``, ``pointwise``, ``linear``.

M, N and K are the matrix product's: output pixels, filters, and filter area times channels; the
last two of one super-group (:mod:`fastres.kernels.packing`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from fastres.errors import OptionError
from fastres.kernels.gpus import Gpu
from fastres.kernels.packing import super_groups
from fastres.spec import ConvSpec

ELEMENT_BYTES: dict[str, int] = {"fp16": 2, "bf16": 2, "tf32": 4, "fp32": 4}


@dataclass(frozen=True)
class Conv2dConfig:
    """How one convolution is launched.

    Attributes:
        block_m, block_n: output pixels and filters of one program's tile.
        block_k: products added per step of the main loop.
        split_k: programs that share one tile's products; their sums are added by a second kernel.
        group_m: tiles that are walked downwards before the next column, for L2.
        num_warps: warps per program.
        num_stages: loop steps in flight.
        descriptors: copy tiles by tensor descriptor, where :func:`allows_descriptors` says so.

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

    def shared_bytes(self, precision: str) -> int:
        """Shared memory for the tiles of all loop steps in flight."""
        tile = (self.block_m + self.block_n) * self.block_k * ELEMENT_BYTES[precision]
        return tile * max(self.num_stages - 1, 1)


def steps(spec: ConvSpec, config: Conv2dConfig) -> int:
    """Steps that the main loop takes over all of K."""
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
    rows = math.ceil(spec.n * spec.p * spec.q / config.block_m)
    columns = math.ceil(spec.k // groups / config.block_n)
    return rows * columns * groups * used_splits(spec, config)


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
    for letter, channels in (("C", spec.c), ("K", spec.k)):
        if channels * ELEMENT_BYTES[precision] % 16:
            return f"rows of {letter}={channels} not a multiple of 16 bytes"
    return None


def candidates(spec: ConvSpec, precision: str, gpu: Gpu) -> Iterator[Conv2dConfig]:
    """Every configuration worth considering: those that fit the problem and the GPU."""
    groups = super_groups(spec.c, spec.k, spec.groups)
    k_size = spec.r * spec.s * (spec.c // groups)
    wide = _up_to(spec.k // groups, 16, 256)
    high = [size for size in _up_to(spec.n * spec.p * spec.q, 16, 256) if size >= 32] or [16]
    deep = _up_to(k_size, 16, 32 if ELEMENT_BYTES[precision] == 4 else 64)
    by_descriptor = [False]
    if gpu.architecture.tensor_descriptors and allows_descriptors(spec, precision) is None:
        by_descriptor = [True, False]
    for block_m in high:
        for block_n in wide:
            for block_k in deep[-2:]:
                for num_warps in (4, 8):
                    for num_stages in (2, 3, 4, 5):
                        for descriptors in by_descriptor:
                            one = Conv2dConfig(
                                block_m,
                                block_n,
                                block_k,
                                num_warps=num_warps,
                                num_stages=num_stages,
                                descriptors=descriptors,
                            )
                            if not _fits(one, precision, gpu):
                                continue
                            yield one
                            if not descriptors:
                                yield from _splits(one, spec, gpu)


def choose_conv2d(spec: ConvSpec, precision: str, gpu: Gpu) -> Conv2dConfig:
    """Large tiles while they fill the GPU, smaller ones and split sums when they do not."""
    groups = super_groups(spec.c, spec.k, spec.groups)
    narrow = ELEMENT_BYTES[precision] == 2
    largest = 64 if precision == "fp32" else 128
    block_n = _up_to(spec.k // groups, 16, largest)[-1]
    block_m = _up_to(spec.n * spec.p * spec.q, 16, largest)[-1]
    block_k = _up_to(spec.r * spec.s * (spec.c // groups), 16, 64 if narrow else 32)[-1]
    if precision == "fp32":
        block_k = 16
    descriptors = gpu.architecture.tensor_descriptors and not allows_descriptors(spec, precision)
    config = _launched(block_m, block_n, block_k, descriptors)
    while tiles(spec, config) < gpu.multiprocessors and max(block_m, block_n) > 32:
        if block_m >= block_n:
            block_m //= 2
        else:
            block_n //= 2
        config = _launched(block_m, block_n, block_k, descriptors)
    while not _fits(config, precision, gpu) and config.num_stages > 2:
        config = _launched(block_m, block_n, block_k, descriptors, config.num_stages - 1)
    if tiles(spec, config) * 2 <= gpu.multiprocessors:
        plain = _launched(block_m, block_n, block_k, False, config.num_stages)
        config = max(
            _splits(plain, spec, gpu), key=lambda split: tiles(spec, split), default=config
        )
    return config


def _launched(
    block_m: int, block_n: int, block_k: int, descriptors: bool, num_stages: int = 4
) -> Conv2dConfig:
    num_warps = 8 if block_m * block_n >= 128 * 128 else 4
    return Conv2dConfig(
        block_m,
        block_n,
        block_k,
        num_warps=num_warps,
        num_stages=num_stages,
        descriptors=descriptors,
    )


def _up_to(size: int, smallest: int, largest: int) -> list[int]:
    """Powers of two from ``smallest`` to the first that covers ``size``, or ``largest``."""
    sizes = [smallest]
    while sizes[-1] < min(size, largest):
        sizes.append(sizes[-1] * 2)
    return sizes


def _fits(config: Conv2dConfig, precision: str, gpu: Gpu) -> bool:
    """Whether tiles fit into shared memory, and the sums into half of a thread's registers."""
    target = gpu.architecture
    sums = config.block_m * config.block_n // (config.num_warps * target.warp_size)
    enough = config.block_m * config.block_n >= 16 * 16 * config.num_warps
    shared = config.shared_bytes(precision) <= target.shared_bytes_per_block
    return sums <= 128 and enough and shared


def _splits(config: Conv2dConfig, spec: ConvSpec, gpu: Gpu) -> Iterator[Conv2dConfig]:
    """``config`` with split sums, while one wave of programs holds them and each has work."""
    total, programs = steps(spec, config), tiles(spec, config)
    for split_k in (2, 3, 4, 6, 8, 12, 16):
        if split_k * 4 <= total and programs * split_k <= gpu.multiprocessors * 2:
            yield Conv2dConfig(
                config.block_m,
                config.block_n,
                config.block_k,
                split_k=split_k,
                num_warps=config.num_warps,
                num_stages=config.num_stages,
            )
