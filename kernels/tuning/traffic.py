"""Bytes and FLOPs that no kernel for an operator can do without: each tensor once, no padding.

A strided 1x1 convolution reads only the pixels under its filter. Biases are too small to count.
"""

from __future__ import annotations

from typing import TypeAlias

from fastres.dtypes import PRECISIONS
from fastres.kernels.spec import BottleneckSpec, ConvSpec, PoolLinearSpec, StemSpec

ELEMENT_BYTES: dict[str, int] = {name: row.bytes for name, row in PRECISIONS.items()}
"""Of one activation or weight, by precision."""

Spec: TypeAlias = "ConvSpec | BottleneckSpec | StemSpec | PoolLinearSpec"


def least_bytes(spec: Spec, precision: str, residual: bool = False) -> int:
    """Bytes from and to device memory.

    Args:
        residual: whether a convolution's epilogue reads a tensor like its output. A bottleneck
            always does.
    """
    size = ELEMENT_BYTES[precision]
    total = _elements(spec, residual) * size
    if isinstance(spec, StemSpec) and spec.uint8:
        total -= _image(spec.conv) * (size - 1)
    return total


def flops(spec: Spec) -> int:
    """Multiplications and additions; those of pooling are too few to count."""
    if isinstance(spec, StemSpec):
        return 2 * spec.conv.multiply_adds
    if isinstance(spec, PoolLinearSpec):
        return 2 * spec.n * spec.c * spec.k + spec.n * spec.c * spec.h * spec.w
    return 2 * spec.multiply_adds


def _elements(spec: Spec, residual: bool) -> int:
    if isinstance(spec, ConvSpec):
        written = spec.n * spec.k * spec.p * spec.q
        return _read(spec) + written * (2 if residual else 1)
    if isinstance(spec, StemSpec):
        return _read(spec.conv) + spec.conv.n * spec.conv.k * spec.p * spec.q
    if isinstance(spec, PoolLinearSpec):
        return spec.n * spec.c * spec.h * spec.w + spec.k * spec.c + spec.n * spec.k
    pixels = spec.conv.n * spec.conv.p * spec.conv.q
    wide = pixels * spec.expand_k
    identity = wide if spec.shortcut is None else _read(spec.shortcut)
    following = spec.next_k or 0
    weights = spec.expand_k * (spec.conv.k + following)
    return _read(spec.conv) + identity + weights + wide + pixels * following


def _read(spec: ConvSpec) -> int:
    """Elements of image and filters that a convolution reads."""
    filters = spec.k * spec.r * spec.s * (spec.c // spec.groups)
    return _image(spec) + filters


def _image(spec: ConvSpec) -> int:
    """Elements of the image that a convolution reads."""
    pixels = min(spec.h * spec.w, spec.p * spec.q * spec.r * spec.s)
    return spec.n * spec.c * pixels
