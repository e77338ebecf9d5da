"""A subgraph of the fused graph as the library's operations, before its buffers have sizes.

Which nodes can be part of one is asked first (:func:`refusal`), so that lowering cannot fail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fastres.dtypes import NATIVE
from fastres.ir import ops
from fastres.ir.graph import arguments, constant, module_of
from fastres.ir.views import AddRelu, Conv2d, GlobalAvgPool, Linear, MaxPool2d
from fastres.kernels.activations import ACTIVATIONS as ROWS
from fastres.kernels.spec import ConvSpec
from fastres.runtime.native.layout import FEW, Layout

aten = torch.ops.aten

LEAST_PER_GROUP = 4
"""Input channels of a group. The kernels multiply whole blocks of 16 or 32, mostly by zeros where
groups are small; a depthwise convolution is better off elsewhere."""


@dataclass(eq=False)
class Value:
    """An activation on its way through a subgraph."""

    layout: Layout


@dataclass(eq=False)
class Op:
    """One operation of the library on values.

    Attributes:
        kind: one of :data:`fastres.runtime.native.abi.KINDS`.
        node: the fused graph's node that it computes.
        input, residual, output: activations; None where it is the caller's tensor.
        conv: a convolution's geometry.
        weight: its weight [K, C / groups, R, S] and the name to share packed forms by.
        window: a pooling's kernel, stride, padding and dilation.
        outside: which of the subgraph's inputs or outputs an import or export handles.
    """

    kind: str
    node: fx.Node
    input: Value | None
    output: Value | None
    residual: Value | None = None
    conv: ConvSpec | None = None
    weight: tuple[str, Tensor] | None = None
    bias: tuple[str, Tensor] | None = None
    before: str = "none"
    after: str = "none"
    window: tuple[Any, Any, Any, Any] | None = None
    outside: int = -1


@dataclass
class LoweredSubgraph:
    """A subgraph: operations in order, and the nodes whose tensors go in and come out."""

    inputs: list[fx.Node] = field(default_factory=list)
    outputs: list[fx.Node] = field(default_factory=list)
    output_dtypes: list[torch.dtype] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)

    @property
    def dtype(self) -> torch.dtype:
        """What it computes with."""
        return next(op.output.layout.dtype for op in self.ops if op.output is not None)


def refusal(node: fx.Node, facts: Mapping[fx.Node, Any]) -> str | None:
    """Why the engine has no operation for a node at this size, or None where it has one."""
    fact = facts.get(node)
    if not isinstance(fact, Tensor) or fact.dtype not in NATIVE:
        return "the native engine computes with no other numbers than float32 and bfloat16"
    if node.target is ops.conv2d:
        return _conv2d_refusal(node, facts)
    if node.target is ops.linear:
        linear = Linear.of(node)
        if not linear.has_constants:
            return "its weight is computed from the input"
        return _activation_refusal(linear.activation) or (
            None if facts[linear.x].dim() == 2 else "its input is no matrix"
        )
    if node.target is ops.max_pool2d:
        pool = MaxPool2d.of(node)
        return "it rounds up" if pool.ceil_mode else _image_refusal(facts[pool.x])
    if node.target is ops.global_avg_pool:
        return _image_refusal(facts[GlobalAvgPool.of(node).x])
    if node.target is ops.add_relu:
        x, y = (facts[each] for each in AddRelu.of(node).args)
        same = x.shape == y.shape and x.dtype == y.dtype
        return _image_refusal(x) if same else "its summands have different shapes"
    if node.target is aten.flatten.using_ints:
        x = facts[arguments(node)[0]]
        flat = x.dim() == 4 and x.shape[2:] == (1, 1) and fact.shape == x.shape[:2]
        return None if flat else "it moves data"
    return "the native engine has no such operation"


def _image_refusal(fact: Tensor) -> str | None:
    return None if fact.dim() == 4 and fact.numel() else "its input is no batch of images"


def _activation_refusal(*names: str) -> str | None:
    for name in names:
        column = ROWS[name].native_code
        if isinstance(column, str):
            return f"{name}: {column}"
    return None


def _conv2d_refusal(node: fx.Node, facts: Mapping[fx.Node, Any]) -> str | None:
    conv = Conv2d.of(node)
    if not conv.has_constants:
        return "its weight is computed from the input"
    if conv.residual is not None and facts[conv.residual].shape != facts[node].shape:
        return "its residual is broadcast at this size"
    per_group = facts[conv.weight].shape[1]
    if conv.groups > 1 and per_group < LEAST_PER_GROUP:
        return f"{per_group} channels in a group are too few for the native engine"
    return _activation_refusal(*conv.activations) or _image_refusal(facts[conv.x])


def lower(
    nodes: Sequence[fx.Node],
    outputs: Sequence[tuple[fx.Node, torch.dtype]],
    facts: Mapping[fx.Node, Any],
) -> LoweredSubgraph:
    """The operations of a subgraph.

    Args:
        nodes: what it computes, in order.
        outputs: those of them that are read outside, and the dtypes that are wanted there.
        facts: what every node is at this size.
    """
    return _Lowering(nodes, outputs, facts).result


class _Lowering:
    def __init__(
        self,
        nodes: Sequence[fx.Node],
        outputs: Sequence[tuple[fx.Node, torch.dtype]],
        facts: Mapping[fx.Node, Any],
    ) -> None:
        self.facts = facts
        self.inside = set(nodes)
        self.values: dict[fx.Node, Value] = {}
        self.result = LoweredSubgraph(
            outputs=[node for node, _ in outputs],
            output_dtypes=[dtype for _, dtype in outputs],
        )
        for node in nodes:
            self._add(node)
        for index, (node, _) in enumerate(outputs):
            self._export(index, node)

    def _add(self, node: fx.Node) -> None:
        if node.target is ops.conv2d:
            self._conv2d(node)
        elif node.target is ops.linear:
            self._linear(node)
        elif node.target is ops.max_pool2d:
            pool = MaxPool2d.of(node)
            window = (pool.kernel, pool.stride, pool.padding, pool.dilation)
            self._append("max_pool", node, pool.x, window=window)
        elif node.target is ops.global_avg_pool:
            self._append("mean", node, GlobalAvgPool.of(node).x)
        elif node.target is ops.add_relu:
            addition = AddRelu.of(node)
            self._append("add", node, addition.x, residual=addition.y, after="relu")
        else:  # the same pixels by another name
            self.values[node] = self._value(arguments(node)[0])

    def _append(self, kind: str, node: fx.Node, x: fx.Node, **rest: Any) -> None:
        residual = rest.pop("residual", None)
        source = self._value(x, few=kind == "convolution" and _takes_few(rest["conv"]))
        addend = None if residual is None else self._value(residual)
        value = Value(self._layout(node))
        self.values[node] = value
        self.result.ops.append(Op(kind, node, source, value, residual=addend, **rest))

    def _conv2d(self, node: fx.Node) -> None:
        conv = Conv2d.of(node)
        self._append(
            "convolution",
            node,
            conv.x,
            residual=conv.residual,
            conv=conv.spec(self.facts),
            weight=_named(conv.weight),
            bias=None if conv.bias is None else _named(conv.bias),
            before=conv.pre_activation,
            after=conv.activation,
        )

    def _linear(self, node: fx.Node) -> None:
        linear = Linear.of(node)
        name, tensor = _named(linear.weight)
        self._append(
            "convolution",
            node,
            linear.x,
            conv=linear.spec(self.facts),
            weight=(name, tensor[:, :, None, None]),
            bias=None if linear.bias is None else _named(linear.bias),
            after=linear.activation,
        )

    def _value(self, node: fx.Node, few: bool = False) -> Value:
        """A node's value, imported where it comes from outside."""
        if node in self.inside:
            return self.values[node]
        if node not in self.result.inputs:
            self.result.inputs.append(node)
        known = self.values.get(node)
        if known is not None and not known.layout.small:
            return known
        layout = self._layout(node)
        small = few and layout.channels <= FEW and layout.height * layout.width > 1
        if known is not None and small:
            return known
        # An image may be wanted in both forms.
        value = Value(
            Layout(layout.channels, layout.height, layout.width, layout.dtype, small=small)
        )
        self.values[node] = value
        self.result.ops.append(
            Op("import", node, None, value, outside=self.result.inputs.index(node))
        )
        return value

    def _layout(self, node: fx.Node) -> Layout:
        fact = self.facts[node]
        height, width = fact.shape[2:] if fact.dim() == 4 else (1, 1)
        return Layout(fact.shape[1], height, width, self._dtype())

    def _dtype(self) -> torch.dtype:
        fact: Tensor = self.facts[next(iter(self.inside))]
        return fact.dtype

    def _export(self, index: int, node: fx.Node) -> None:
        self.result.ops.append(Op("export", node, self.values[node], None, outside=index))


def _takes_few(conv: ConvSpec) -> bool:
    """Whether a convolution can read an image pixel by pixel: a filter's row is one run there."""
    return conv.groups == 1 and conv.dilation[1] == 1


def _named(node: fx.Node) -> tuple[str, Tensor]:
    tensor = constant(node)
    assert tensor is not None, f"{module_of(node)}: {node} is no constant"
    return str(node.target), tensor
