"""Convolutions and matrix products."""

from __future__ import annotations

from typing import Any

from torch import fx

from fastres.ir import ops
from fastres.ir.graph import arguments
from fastres.ir.views import Conv2d, Linear, QuantizedConv2d, QuantizedLinear
from fastres.kernels.spec import ConvSpec
from fastres.runtime.native.functions import Function
from fastres.runtime.native.operations import Rescaling
from fastres.runtime.native.subgraph_builder import Facts, Rule, SubgraphBuilder, is_batch, named


def convolution_refusal(conv: Conv2d | QuantizedConv2d, facts: Facts) -> str | None:
    """Why the engine has no operation for a convolution at this size, or None."""
    if not conv.has_constants:
        return "its weight is computed from the input"
    if conv.residual is not None and facts[conv.residual].shape != facts[conv.node].shape:
        return "its residual is broadcast at this size"
    x = facts[conv.x]
    return None if x.dim() == 4 and is_batch(x) else "its input is no batch of images"


def linear_refusal(linear: Linear | QuantizedLinear, facts: Facts) -> str | None:
    """Why the engine has no operation for a matrix product at this size, or None."""
    if not linear.has_constants:
        return "its weight is computed from the input"
    is_matrix = facts[linear.x].dim() == 2 and (
        facts[linear.node].numel() or isinstance(linear, Linear)
    )
    return None if is_matrix else "its input is no matrix"


def append_conv2d(
    builder: SubgraphBuilder,
    conv: Conv2d | QuantizedConv2d,
    rescaling: Rescaling | None = None,
) -> None:
    """The operation of a convolution, of numbers of any kind."""
    builder.append(
        "convolution",
        conv.node,
        conv.x,
        residual=conv.residual,
        conv=conv.spec(builder.facts),
        weight=named(conv.weight),
        bias=None if conv.bias is None else named(conv.bias),
        before=Function(conv.pre_activation),
        after=Function(conv.activation),
        rescaling=rescaling,
    )


def _linear(builder: SubgraphBuilder, node: fx.Node) -> None:
    linear = Linear.of(node)
    name, tensor = named(linear.weight)
    x, conv = linear.x, linear.spec(builder.facts)
    shape = (1, 1)
    if x in builder.inside and x not in builder.values:  # an image, one pixel behind the other
        x = arguments(x)[0]
        n, c, h, w = map(int, builder.facts[x].shape)
        conv, shape = ConvSpec(n, c, h, w, conv.k, h, w), (h, w)
    builder.append(
        "convolution",
        node,
        x,
        conv=conv,
        weight=(name, tensor.unflatten(1, (-1, *shape))),
        bias=None if linear.bias is None else named(linear.bias),
        after=Function(linear.activation),
    )


RULES: dict[Any, Rule] = {
    ops.conv2d: Rule(
        lambda node, facts: convolution_refusal(Conv2d.of(node), facts),
        lambda builder, node: append_conv2d(builder, Conv2d.of(node)),
    ),
    ops.linear: Rule(lambda node, facts: linear_refusal(Linear.of(node), facts), _linear),
}
