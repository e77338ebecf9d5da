"""A lowered subgraph in the making: what the rules for its nodes append operations to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from fastres.ir import ops
from fastres.ir.graph import arguments, constant, module_of
from fastres.ir.views import (
    VIEWS,
    Quantize,
    QuantizedAdd,
    QuantizedConv2d,
    QuantizedGlobalAvgPool,
    QuantizedLinear,
)
from fastres.kernels.spec import ConvSpec
from fastres.runtime.native.layout import FEW, Layout
from fastres.runtime.native.operations import LoweredSubgraph, Named, Op, Rescaling, Value

aten = torch.ops.aten

Facts = Mapping[fx.Node, Any]

CONVERSIONS = (ops.quantize, ops.dequantize, aten.to.dtype)
"""From one kind of numbers to another: at the edge of a subgraph a part of the way in or out."""

_QUANTIZED = (
    ops.quantized_conv2d,
    ops.quantized_linear,
    ops.quantized_global_avg_pool,
    ops.quantized_add,
)


@dataclass(frozen=True)
class Rule:
    """How nodes of one operator become operations.

    Attributes:
        refusal: why the engine has none for a node at this size, or None where it has.
        lower: appends them, for a node that was not refused.
        is_lazy: whether a node has no value of its own, but only a meaning for those that read it,
            which therefore have to be in the same subgraph.
    """

    refusal: Callable[[fx.Node, Facts], str | None]
    lower: Callable[[SubgraphBuilder, fx.Node], None]
    is_lazy: Callable[[fx.Node, Facts], bool] = lambda node, facts: False


class SubgraphBuilder:
    """The operations of a subgraph.

    Args:
        nodes: what it computes, in order.
        outputs: those of them that are read outside, and the dtypes that are wanted there.
        facts: what every node is at this size.
    """

    def __init__(
        self,
        nodes: Sequence[fx.Node],
        outputs: Sequence[tuple[fx.Node, torch.dtype]],
        facts: Facts,
    ) -> None:
        self.facts = facts
        self.inside = set(nodes)
        self.values: dict[fx.Node, Value] = {}
        self.parts: dict[Value, list[Value]] = {}
        """Of the values that are concatenations."""
        self.result = LoweredSubgraph(
            outputs=[node for node, _ in outputs],
            output_dtypes=[dtype for _, dtype in outputs],
        )

    def append(self, kind: str, node: fx.Node, x: fx.Node, **rest: Any) -> Value | None:
        """An operation on the values of nodes, whose result is ``node``'s.

        Args:
            rest: further attributes of the :class:`Op`; its residual and its factor as nodes.
                ``leaves``: the result is the caller's, float32. ``into``: the node's value, where
                another operation has written a part of it.
        """
        leaves, value = rest.pop("leaves", False), rest.pop("into", None)
        source = self.value(x, few=kind == "convolution" and _takes_few(rest["conv"]))
        for name in ("residual", "factor"):
            if rest.get(name) is not None:
                rest[name] = self.value(rest[name])
        if leaves:
            rest["outside"] = self.result.outputs.index(node)
            self.result.ops.append(Op(kind, node, source, None, **rest))
            return None
        value = value or Value(self.layout(node))
        self.values[node] = value
        self.result.ops.append(Op(kind, node, source, value, **rest))
        return value

    def alias(self, node: fx.Node, other: fx.Node) -> None:
        """``node`` is ``other``'s value by another name."""
        self.values[node] = self.value(other)

    def value(self, node: fx.Node, few: bool = False) -> Value:
        """A node's value, imported where it comes from outside."""
        if node in self.inside:
            return self.values[node]
        if node not in self.result.inputs:
            self.result.inputs.append(node)
        known = self.values.get(node)
        if known is not None and not known.layout.small:
            return known
        layout = self.layout(node)
        small = few and layout.channels <= FEW and layout.height * layout.width > 1
        if known is not None and small:
            return known
        # An image may be wanted in both forms.
        value = Value(replace(layout, small=small))
        self.values[node] = value
        outside = self.result.inputs.index(node)
        rescaling = self.edge(node)
        self.result.ops.append(
            Op("import", node, None, value, outside=outside, rescaling=rescaling)
        )
        return value

    def layout(self, node: fx.Node) -> Layout:
        """The layout of a node's value."""
        rescaling = self.edge(node)
        fill = 0 if rescaling is None else rescaling.zero
        return Layout(*sizes(self.facts[node]), self.facts[node].dtype, fill=fill)

    def edge(self, node: fx.Node) -> Rescaling | None:
        """A uint8 value's own scale and zero, by what made it."""
        if self.facts[node].dtype != torch.uint8:
            return None
        scale, zero = scale_of(node)
        return Rescaling(scale=scale, zero=zero)

    def export(self, index: int, node: fx.Node) -> None:
        """Hand a node's value to the caller, unless an operation has done it."""
        if node.target in CONVERSIONS and node not in self.values:
            node = arguments(node)[0]  # converted on its way out
        if node in self.values:
            op = Op(
                "export",
                node,
                self.values[node],
                None,
                outside=index,
                rescaling=self.edge(node),
            )
            self.result.ops.append(op)


def sizes(fact: Tensor) -> tuple[int, int, int]:
    """Channels, height and width of a value: [N, C, H, W], [N, C], [N, 1, C] or [N, C, 1]."""
    if fact.dim() == 4:
        _, channels, height, width = map(int, fact.shape)
        return channels, height, width
    return fact.numel() // int(fact.shape[0]), 1, 1


def is_batch(fact: Any) -> bool:
    """Whether something is a value that lines can hold: see :func:`sizes`."""
    if not isinstance(fact, Tensor) or not fact.numel():
        return False
    return fact.dim() in (2, 4) or (fact.dim() == 3 and 1 in fact.shape[1:])


def computed_in(node: fx.Node, facts: Facts) -> torch.dtype:
    """The dtype of the activations that a node computes with."""
    if node.target in _QUANTIZED:
        return torch.uint8
    fact: Tensor = facts[node]
    return fact.dtype


def scale_of(node: fx.Node) -> tuple[float, int]:
    """A uint8 value's scale and zero point: of what made it, perhaps through what moves values."""
    while node.target is ops.max_pool2d or node.target not in VIEWS:
        node = arguments(node)[0]
    made = VIEWS[node.target].of(node)
    assert isinstance(
        made, (Quantize, QuantizedConv2d, QuantizedLinear, QuantizedGlobalAvgPool, QuantizedAdd)
    )
    return (1.0 if made.scale is None else made.scale), made.zero_point


def named(node: fx.Node) -> Named:
    """A constant with its name."""
    tensor = constant(node)
    assert tensor is not None, f"{module_of(node)}: {node} is no constant"
    return str(node.target), tensor


def _takes_few(conv: ConvSpec) -> bool:
    """Whether a convolution can read an image pixel by pixel: a filter's row is one run there."""
    return conv.groups == 1 and conv.dilation[1] == 1
