"""The quantised operators once more, from their definitions: Python's integers and float32.

Written without torch's operators and independently of ``fastres.kernels.quantized``, number by
number: sums are Python's integers, and each product, sum and quotient of float32 is NumPy's, which
rounds it by itself. Slow: for images of a few pixels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.support.loops import max_pool2d, windows

OPERATORS = frozenset(
    {
        *("quantize", "dequantize", "quantized_conv2d", "quantized_bottleneck"),
        *("quantized_conv2d_max_pool2d", "quantized_linear", "quantized_global_avg_pool"),
        "quantized_add",
    }
)
"""The operators that are defined here, by name."""

F32 = np.float32


def activate(x: F32, name: str) -> F32:
    """In float32, step by step."""
    zero, three, six = F32(0), F32(3), F32(6)
    if name == "none":
        return x
    if name == "relu":
        return x if x > zero else zero
    if name == "relu6":
        return six if x > six else x if x > zero else zero
    assert name == "hardswish"
    gate = x + three
    gate = six if gate > six else gate if gate > zero else zero
    return F32(F32(x * gate) / six)


def rounded(y: F32, zero_point: int) -> int:
    """The nearest integer, of two the even one, with the zero point, within uint8."""
    if math.isinf(y):
        return 255 if y > 0 else 0
    return min(max(round(float(y)) + zero_point, 0), 255)


def counted_in(activations: Sequence[str], scale: float) -> float:
    """The unit of the numbers that are activated."""
    bends_at_zero_only = all(name in ("none", "relu") for name in activations)
    return scale if bends_at_zero_only else 1.0


def uint8(values: Sequence[int], shape: Sequence[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.uint8).view(list(shape))


def quantize(x: Tensor, scale: float, zero_point: int) -> Tensor:
    found = []
    for value in x.flatten().tolist():
        with np.errstate(over="ignore"):
            counted = F32(value) / F32(scale)
        found.append(zero_point if math.isnan(counted) else rounded(counted, zero_point))
    return uint8(found, x.shape)


def dequantize(q: Tensor, scale: float, zero_point: int) -> Tensor:
    found = [float(F32(value - zero_point) * F32(scale)) for value in q.flatten().tolist()]
    return torch.tensor(found, dtype=torch.float32).view(q.shape)


def quantized_conv2d(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pre_activation: str,
    activation: str,
    x_scale: float,
    x_zero_point: int,
    residual_scale: float,
    residual_zero_point: int,
    scale: float,
    zero_point: int,
) -> Tensor:
    n, _, h, w = x.shape
    k, per_group, r, s = weight.shape
    top, left, bottom, right = padding
    rows = windows(top + h + bottom, r, stride[0], dilation[0])
    columns = windows(left + w + right, s, stride[1], dilation[1])
    image, filters = x.tolist(), weight.tolist()
    unit = counted_in((pre_activation, activation), scale)
    found = []
    for i, f, (p, ys), (q, xs) in itertools.product(
        range(n), range(k), enumerate(rows), enumerate(columns)
    ):
        total = int(bias[f])
        for c, (a, y), (b, x_) in itertools.product(range(per_group), enumerate(ys), enumerate(xs)):
            if top <= y < top + h and left <= x_ < left + w:  # outside is what stands for zero
                channel = f // (k // groups) * per_group + c
                pixel = image[i][channel][y - top][x_ - left]
                total += (pixel - x_zero_point) * filters[f][c][a][b]
        number = F32(total) * F32(float(weight_scale[f]) * (x_scale / unit))
        number = activate(number, pre_activation)
        if residual is not None:
            addend = int(residual[i, f, p, q]) - residual_zero_point
            number = F32(number + F32(addend) * F32(residual_scale / unit))
        number = activate(number, activation)
        found.append(rounded(number * F32(unit / scale), zero_point))
    return uint8(found, (n, k, len(rows), len(columns)))


def quantized_bottleneck(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    expand_weight: Tensor,
    expand_weight_scale: Tensor,
    expand_bias: Tensor,
    residual: Tensor,
    shortcut_weight: Tensor | None,
    shortcut_weight_scale: Tensor | None,
    shortcut_bias: Tensor | None,
    shortcut_stride: Sequence[int],
    next_weight: Tensor | None,
    next_weight_scale: Tensor | None,
    next_bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    scales: Sequence[float],
    zero_points: Sequence[int],
) -> list[Tensor]:
    def product(
        image: Tensor, read: int, filters: Sequence[Any], written: int, activation: str
    ) -> Tensor:
        return pointwise(image, filters, activation, *units[read], *units[written])

    units = list(zip(scales, zero_points, strict=True))
    narrow = quantized_conv2d(
        *(x, weight, weight_scale, bias, None, stride, padding, dilation, groups),
        *("none", "relu", *units[0], 1.0, 0, *units[1]),
    )
    added = 2
    if shortcut_weight is not None:
        residual = residual[:, :, :: shortcut_stride[0], :: shortcut_stride[1]]
        filters = (shortcut_weight, shortcut_weight_scale, shortcut_bias)
        residual, added = product(residual, 2, filters, 3, "none"), 3
    expand = (expand_weight, expand_weight_scale, expand_bias)
    wide = pointwise(narrow, expand, "relu", *units[1], *units[4], residual, *units[added])
    if next_weight is None:
        return [wide]
    return [wide, product(wide, 4, (next_weight, next_weight_scale, next_bias), 5, "relu")]


def quantized_conv2d_max_pool2d(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    activation: str,
    pool_kernel: Sequence[int],
    pool_stride: Sequence[int],
    pool_padding: Sequence[int],
    x_scale: float,
    x_zero_point: int,
    scale: float,
    zero_point: int,
) -> Tensor:
    given: list[Any] = [x, weight, weight_scale, bias, None, stride, padding, (1, 1), 1]
    units = (x_scale, x_zero_point, 1.0, 0, scale, zero_point)
    y = quantized_conv2d(*[*given, "none", activation, *units])
    pooled = max_pool2d(y.double(), pool_kernel, pool_stride, pool_padding, (1, 1), False)
    return pooled.to(torch.uint8)


def pointwise(
    x: Tensor,
    filters: Sequence[Any],
    activation: str,
    x_scale: float,
    x_zero_point: int,
    scale: float,
    zero_point: int,
    residual: Tensor | None = None,
    residual_scale: float = 1.0,
    residual_zero_point: int = 0,
) -> Tensor:
    """A convolution with filters of one pixel, a weight with its scale and bias."""
    units = (x_scale, x_zero_point, residual_scale, residual_zero_point, scale, zero_point)
    given: list[Any] = [x, *filters, residual, (1, 1), (0, 0, 0, 0), (1, 1), 1]
    return quantized_conv2d(*[*given, "none", activation, *units])


def quantized_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    activation: str,
    x_scale: float,
    x_zero_point: int,
    scale: float | None,
    zero_point: int,
) -> Tensor:
    shape = (*x.shape[:-1], weight.shape[0])
    unit = 1.0 if scale is None else counted_in((activation,), scale)
    numbers, filters = [], weight.tolist()
    for row in x.reshape(-1, x.shape[-1]).tolist():
        for f, factors in enumerate(filters):
            products = (
                (value - x_zero_point) * factor for value, factor in zip(row, factors, strict=True)
            )
            number = F32(int(bias[f]) + sum(products))
            number = number * F32(float(weight_scale[f]) * (x_scale / unit))
            numbers.append(activate(number, activation))
    if scale is None:
        return torch.tensor(list(map(float, numbers)), dtype=torch.float32).view(shape)
    return uint8([rounded(each * F32(unit / scale), zero_point) for each in numbers], shape)


def quantized_global_avg_pool(
    x: Tensor, keepdim: bool, x_scale: float, x_zero_point: int, scale: float, zero_point: int
) -> Tensor:
    n, c, h, w = x.shape
    found = []
    for channel in x.reshape(n * c, h * w).tolist():
        total = sum(value - x_zero_point for value in channel)
        found.append(rounded(F32(total) * F32(x_scale / scale) / F32(h * w), zero_point))
    return uint8(found, (n, c, 1, 1) if keepdim else (n, c))


def quantized_add(
    x: Tensor,
    y: Tensor,
    activation: str,
    x_scale: float,
    x_zero_point: int,
    y_scale: float,
    y_zero_point: int,
    scale: float,
    zero_point: int,
) -> Tensor:
    unit = counted_in((activation,), scale)
    found = []
    for a, b in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True):
        number = F32(a - x_zero_point) * F32(x_scale / unit)
        number = number + F32(b - y_zero_point) * F32(y_scale / unit)
        found.append(rounded(activate(number, activation) * F32(unit / scale), zero_point))
    return uint8(found, x.shape)
