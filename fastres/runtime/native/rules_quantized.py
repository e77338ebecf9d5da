"""Operators of quantised numbers, and the ways from one kind of numbers to another."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fastres.dtypes import NATIVE
from fastres.ir import ops
from fastres.ir.graph import arguments
from fastres.ir.views import (
    Dequantize,
    Quantize,
    QuantizedAdd,
    QuantizedConv2d,
    QuantizedGlobalAvgPool,
    QuantizedLinear,
)
from fastres.kernels.activations import ACTIVATIONS
from fastres.kernels.quantized import output_unit
from fastres.runtime.native.functions import Function
from fastres.runtime.native.operations import Rescaling
from fastres.runtime.native.rules_convolutions import (
    append_conv2d,
    convolution_refusal,
    linear_refusal,
)
from fastres.runtime.native.subgraph_builder import Facts, Rule, SubgraphBuilder, is_batch, named

aten = torch.ops.aten


def _inexact(*names: str) -> str | None:
    for name in names:
        if not ACTIVATIONS[name].exact:
            return f"{name} has no exact form, and answers in int8 are held bit for bit"
    return None


def _conv2d_refusal(node: fx.Node, facts: Facts) -> str | None:
    conv = QuantizedConv2d.of(node)
    return _inexact(*conv.activations) or convolution_refusal(conv, facts)


def _conv2d(builder: SubgraphBuilder, node: fx.Node) -> None:
    conv = QuantizedConv2d.of(node)
    rescaling = Rescaling(
        x_scale=conv.x_scale,
        x_zero=conv.x_zero_point,
        residual_scale=conv.residual_scale,
        residual_zero=conv.residual_zero_point,
        unit=output_unit(conv.activations, conv.scale),
        scale=conv.scale,
        zero=conv.zero_point,
        weight_scale=named(conv.weight_scale),
    )
    append_conv2d(builder, conv, rescaling)


def _linear_refusal(node: fx.Node, facts: Facts) -> str | None:
    linear = QuantizedLinear.of(node)
    return _inexact(linear.activation) or linear_refusal(linear, facts)


def _linear(builder: SubgraphBuilder, node: fx.Node) -> None:
    linear = QuantizedLinear.of(node)
    name, tensor = named(linear.weight)
    unit = 1.0 if linear.scale is None else output_unit((linear.activation,), linear.scale)
    builder.append(
        "convolution",
        node,
        linear.x,
        leaves=linear.scale is None,
        conv=linear.spec(builder.facts),
        weight=(name, tensor[:, :, None, None]),
        bias=named(linear.bias),
        after=Function(linear.activation),
        rescaling=Rescaling(
            x_scale=linear.x_scale,
            x_zero=linear.x_zero_point,
            unit=unit,
            scale=1.0 if linear.scale is None else linear.scale,
            zero=linear.zero_point,
            weight_scale=named(linear.weight_scale),
        ),
    )


def _mean_refusal(node: fx.Node, facts: Facts) -> str | None:
    x = facts[QuantizedGlobalAvgPool.of(node).x]
    return None if x.dim() == 4 and is_batch(x) else "its input is no batch of images"


def _mean(builder: SubgraphBuilder, node: fx.Node) -> None:
    pool = QuantizedGlobalAvgPool.of(node)
    rescaling = Rescaling(
        x_scale=pool.x_scale,
        x_zero=pool.x_zero_point,
        unit=pool.scale,
        scale=pool.scale,
        zero=pool.zero_point,
    )
    builder.append("mean", node, pool.x, rescaling=rescaling)


def _add_refusal(node: fx.Node, facts: Facts) -> str | None:
    addition = QuantizedAdd.of(node)
    x, y = facts[addition.x], facts[addition.y]
    if x.shape != y.shape:
        return "its summands have different shapes"
    if x.dim() != 4 or not is_batch(x):
        return "its input is no batch of images"
    return _inexact(addition.activation)


def _add(builder: SubgraphBuilder, node: fx.Node) -> None:
    addition = QuantizedAdd.of(node)
    rescaling = Rescaling(
        x_scale=addition.x_scale,
        x_zero=addition.x_zero_point,
        residual_scale=addition.y_scale,
        residual_zero=addition.y_zero_point,
        unit=output_unit((addition.activation,), addition.scale),
        scale=addition.scale,
        zero=addition.zero_point,
    )
    builder.append(
        "map",
        node,
        addition.x,
        residual=addition.y,
        after=Function(addition.activation),
        rescaling=rescaling,
    )


def _convert_refusal(node: fx.Node, facts: Facts) -> str | None:
    x = facts[arguments(node)[0]]
    both = is_batch(x) and x.dtype in NATIVE and is_batch(facts[node])
    return None if both else "its input is no batch of images"


def _cast(builder: SubgraphBuilder, node: fx.Node) -> None:
    if not builder.inside.isdisjoint(node.users):
        builder.append("convert", node, arguments(node)[0])


def _quantize(builder: SubgraphBuilder, node: fx.Node) -> None:
    made = Quantize.of(node)
    rescaling = Rescaling(scale=made.scale, zero=made.zero_point)
    builder.append("convert", node, made.x, rescaling=rescaling)


def _dequantize(builder: SubgraphBuilder, node: fx.Node) -> None:
    """Where nobody inside reads it, it is the way out that converts."""
    if not builder.inside.isdisjoint(node.users):
        made = Dequantize.of(node)
        rescaling = Rescaling(scale=made.scale, x_zero=made.zero_point)
        builder.append("convert", node, made.q, rescaling=rescaling)


RULES: dict[Any, Rule] = {
    ops.quantize: Rule(_convert_refusal, _quantize),
    ops.dequantize: Rule(_convert_refusal, _dequantize),
    aten.to.dtype: Rule(_convert_refusal, _cast),
    ops.quantized_conv2d: Rule(_conv2d_refusal, _conv2d),
    ops.quantized_linear: Rule(_linear_refusal, _linear),
    ops.quantized_global_avg_pool: Rule(_mean_refusal, _mean),
    ops.quantized_add: Rule(_add_refusal, _add),
}
