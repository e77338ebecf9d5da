"""The quantised operators in plain PyTorch: their definition, integer by integer.

A quantised tensor is uint8: ``q`` stands for ``(q - zero_point) * scale``, one scale and zero point
a tensor. Weights are int8 with one scale a filter, and 0 stands for 0; biases are int32 in units of
``x_scale * weight_scale``. Sums of products are exact integers. What is made of them is float32
arithmetic in which every product and every sum is rounded by itself, half to even at the end: the
same numbers wherever it is done, so that every kernel has to give these integers bit for bit.

References: Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference" (2018); ONNX's QuantizeLinear and DequantizeLinear.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastres.kernels import reference

HOMOGENEOUS = ("none", "relu")
"""Activations for which ``f(c * x) == c * f(x)``: they can be applied in the output's unit."""


def quantize(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """``round(x / scale) + zero_point`` as uint8; what is beyond is the least or the most.

    Args:
        x: float32, finite; NaN has no integer and becomes ``zero_point``.
        scale: a positive float32.
        zero_point: 0 to 255.
    """
    divisor = torch.full((), scale, dtype=torch.float32, device=x.device)
    return _rounded(torch.nan_to_num(x.float() / divisor, nan=0.0), zero_point)


def dequantize(q: Tensor, scale: float, zero_point: int) -> Tensor:
    """``(q - zero_point) * scale`` as float32."""
    return _centred(q, zero_point).float() * _scalar(scale, q)


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
    """``activation(pre_activation(conv(x, weight) + bias) + residual)``, rounded once.

    Args:
        x: [N, C, H, W] uint8.
        weight: [K, C / groups, R, S] int8, ``weight_scale`` [K] float32.
        bias: [K] int32.
        residual: [N, K, P, Q] uint8 or None.
        stride, padding, dilation, groups, pre_activation, activation: as
            :func:`fastres.kernels.reference.conv2d`; the image is padded with its zero point.
        scale, zero_point: of the result.

    Returns:
        [N, K, P, Q] uint8.
    """
    top, left, bottom, right = padding
    centred = F.pad(_centred(x, x_zero_point).double(), (left, right, top, bottom))
    sums = torch.conv2d(
        centred, weight.double(), None, list(stride), [0, 0], list(dilation), groups
    )  # exact: integers below 2^53
    sums = sums + bias.double().view(1, -1, 1, 1)
    unit = output_unit((pre_activation, activation), scale)
    multiplier = multipliers(x_scale, weight_scale, unit)
    y = activate(sums.float() * multiplier.view(1, -1, 1, 1), pre_activation)
    if residual is not None:
        factor = _scalar(ratio(residual_scale, unit), x)
        y = y + _centred(residual, residual_zero_point).float() * factor
    y = activate(y, activation)
    return _rounded(y * _scalar(ratio(unit, scale), x), zero_point)


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
    """A bottleneck's tail: its convolutions one after the other, each rounded to uint8.

    ::

        narrow = relu(conv(x))
        identity = residual, or conv1x1(residual)    rounded too
        wide = relu(conv1x1(narrow) + identity)
        next = relu(conv1x1(wide))

    Args:
        x: [N, C, H, W] uint8.
        weight, expand_weight, shortcut_weight, next_weight: int8, each with its ``_scale`` [K]
            float32 and its bias [K] int32; those of the shortcut and of the next block may be None.
        residual: [N, K, P, Q] uint8, or with a shortcut the block's input [N, C2, H2, W2].
        shortcut_stride, stride, padding, dilation, groups: as
            :func:`fastres.kernels.reference.bottleneck`.
        scales, zero_points: six each, of ``x``, ``narrow``, ``residual``, the shortcut's result,
            ``wide`` and ``next``; those of what there is not count for nothing.

    Returns:
        ``wide`` [N, K, P, Q] uint8; with the next block's weights also ``next`` [N, K3, P, Q].
    """
    given, between, identity, beside, last, following = zip(scales, zero_points, strict=True)
    common: list[Any] = [x, weight, weight_scale, bias, None, stride, padding, dilation, groups]
    narrow = quantized_conv2d(*[*common, "none", "relu", *given, 1.0, 0, *between])
    if shortcut_weight is not None:
        common = [residual, shortcut_weight, shortcut_weight_scale, shortcut_bias, None]
        common += [shortcut_stride, *_POINTWISE, "none", "none", *identity, 1.0, 0, *beside]
        residual, identity = quantized_conv2d(*common), beside
    common = [narrow, expand_weight, expand_weight_scale, expand_bias, residual, (1, 1)]
    common += [*_POINTWISE, "none", "relu", *between, *identity, *last]
    wide = quantized_conv2d(*common)
    if next_weight is None:
        return [wide]
    common = [wide, next_weight, next_weight_scale, next_bias, None, (1, 1)]
    common += [*_POINTWISE, "none", "relu", *last, 1.0, 0, *following]
    return [wide, quantized_conv2d(*common)]


_POINTWISE = ((0, 0, 0, 0), (1, 1), 1)
"""Padding, dilation and groups of a 1x1 convolution."""


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
    """The stem: the largest byte of ``activation(conv(x, weight) + bias)`` under each window.

    The convolution is as in :func:`quantized_conv2d`, without dilation and groups; the pool, of
    its bytes, as in :func:`fastres.kernels.reference.max_pool2d`, without dilation and ceil mode.

    Returns:
        [N, K, P', Q'] uint8, where P' and Q' count the pool's windows.
    """
    given: list[Any] = [x, weight, weight_scale, bias, None, stride, padding, (1, 1), 1]
    units = (x_scale, x_zero_point, 1.0, 0, scale, zero_point)
    y = quantized_conv2d(*[*given, "none", activation, *units])
    return reference.max_pool2d(y, pool_kernel, pool_stride, pool_padding, (1, 1), False)


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
    """``activation(x @ weight.T + bias)``: [N, C] uint8 with [K, C] int8 gives [N, K].

    uint8, or float32 where there is no ``scale``.
    """
    sums = F.linear(_centred(x, x_zero_point).double(), weight.double()) + bias.double()
    unit = 1.0 if scale is None else output_unit((activation,), scale)
    y = activate(sums.float() * multipliers(x_scale, weight_scale, unit), activation)
    if scale is None:
        return y
    return _rounded(y * _scalar(ratio(unit, scale), x), zero_point)


def quantized_global_avg_pool(
    x: Tensor, keepdim: bool, x_scale: float, x_zero_point: int, scale: float, zero_point: int
) -> Tensor:
    """Mean over H and W of uint8: [N, C, H, W] -> [N, C, 1, 1] if ``keepdim`` else [N, C]."""
    pixels = x.shape[2] * x.shape[3]
    sums = _centred(x, x_zero_point).sum(dim=(2, 3), keepdim=keepdim, dtype=torch.int32)
    mean = sums.float() * _scalar(ratio(x_scale, scale), x)
    count = torch.full((), pixels, dtype=torch.float32, device=x.device)
    return _rounded(mean / count, zero_point)


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
    """``activation(x + y)`` of uint8 of one shape."""
    unit = output_unit((activation,), scale)
    sums = _centred(x, x_zero_point).float() * _scalar(ratio(x_scale, unit), x)
    sums = sums + _centred(y, y_zero_point).float() * _scalar(ratio(y_scale, unit), x)
    return _rounded(activate(sums, activation) * _scalar(ratio(unit, scale), x), zero_point)


def output_unit(activations: Sequence[str], scale: float) -> float:
    """What the numbers in front of the last rounding count: the result's own ``scale``, or ones."""
    return scale if all(name in HOMOGENEOUS for name in activations) else 1.0


def ratio(scale: float, unit: float) -> float:
    """``scale / unit`` as float32: what numbers of one scale are multiplied by to count another."""
    return float(np.float32(scale / unit))


def multipliers(x_scale: float, weight_scale: Tensor, unit: float) -> Tensor:
    """[K] float32: what sums of products are multiplied by to count ``unit``."""
    return (weight_scale.double() * (x_scale / unit)).float()


def activate(y: Tensor, name: str) -> Tensor:
    """An activation in float32, step by step where torch's own does them otherwise on GPUs.

    Its hardswish multiplies by a sixth there, and on the CPU it divides by six.
    """
    if name != "hardswish":
        return reference.activate(y, name)
    return y * (y + 3.0).clamp(0.0, 6.0) / _scalar(6.0, y)


def _scalar(value: float, like: Tensor) -> Tensor:
    return torch.full((), value, dtype=torch.float32, device=like.device)


def _centred(q: Tensor, zero_point: int) -> Tensor:
    return q.to(torch.int32) - zero_point


def _rounded(y: Tensor, zero_point: int) -> Tensor:
    """Half to even; ``zero_point`` counts before what is beyond uint8 is cut off."""
    return (torch.round(y) + zero_point).clamp(0, 255).to(torch.uint8)
