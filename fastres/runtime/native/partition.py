"""Which parts of a fused graph the engine runs in one call each, and the graph of those calls.

A subgraph is a run of nodes that the engine has operations for, all for as many images; the first
node that it has none for and that reads from the subgraph ends it. What is left between subgraphs
is lowered as for the oneDNN engine.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fastres.dtypes import NATIVE, NATIVE_OUTSIDE
from fastres.ir import ops
from fastres.ir.graph import arguments, copy_meta
from fastres.runtime.native.lower import MULTIPLIES, RULES, lower, refusal
from fastres.runtime.native.operations import LoweredSubgraph
from fastres.runtime.native.subgraph_builder import CONVERSIONS

aten = torch.ops.aten


@dataclass(frozen=True)
class Partition:
    """A graph cut into subgraphs.

    Attributes:
        subgraphs: the nodes of each subgraph.
        left: operators of ours that the engine does not run, with the reason.
    """

    subgraphs: list[list[fx.Node]]
    left: list[tuple[fx.Node, str]]


def partition(
    graph: fx.Graph, facts: Mapping[fx.Node, Any], dtypes: Collection[torch.dtype] = NATIVE
) -> Partition:
    """Cut a graph at these sizes; a run of nodes without a convolution is no subgraph.

    Args:
        dtypes: those that this processor has instructions for.
    """
    refused: dict[fx.Node, str] = {}
    while True:
        found = _cut(graph, facts, refused, dtypes)
        stranded = [
            node
            for subgraph in found.subgraphs
            for node in subgraph
            if RULES[node.target].is_lazy(node, facts) and not set(node.users) <= set(subgraph)
        ]
        if not stranded:
            return found
        refused.update(dict.fromkeys(stranded, "what reads it is not beside it"))


def _cut(
    graph: fx.Graph,
    facts: Mapping[fx.Node, Any],
    refused: Mapping[fx.Node, str],
    dtypes: Collection[torch.dtype],
) -> Partition:
    subgraphs: list[list[fx.Node]] = []
    left: list[tuple[fx.Node, str]] = []
    open_subgraph: list[fx.Node] = []
    for node in graph.nodes:
        if node.op == "call_function" and not isinstance(facts[node], (int, float, torch.SymInt)):
            reason = refused.get(node) or refusal(node, facts, dtypes)
            if node.target in CONVERSIONS and arguments(node)[0] not in open_subgraph:
                reason = "it is a part of the way in"
            if reason is None:
                if open_subgraph and (
                    not _alike(open_subgraph[0], node, facts) or _reads_what_left(node, facts)
                ):
                    subgraphs.append(open_subgraph)
                    open_subgraph = []
                open_subgraph.append(node)
                continue
            if node.target in MULTIPLIES:
                left.append((node, reason))
        if any(source in open_subgraph for source in node.all_input_nodes):
            subgraphs.append(open_subgraph)
            open_subgraph = []
    subgraphs.append(open_subgraph)
    kept = [
        subgraph for subgraph in subgraphs if any(node.target in _WORTH_IT for node in subgraph)
    ]
    return Partition(kept, left)


_WORTH_IT = (aten.conv_transpose2d.input, ops.conv2d, ops.quantized_conv2d, ops.quantized_linear)


def _alike(one: fx.Node, other: fx.Node, facts: Mapping[fx.Node, Any]) -> bool:
    """Whether two values can be in one subgraph, which has a number of images."""
    return bool(facts[one].shape[0] == facts[other].shape[0])


def _reads_what_left(node: fx.Node, facts: Mapping[fx.Node, Any]) -> bool:
    """Whether a node reads a quantised classifier's numbers, which go to the caller only."""
    return any(
        source.target is ops.quantized_linear and facts[source].dtype != torch.uint8
        for source in node.all_input_nodes
    )


def rewrite(
    module: fx.GraphModule,
    subgraphs: Sequence[Sequence[fx.Node]],
    facts: Mapping[fx.Node, Any],
    make: Callable[[LoweredSubgraph, list[torch.dtype]], Callable[..., Any]],
) -> fx.GraphModule:
    """The graph with each subgraph as one call of what ``make`` makes of the lowered subgraph.

    Casts at a subgraph's edges go into it, and so do the ways into and out of uint8: ``make`` gets
    the dtypes that its inputs really have.
    """
    last = {subgraph[-1]: list(subgraph) for subgraph in subgraphs}
    inside = {node for subgraph in subgraphs for node in subgraph}
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    absorbed: set[fx.Node] = set()
    for node in module.graph.nodes:
        if node in values:
            continue
        if node not in inside:
            values[node] = copy_meta(graph.node_copy(node, values.__getitem__), node)
            continue
        if node not in last:
            continue
        nodes = last[node]
        outputs = [n for n in nodes if any(user not in nodes for user in n.users)]
        casts = [_cast_behind(n) for n in outputs]
        operations = lower(
            nodes,
            [(n, facts[c or n].dtype) for n, c in zip(outputs, casts, strict=True)],
            facts,
        )
        # A cast between two subgraphs goes into the one that comes first, where it may have been
        # one of the operations: then what it casts need not have left that subgraph.
        sources = [
            n if n in absorbed or n in inside else _source(n, nodes, facts)
            for n in operations.inputs
        ]
        absorbed.update(cast for cast in casts if cast is not None)
        function = make(operations, [facts[source].dtype for source in sources])
        result = graph.call_function(function, tuple(values[source] for source in sources))
        copy_meta(result, node)
        for index, (output, cast) in enumerate(zip(outputs, casts, strict=True)):
            one = result
            if len(outputs) > 1:
                one = copy_meta(graph.call_function(operator.getitem, (result, index)), output)
            values[output] = one
            if cast is not None:
                values[cast] = one
    graph.eliminate_dead_code()
    return fx.GraphModule(module, graph)


def _cast_behind(node: fx.Node) -> fx.Node | None:
    """The cast that is the only reader of a subgraph's output."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    if user.target is ops.dequantize:
        return user
    casts = user.target is aten.to.dtype and node.target is not ops.quantized_linear
    return user if casts and arguments(user)[1] in NATIVE_OUTSIDE else None


def _source(node: fx.Node, subgraph: Sequence[fx.Node], facts: Mapping[fx.Node, Any]) -> fx.Node:
    """What a subgraph reads as an input: the argument of a cast that only the subgraph reads."""
    own = all(user in subgraph for user in node.users)
    if node.target is ops.quantize or (node.target is aten.to.dtype and own):
        before = arguments(node)[0]
        if isinstance(before, fx.Node):
            fact = facts[before]
            if isinstance(fact, Tensor) and fact.dtype in NATIVE_OUTSIDE:
                return before
    return node
