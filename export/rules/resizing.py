"""Resizing of images: ``upsample_*`` and fastres's ``resize_crop``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from fastres.export.builder import Builder
from fastres.export.rules.activations import clip
from fastres.ir import ops
from fastres.ir.graph import arguments
from fastres.ir.views import ResizeCrop

aten = torch.ops.aten

ANTIALIASING = 18
"""Version of the operators from which on Resize can widen its filter."""


def _filter(b: Builder, mode: str, antialias: bool) -> dict[str, Any]:
    """Attributes of Resize; torch's cubic filter is Keys' with a = -0.75, and -0.5 when wide."""
    if not antialias:
        return {"mode": mode} | ({"cubic_coeff_a": -0.75} if mode == "cubic" else {})
    if b.opset < ANTIALIASING:
        raise b.refusal(f"resizing with antialiasing needs opset {ANTIALIASING}")
    wide = {"mode": mode, "antialias": 1, "exclude_outside": 1}
    return wide | ({"cubic_coeff_a": -0.5} if mode == "cubic" else {})


def _upsample(mode: str, antialias: bool = False) -> Callable[[Builder, fx.Node], str]:
    """``upsample_nearest2d``, ``..._bilinear2d``, ``..._bicubic2d`` and their antialiased forms."""

    def rule(b: Builder, node: fx.Node) -> str:
        x = arguments(node)[0]
        settings = _filter(b, mode, antialias)
        corners = mode != "nearest" and bool(b.argument(2, "align_corners", False))
        if mode == "nearest":
            settings |= {"nearest_mode": "floor"}
            where = "asymmetric"
        else:
            where = "align_corners" if corners else "pytorch_half_pixel"
        by_sizes = b.argument(1, "output_size")
        factors = b.argument(3 if mode != "nearest" else 2, "scale_factors")
        if by_sizes is None and isinstance(factors, Sequence):
            scales = torch.tensor(
                [1.0, 1.0, *map(float, factors)], dtype=torch.float32, device="cpu"
            )
            x_name = [b.tensor(x), "", b.constant(scales)]
        else:
            x_name = [b.tensor(x), "", "", _sizes(b, node, x)]
        return b.emit("Resize", *x_name, coordinate_transformation_mode=where, **settings)

    return rule


def _sizes(b: Builder, node: fx.Node, x: fx.Node) -> str:
    sizes: list[int | str] = [b.size_of(x, 0), b.size_of(x, 1)]
    for axis in (2, 3):
        fixed = b.size(node, axis)
        sizes.append(b.scalar(b.argument(1, "output_size")[axis - 2]) if fixed is None else fixed)
    return b.as_sizes(sizes)


_MODES = {"nearest": "nearest", "bilinear": "linear", "bicubic": "cubic"}


def _resize_crop(b: Builder, node: fx.Node) -> str:
    """One direction after the other, rounded to bytes after each, then the middle.

    A pixel may differ by one level where a sum of products lies within its rounding of a half:
    PyTorch sums bytes in whole numbers of limited precision.
    """
    view = ResizeCrop.of(node)
    image, resize, crop = view.image, view.resize, view.crop
    height, width = b.size_of(image, 2), b.size_of(image, 3)
    shorter = _arithmetic(b, "Min", height, width)
    rows, columns = (
        _arithmetic(b, "Div", _arithmetic(b, "Mul", resize, side), shorter)
        for side in (height, width)
    )
    first: list[int | str] = [b.size_of(image, 0), b.size_of(image, 1)]
    mode = _MODES[view.interpolation]
    settings = _filter(b, mode, bool(view.antialias) and mode != "nearest")
    if mode == "nearest":
        settings |= {"nearest_mode": "round_prefer_ceil"}
    x = b.tensor(image)
    is_bytes = b.dtype(x) == torch.uint8
    x = b.cast(x, torch.float32) if is_bytes else x
    for sizes in ([*first, height, columns], [*first, rows, columns]):
        x_name = (x, "", "", b.as_sizes(sizes))
        x = b.emit("Resize", *x_name, coordinate_transformation_mode="half_pixel", **settings)
        if is_bytes and mode != "nearest":
            x = clip(b, b.emit("Round", x), 0.0, 255.0)
    starts = [_half(b, _arithmetic(b, "Sub", size, crop)) for size in (rows, columns)]
    ends = [_arithmetic(b, "Add", start, crop) for start in starts]
    x = b.emit("Slice", x, b.as_sizes(starts), b.as_sizes(ends), b.integers(2, 3))
    return b.cast(x, torch.uint8) if is_bytes else x


def _half(b: Builder, size: int | str) -> int | str:
    """``round(size / 2)``, half to even."""
    half = _arithmetic(b, "Div", size, 2)
    odd = _arithmetic(b, "Sub", size, _arithmetic(b, "Mul", half, 2))
    quarter = _arithmetic(b, "Mul", _arithmetic(b, "Div", half, 2), 2)
    up = _arithmetic(b, "Mul", odd, _arithmetic(b, "Sub", half, quarter))
    return _arithmetic(b, "Add", half, up)


_NOW: dict[str, Callable[[int, int], int]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": lambda a, b: a // b,
    "Min": min,
}


def _arithmetic(b: Builder, operator: str, first: int | str, second: int | str) -> int | str:
    """Sizes that are not negative: now where both are numbers, else in the file."""
    if isinstance(first, int) and isinstance(second, int):
        return _NOW[operator](first, second)
    return b.emit(operator, b.as_sizes([first]), b.as_sizes([second]))


RULES: dict[Any, Any] = {
    ops.resize_crop: _resize_crop,
    **{
        getattr(packet, overload): _upsample(mode, antialias)
        for packet, mode, antialias in (
            (aten.upsample_nearest2d, "nearest", False),
            (aten.upsample_bilinear2d, "linear", False),
            (aten.upsample_bicubic2d, "cubic", False),
            (aten._upsample_bilinear2d_aa, "linear", True),
            (aten._upsample_bicubic2d_aa, "cubic", True),
        )
        for overload in ("default", "vec")
    },
}
"""Operator -> translation."""
