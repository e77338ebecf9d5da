"""Shapes at which an offset, a mask, a tile's edge, a layout or the compiler may be wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """A call of one operator.

    Attributes:
        name: says what is hard about it.
        operator: a function of :mod:`benchmarks.gpu_day.kernel_cases`.
        x: shape of the input.
        options: the rest of its arguments, beside the numbers in the tensors.
        work: multiply-adds, about, or elements where there are none: what interpreting it costs.
    """

    name: str
    operator: str
    x: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    work: float = 0.0

    @property
    def multiplies(self) -> bool:
        """Whether there are products, which TF32 is about."""
        return self.operator in ("conv2d", "bottleneck", "stem", "linear", "pool_linear", "far")


def _conv(
    name: str, x: tuple[int, ...], k: int, r: int = 1, s: int | None = None, **more: Any
) -> Case:
    s = s or r
    stride, groups = more.get("stride", 1), more.get("groups", 1)
    pixels = max(x[0], 1) * x[2] * x[3] / stride**2
    work = pixels * k * max(x[1] / groups, 32) * r * s  # groups are filled up
    return Case(name, "conv2d", x, {"k": k, "r": r, "s": s, **more}, work)


def _block(x: tuple[int, ...], width: int, k: int, **more: Any) -> Case:
    name = f"block of {x}, {width}, {k}, {more}"
    per_pixel = width * width * 9 / more.get("groups", 1) + width * k + k * more.get("next", 0)
    return Case(
        name, "bottleneck", x, {"width": width, "k": k, **more}, x[0] * x[2] * x[3] * per_pixel
    )


def _stem(name: str, x: tuple[int, ...], pool: int, **more: Any) -> Case:
    work = x[0] * x[2] * x[3] / 4 * x[1] * 49 * 64
    return Case(name, "stem", x, {"pool": pool, **more}, work)


def _simple(name: str, operator: str, x: tuple[int, ...], **options: Any) -> Case:
    elements = 1.0
    for size in (*x, options.get("k", 1)):
        elements *= size
    return Case(name, operator, x, options, elements)


_ONE = (1,) * 4
_EDGES = "borders"

CONVOLUTIONS = (
    _conv("1x1 by descriptors, residual", (2, 64, 56, 56), 256, residual=True),
    _conv("1x1 partial tiles", (3, 24, 13, 11), 40, residual=True),
    _conv("1x1, rows of 40 bytes", (2, 20, 9, 9), 24),
    _conv("1x1 stride 2", (2, 64, 15, 15), 96, stride=2),
    _conv("3x3", (2, 64, 56, 56), 64, 3, padding=_ONE),
    _conv("3x3 stride 2, odd image", (2, 128, 29, 27), 128, 3, stride=2, padding=_ONE),
    _conv("3x3 dilation 2, SAME", (1, 72, 17, 19), 48, 3, dilation=2, padding=(2, 2, 2, 2)),
    _conv("oblong, four paddings", (2, 32, 21, 18), 33, 5, 2, padding=(2, 0, 1, 1)),
    _conv("17x1 filter", (1, 16, 40, 5), 16, 17, 1, padding=(8, 0, 8, 0)),
    _conv("7x7/2 of three channels", (2, 3, 65, 63), 64, 7, stride=2, padding=(3,) * 4),
    _conv("one pixel", (1, 512, 1, 1), 2048, residual=True),
    _conv("one channel, one filter", (1, 1, 8, 8), 1, 3, padding=_ONE),
    _conv("nothing left by ReLU", (1, 8, 5, 5), 16, 3, padding=_ONE, below=True),
    _conv("split sums", (1, 512, 7, 7), 512, 3, padding=_ONE, residual=True),
    _conv("split sums in one launch", (1, 512, 7, 7), 512, 3, padding=_ONE, residual=True, split=6),
    _conv("the same of groups", (1, 128, 7, 7), 128, 3, groups=32, padding=_ONE, split=3),
    _conv("32 groups of 4", (2, 128, 28, 28), 128, 3, groups=32, padding=_ONE),
    _conv("32 groups of 4 and a NaN", (2, 128, 28, 28), 128, 3, groups=32, padding=_ONE, nan=True),
    _conv("depthwise", (2, 96, 14, 14), 96, 3, groups=96, padding=_ONE),
    _conv("NaN and infinity", (1, 64, 14, 14), 64, 3, padding=_ONE, nan=True),
    _conv("silu", (2, 48, 10, 10), 80, activation="silu"),
    _conv("hardswish", (2, 48, 10, 10), 80, activation="hardswish"),
)

BOXES = (
    _conv(
        "boxes, 7x7, residual", (5, 64, 7, 7), 64, 3, padding=_ONE, boxes=(2, 8, 8), residual=True
    ),
    _conv("boxes of single pixels", (37, 64, 7, 7), 96, 3, padding=_ONE, boxes=(64, 1, 1)),
    _conv("boxes, 13x29, C=8, K=24", (2, 8, 13, 29), 24, 3, padding=_ONE, boxes=(1, 8, 16)),
    _conv("boxes, one row", (3, 16, 1, 21), 40, 3, padding=_ONE, boxes=(4, 1, 16)),
    _conv("boxes, one column", (3, 16, 21, 1), 40, 3, padding=_ONE, boxes=(4, 16, 1)),
    _conv("boxes, one pixel", (1, 72, 1, 1), 64, 3, padding=_ONE, boxes=(1, 4, 4)),
    _conv("boxes, four paddings", (2, 32, 21, 18), 40, 5, 2, padding=(2, 0, 1, 1), boxes=(1, 8, 8)),
    _conv(
        "boxes, dilation 2", (1, 72, 17, 19), 48, 3, padding=(2,) * 4, dilation=2, boxes=(1, 8, 8)
    ),
    _conv("boxes, 2x2 padded by 4", (2, 16, 2, 3), 16, 2, padding=(4,) * 4, boxes=(1, 8, 8)),
    _conv(
        "boxes, NaN at borders", (2, 64, 14, 14), 64, 3, padding=_ONE, boxes=(1, 8, 8), nan=_EDGES
    ),
    _conv("boxes, no image", (0, 16, 8, 8), 16, 3, padding=_ONE, boxes=(1, 8, 8)),
    _conv("boxes, silu", (2, 48, 10, 10), 80, 3, padding=_ONE, boxes=(1, 8, 8), activation="silu"),
    _conv("boxes of 256 pixels", (2, 64, 56, 56), 64, 3, padding=_ONE, boxes=(1, 16, 16)),
)
"""By boxes of so many images, rows and columns, whatever would be chosen."""

BLOCKS = (
    _block((2, 64, 28, 28), 64, 256, shortcut=64, next=64),
    _block((2, 64, 29, 27), 64, 256, next=72),
    _block((1, 128, 28, 28), 128, 512, stride=2, shortcut=256),
    _block((3, 256, 14, 14), 256, 1024),
    _block((1, 512, 7, 7), 512, 2048),
    _block((2, 128, 28, 28), 128, 256, groups=32, next=128),
    _block((2, 128, 28, 28), 128, 256, groups=32, shortcut=64, nan=True),
    _block((1, 16, 6, 5), 16, 32, next=16),
)

STEMS = (
    _stem("stem", (2, 3, 64, 64), 3),
    _stem("stem of an odd image", (1, 3, 65, 63), 3),
    _stem("stem of one channel, pool 2", (2, 1, 40, 36), 2),
    _stem("stem with NaN", (2, 3, 64, 64), 3, nan=True),
    _stem("stem of bytes", (2, 3, 50, 66), 3, uint8=True),
)

OTHERS = (
    _simple("max pool, ceil mode", "max_pool2d", (2, 24, 13, 15), ceil=True),
    _simple("max pool with NaN", "max_pool2d", (2, 64, 28, 28), nan=True),
    _simple("average pool, padding not counted", "avg_pool2d", (2, 40, 15, 14)),
    _simple("mean of an odd image", "global_avg_pool", (3, 200, 7, 9)),
    _simple("mean with NaN", "global_avg_pool", (2, 512, 7, 7), nan=True),
    _simple("linear, 1000 classes", "linear", (5, 512), k=1000),
    _simple("linear, odd sizes", "linear", (3, 37), k=11),
    _simple("pool and linear", "pool_linear", (2, 256, 7, 7), k=101),
    _simple("scale and shift of odd channels", "scale_shift", (2, 27, 9, 11), nan=True),
    _simple("addition and ReLU", "add_relu", (3, 33, 10, 7), nan=True),
    _simple("to channels-last and back", "layout", (2, 67, 19, 23), nan=True),
)

FAR = Case("beyond 2^31 elements", "far", (), {}, 1e12)

EVERY = (*CONVOLUTIONS, *BOXES, *BLOCKS, *STEMS, *OTHERS, FAR)

SMALL = tuple(
    case
    for case in (*CONVOLUTIONS, *BOXES, *BLOCKS[-1:], *OTHERS)
    if all(side <= 30 for side in case.x[2:])
)
"""Few enough elements to be looked at one by one by compute-sanitizer."""
