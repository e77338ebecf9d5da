"""The quantised operators in QDQ form: float operators between DequantizeLinear and QuantizeLinear.

A runtime that knows the form puts an integer operator in the place of each such group; any other
computes in float32 what it says. Where :mod:`fastres.kernels.quantized` rounds once, there is one
QuantizeLinear: a residual is added in front of it, to a sum that was not rounded before.

Every quantised value is dequantised once, right behind where it is made, for all who read it: it is
the form that runtimes look for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fastres.export.builder import Builder
from fastres.export.rules.activations import activate
from fastres.export.rules.fused import convolve
from fastres.export.rules.units import Unit, quantized, real, unit_in_front
from fastres.ir import ops
from fastres.ir.graph import is_call
from fastres.ir.views import (
    Dequantize,
    Quantize,
    QuantizedAdd,
    QuantizedBottleneck,
    QuantizedConv2d,
    QuantizedGlobalAvgPool,
    QuantizedLinear,
    QuantizedStem,
)


def _weights(b: Builder, view: QuantizedConv2d | QuantizedLinear) -> tuple[str, str]:
    """Those of an operator with one weight."""
    return _weights_of(b, view.node, "", (view.weight, view.weight_scale, view.bias), view.x_scale)


def _weights_of(
    b: Builder, node: fx.Node, part: str, given: tuple[Any, Any, Any], x_scale: float
) -> tuple[str, str]:
    """int8 with a scale a filter, and int32 that counts ``x_scale * weight_scale``: as float32.

    Args:
        part: of the operator, in front of the names: ``"expand."``.
        given: weight, its scale, and bias.
        x_scale: of what the weight is multiplied with.
    """
    module = node.meta.get("module") or node.name
    weight, weight_scale, bias = given
    scale = b.weight_of(weight_scale)
    units = (scale.double() * x_scale).float()
    made = []
    for role, value, factor in (
        (f"{part}weight", b.tensor(weight, hint=f"{module}.{part}weight"), scale),
        (f"{part}bias", b.tensor(bias, hint=f"{module}.{part}bias"), units),
    ):
        zeros = torch.zeros(factor.shape, dtype=b.dtype(value), device="cpu")
        made.append(
            b.emit(
                "DequantizeLinear",
                value,
                b.constant(factor, f"{module}.{role}.scale"),
                # Not shared: ONNX Runtime may rewrite it with the weight, and not twice.
                b.constant(zeros, f"{module}.{role}.zero_point", shared=False),
                dtype=torch.float32,
                part=f"{role}/DequantizeLinear",
                axis=0,
            )
        )
    return made[0], made[1]


def _quantize(b: Builder, node: fx.Node) -> str:
    view = Quantize.of(node)
    return quantized(b, b.tensor(view.x, torch.float32), (view.scale, view.zero_point))


def _dequantize(b: Builder, node: fx.Node) -> str:
    view = Dequantize.of(node)
    q, unit = b.tensor(view.q), (view.scale, view.zero_point)
    if any(is_call(user, ops.conv2d, ops.linear) for user in node.users):
        return _for_wider_layers(b, q, unit, int(b.fact(node).shape[1]))
    return real(b, q, unit)


def _for_wider_layers(b: Builder, q: str, unit: Unit, channels: int) -> str:
    """What a uint8 value stands for, with its scale repeated for every channel.

    ONNX Runtime (1.21 and later) takes a float convolution between a DequantizeLinear and a
    QuantizeLinear that have a scale each for one that should be quantised, and rounds its weights,
    with one scale for all filters.
    """
    scale, zero_point = unit
    return b.emit(
        "DequantizeLinear",
        q,
        b.constant(torch.full((channels,), scale, dtype=torch.float32, device="cpu")),
        b.constant(torch.full((channels,), zero_point, dtype=torch.uint8, device="cpu")),
        dtype=torch.float32,
        axis=1,
    )


def _conv2d(b: Builder, node: fx.Node) -> str:
    conv = QuantizedConv2d.of(node)
    x = real(b, b.tensor(conv.x), (conv.x_scale, conv.x_zero_point))
    weight, bias = _weights(b, conv)
    kernel = b.weight_of(conv.weight).shape[2:]
    geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
    y = activate(b, convolve(b, x, weight, bias, *geometry, kernel=kernel), conv.pre_activation)
    in_front = unit_in_front(conv) if b.rounds_sums else None
    if in_front is not None:
        y = real(b, quantized(b, y, in_front), in_front)
    if conv.residual is not None:
        residual = b.tensor(conv.residual)
        y = b.emit("Add", y, real(b, residual, (conv.residual_scale, conv.residual_zero_point)))
    return quantized(b, activate(b, y, conv.activation), (conv.scale, conv.zero_point))


def _bottleneck(b: Builder, node: fx.Node) -> list[str]:
    block = QuantizedBottleneck.of(node)
    given, between, identity, beside, last, following = zip(
        block.scales, block.zero_points, strict=True
    )
    plain: tuple[Any, ...] = ((0, 0, 0, 0), (1, 1), 1)

    def product(
        x: str, unit: Unit, part: str, weight: Any, scale: Any, bias: Any, *geometry: Any
    ) -> str:
        made = _weights_of(b, node, f"{part}." if part else "", (weight, scale, bias), unit[0])
        kernel = b.weight_of(weight).shape[2:]
        stride, padding, dilation, groups = geometry
        return convolve(
            *(b, real(b, x, unit), *made, stride, padding, dilation, groups, part), kernel=kernel
        )

    narrow = product(
        *(b.tensor(block.x), given, "", block.weight, block.weight_scale, block.bias),
        *(block.stride, block.padding, block.dilation, block.groups),
    )
    narrow = quantized(b, b.emit("Relu", narrow), between)
    residual = b.tensor(block.residual)
    if block.shortcut_weight is not None:
        shortcut = (block.shortcut_weight, block.shortcut_weight_scale, block.shortcut_bias)
        y = product(residual, identity, "shortcut", *shortcut, block.shortcut_stride, *plain)
        residual, identity = quantized(b, y, beside), beside
    expand = (block.expand_weight, block.expand_weight_scale, block.expand_bias)
    y = product(narrow, between, "expand", *expand, (1, 1), *plain)
    y = b.emit("Add", y, real(b, residual, identity))
    wide = quantized(b, b.emit("Relu", y), last)
    if block.next_weight is None:
        return [wide]
    head = (block.next_weight, block.next_weight_scale, block.next_bias)
    y = product(wide, last, "next", *head, (1, 1), *plain)
    return [wide, quantized(b, b.emit("Relu", y), following)]


def _conv2d_max_pool2d(b: Builder, node: fx.Node) -> str:
    stem = QuantizedStem.of(node)
    given, written = (stem.x_scale, stem.x_zero_point), (stem.scale, stem.zero_point)
    constants = (stem.weight, stem.weight_scale, stem.bias)
    weight, bias = _weights_of(b, node, "", constants, stem.x_scale)
    kernel = b.weight_of(stem.weight).shape[2:]
    geometry = (stem.stride, stem.padding, (1, 1), 1)
    y = convolve(b, real(b, b.tensor(stem.x), given), weight, bias, *geometry, kernel=kernel)
    y = quantized(b, activate(b, y, stem.activation), written)
    top, left = stem.pool_padding
    pooled = b.emit(
        "MaxPool",
        real(b, y, written),
        kernel_shape=list(stem.pool_kernel),
        strides=list(stem.pool_stride),
        pads=[top, left, top, left],
    )
    return quantized(b, pooled, written)


def _linear(b: Builder, node: fx.Node) -> str:
    linear = QuantizedLinear.of(node)
    x = real(b, b.tensor(linear.x), (linear.x_scale, linear.x_zero_point))
    y = b.emit("Gemm", x, *_weights(b, linear), part="", transB=1)
    y = activate(b, y, linear.activation)
    return y if linear.scale is None else quantized(b, y, (linear.scale, linear.zero_point))


def _global_avg_pool(b: Builder, node: fx.Node) -> str:
    pool = QuantizedGlobalAvgPool.of(node)
    x = real(b, b.tensor(pool.x), (pool.x_scale, pool.x_zero_point))
    y = b.emit("GlobalAveragePool", x, part="")
    if not pool.keepdim:
        y = b.emit("Flatten", y, axis=1)
    return quantized(b, y, (pool.scale, pool.zero_point))


def _add(b: Builder, node: fx.Node) -> str:
    view = QuantizedAdd.of(node)
    x = real(b, b.tensor(view.x), (view.x_scale, view.x_zero_point))
    y = real(b, b.tensor(view.y), (view.y_scale, view.y_zero_point))
    total = activate(b, b.emit("Add", x, y), view.activation)
    return quantized(b, total, (view.scale, view.zero_point))


RULES: dict[Any, Any] = {
    ops.quantize: _quantize,
    ops.dequantize: _dequantize,
    ops.quantized_conv2d: _conv2d,
    ops.quantized_bottleneck: _bottleneck,
    ops.quantized_conv2d_max_pool2d: _conv2d_max_pool2d,
    ops.quantized_linear: _linear,
    ops.quantized_global_avg_pool: _global_avg_pool,
    ops.quantized_add: _add,
}
"""Operator -> translation."""
