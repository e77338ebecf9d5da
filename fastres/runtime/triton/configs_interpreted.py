"""Configurations for Triton's interpreter: the fewest, largest tiles.

Interpreted, every operation on a tile costs about the same whatever the tile's size, so what is
best on a GPU takes hours. The kernels do not care; limits of registers and shared memory do not
exist here.
"""

from __future__ import annotations

from fastres.kernels.packing import super_groups
from fastres.kernels.spec import BottleneckSpec, ConvSpec, PoolLinearSpec, StemSpec
from fastres.kernels.tuning.bottleneck import BottleneckConfig, least_depth
from fastres.kernels.tuning.conv2d import Conv2dConfig
from fastres.kernels.tuning.elementwise import power_of_two_from
from fastres.kernels.tuning.pooling import PoolLinearConfig
from fastres.kernels.tuning.stem import StemConfig

LARGEST = 256
"""Of a tile's sides; beyond that, numbers cost more than operations."""


def conv2d(spec: ConvSpec, precision: str = "fp32") -> Conv2dConfig:
    """One tile for small images and few filters; of int8, steps of 32 bytes at least."""
    groups = super_groups(spec.c, spec.k, spec.groups)
    depth = max(spec.r * spec.s * spec.c // groups, least_depth(precision))
    return Conv2dConfig(
        _side(spec.n * spec.p * spec.q), _side(spec.k // groups), _side(depth, 2 * LARGEST)
    )


def bottleneck(spec: BottleneckSpec, precision: str = "fp32") -> BottleneckConfig:
    """As many pixels per program, channels per step and filters of ``wide`` as there are."""
    rows, least = spec.conv.n * spec.conv.p * spec.conv.q, least_depth(precision)
    depth, width = (_side(max(least, size)) for size in (spec.conv.c, spec.expand_k))
    return BottleneckConfig(_side(rows), depth, width, 4, 2)


def stem(spec: StemSpec) -> StemConfig:
    """Tiles of all pixels, if they are few, and all filters."""
    side = 16 if max(spec.conv.p, spec.conv.q) <= 16 else 32
    return StemConfig(side, side, _side(spec.conv.k), 4, 2)


def pool_linear(spec: PoolLinearSpec) -> PoolLinearConfig:
    """All classes and pixels in one program."""
    return PoolLinearConfig(
        _side(spec.k, 4 * LARGEST), _side(spec.c), min(power_of_two_from(spec.h * spec.w), 64)
    )


def _side(size: int, largest: int = LARGEST) -> int:
    return max(16, min(power_of_two_from(size), largest))
