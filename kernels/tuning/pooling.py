"""How the pooling kernels and the classifier are launched."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from fastres.errors import OptionError
from fastres.kernels.spec import PoolLinearSpec
from fastres.kernels.tuning.cost import NOTHING, Estimate, Loop, Work, estimate
from fastres.kernels.tuning.elementwise import power_of_two_from
from fastres.kernels.tuning.gpus import Gpu
from fastres.kernels.tuning.traffic import ELEMENT_BYTES, flops, least_bytes


@dataclass(frozen=True)
class PoolConfig:
    """How a pooling over windows, or over whole images, is launched.

    Attributes:
        block_m: output pixels of one program's tile; for whole images, pixels read per step.
        block_c: its channels.
        num_warps: warps per program.
    """

    block_m: int
    block_c: int
    num_warps: int = 4

    def __post_init__(self) -> None:
        _check_powers_of_two(block_m=self.block_m, block_c=self.block_c)


@dataclass(frozen=True)
class PoolLinearConfig:
    """How the classifier on mean channels is launched.

    Attributes:
        block_n: classes of one program.
        block_k: channels per step.
        block_p: pixels per step.
        num_warps: warps per program.
    """

    block_n: int
    block_k: int
    block_p: int
    num_warps: int = 4

    def __post_init__(self) -> None:
        _check_powers_of_two(block_n=self.block_n, block_k=self.block_k, block_p=self.block_p)


def choose_pool2d(channels: int, element_bytes: int) -> PoolConfig:
    """For pooling over windows: 32 bytes of a tile per thread, as many of them channels as exist.

    Channels are contiguous: 64 of two bytes make a whole cache line.
    """
    numbers = 128 * 32 // element_bytes
    block_c = min(power_of_two_from(channels), 64)
    return PoolConfig(numbers // block_c, block_c)


def choose_global_avg_pool(channels: int, pixels: int, element_bytes: int) -> PoolConfig:
    """For means over whole images: few channels per program, since only they make programs.

    16 bytes of channels per thread at least; a tile is no higher than the image.
    """
    block_c = min(power_of_two_from(channels), 64 // element_bytes)
    return PoolConfig(min(power_of_two_from(pixels), 128), block_c)


def pool_linear_candidates(spec: PoolLinearSpec, gpu: Gpu) -> Iterator[PoolLinearConfig]:
    """Every configuration worth considering; the first ones make the fewest programs.

    A tile of weights has 8 numbers for each thread: of two bytes, they are one access of 16.
    """
    del gpu  # nothing here is bound by what an architecture lacks
    block_p = min(power_of_two_from(spec.h * spec.w), 64)
    most = power_of_two_from(spec.c)
    for block_n in (32, 16, 8):
        for num_warps in (4, 8):
            block_k = num_warps * 32 * 8 // block_n
            yield PoolLinearConfig(block_n, min(block_k, most), block_p, num_warps)


def choose_pool_linear(spec: PoolLinearSpec, gpu: Gpu) -> PoolLinearConfig:
    """The most classes per program, so the fewest repeated means, with which the GPU is full.

    Of the numbers of warps, the one that the cost model finds faster: more of them take longer
    steps, and fewer, which matters while every step waits for its weights.
    """
    found = list(pool_linear_candidates(spec, gpu))
    filling = [
        config
        for config in found
        if spec.n * math.ceil(spec.k / config.block_n) >= gpu.multiprocessors
    ]
    classes = (filling or found[-1:])[0].block_n
    return min(
        (config for config in found if config.block_n == classes),
        key=lambda config: estimate_pool_linear(spec, config, "fp16", gpu).seconds,
    )


def estimate_pool_linear(
    spec: PoolLinearSpec, config: PoolLinearConfig, precision: str, gpu: Gpu
) -> Estimate:
    """The modelled time; see :mod:`fastres.kernels.tuning.cost`.

    Every program reads its image anew, through L2; products are plain float32 arithmetic.
    """
    programs = spec.n * math.ceil(spec.k / config.block_n)
    if programs == 0:
        return NOTHING
    pixels = spec.h * spec.w
    rows = config.block_n + math.ceil(pixels / config.block_p) * config.block_p
    numbers = config.block_k * rows
    size = ELEMENT_BYTES[precision]
    loop = Loop(
        steps=math.ceil(spec.c / config.block_k),
        flops=2.0 * numbers,
        fetched_bytes=config.block_k * (pixels + config.block_n) * size,
        instructions=40 + 3.0 * numbers / (config.num_warps * gpu.architecture.warp_size),
        stages=1,
    )
    work = Work(
        programs=programs,
        num_warps=config.num_warps,
        registers=64,
        shared_bytes=2048,
        loops=(loop,),
        bytes=float(least_bytes(spec, precision)),
        flops=float(flops(spec)),
    )
    return estimate(work, "fp32", gpu)


def _check_powers_of_two(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1 or size & (size - 1):
            raise OptionError(f"{name}={size}: expected a power of two")
