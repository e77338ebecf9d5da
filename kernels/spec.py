"""The letters, once for the whole project, and the arithmetic of one convolution.

======  ==========================================  ======  =================================
letter  meaning                                     letter  meaning
======  ==========================================  ======  =================================
N       images in the batch                         K       filters, i.e. output channels
C       input channels                              R, S    filter height and width
H, W    input height and width, pixels              P, Q    output height and width, pixels
======  ==========================================  ======  =================================

Four-sided padding is ``(top, left, bottom, right)`` in pixels, the order of the ONNX ``pads``
attribute (https://onnx.ai/onnx/operators/onnx__Conv.html).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

Pair: TypeAlias = tuple[int, int]
Padding: TypeAlias = tuple[int, int, int, int]


def pair(value: int | Sequence[int]) -> Pair:
    """``3 -> (3, 3)``, ``[3] -> (3, 3)``, ``[3, 5] -> (3, 5)``: how torch reads a pair."""
    if isinstance(value, int):
        return value, value
    first, *rest = value
    return int(first), int(rest[0] if rest else first)


def is_symmetric(padding: Sequence[int]) -> bool:
    """Whether top equals bottom and left equals right, as torch's own convolutions require."""
    top, left, bottom, right = padding
    return top == bottom and left == right


def same_padding(kernel: Pair, dilation: Pair) -> Padding:
    """torch's ``padding="same"`` (stride 1): an even filter's odd pixel goes bottom and right."""
    total_h, total_w = (d * (k - 1) for k, d in zip(kernel, dilation, strict=True))
    return total_h // 2, total_w // 2, total_h - total_h // 2, total_w - total_w // 2


@dataclass(frozen=True)
class ConvSpec:
    """One two-dimensional convolution: everything but the data.

    ``P = floor((H + top + bottom - dilation_h * (R - 1) - 1) / stride_h) + 1``, Q likewise
    (Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016).
    """

    n: int
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    stride: Pair = (1, 1)
    padding: Padding = (0, 0, 0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    @property
    def p(self) -> int:
        """Output height in pixels."""
        span = self.h + self.padding[0] + self.padding[2] - self.dilation[0] * (self.r - 1) - 1
        return span // self.stride[0] + 1

    @property
    def q(self) -> int:
        """Output width in pixels."""
        span = self.w + self.padding[1] + self.padding[3] - self.dilation[1] * (self.s - 1) - 1
        return span // self.stride[1] + 1

    @property
    def multiply_adds(self) -> int:
        """Multiplications, each with its addition; padding pixels are counted like any other."""
        per_pixel = (self.c // self.groups) * self.r * self.s * self.k
        return self.n * self.p * self.q * per_pixel


@dataclass(frozen=True)
class BottleneckSpec:
    """A bottleneck's tail as one kernel, ``fastres::bottleneck`` or ``quantized_bottleneck``.

    Attributes:
        conv: its convolution with larger filters; its output is the narrow tensor.
        expand_k: channels of the wide tensor [N, expand_k, P, Q].
        shortcut: the 1x1 convolution on the residual, None where the residual is added as it is.
        next_k: filters of the next block's 1x1 convolution of the wide tensor, None without it.
        quantized: of uint8 and int8.
    """

    conv: ConvSpec
    expand_k: int
    shortcut: ConvSpec | None = None
    next_k: int | None = None
    quantized: bool = False

    @property
    def multiply_adds(self) -> int:
        """Of all its products together."""
        pixels = self.conv.n * self.conv.p * self.conv.q
        tail = pixels * self.expand_k * (self.conv.k + (self.next_k or 0))
        shortcut = 0 if self.shortcut is None else self.shortcut.multiply_adds
        return self.conv.multiply_adds + tail + shortcut


@dataclass(frozen=True)
class StemSpec:
    """A convolution whose activated output is only max-pooled, ``fastres::conv2d_max_pool2d``.

    The pooling's ``padding`` is (vertical, horizontal), the same on both sides. ``uint8``: the
    image comes as bytes [N, H, W, C], which the kernel normalises. ``quantized``: of uint8 and
    int8, ``fastres::quantized_conv2d_max_pool2d``.
    """

    conv: ConvSpec
    pool_kernel: Pair
    pool_stride: Pair
    pool_padding: Pair
    uint8: bool = False
    quantized: bool = False

    @property
    def p(self) -> int:
        """Pooled height in pixels."""
        span = self.conv.p + 2 * self.pool_padding[0] - self.pool_kernel[0]
        return span // self.pool_stride[0] + 1

    @property
    def q(self) -> int:
        """Pooled width in pixels."""
        span = self.conv.q + 2 * self.pool_padding[1] - self.pool_kernel[1]
        return span // self.pool_stride[1] + 1


@dataclass(frozen=True)
class PoolLinearSpec:
    """A classifier on the mean of all pixels, ``fastres::pool_linear``: [N, C, H, W] -> [N, K]."""

    n: int
    c: int
    h: int
    w: int
    k: int
