"""Which parts of a fused graph the engine runs in one call each, and the graph of those calls.

A subgraph is a run of nodes that the engine has operations for, all for as many images; the first
node that it has none for and that reads from the subgraph ends it. What is left between subgraphs
is lowered as for the oneDNN engine.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fastres.dtypes import NATIVE
from fastres.ir import ops
from fastres.ir.graph import arguments, copy_meta
from fastres.runtime.native.lower import LoweredSubgraph, lower, refusal

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


def partition(graph: fx.Graph, facts: Mapping[fx.Node, Any]) -> Partition:
    """Cut a graph at these sizes; a run of nodes without a convolution is no subgraph."""
    subgraphs: list[list[fx.Node]] = []
    left: list[tuple[fx.Node, str]] = []
    open_subgraph: list[fx.Node] = []
    for node in graph.nodes:
        if node.op == "call_function" and not isinstance(facts[node], (int, float, torch.SymInt)):
            reason = refusal(node, facts)
            if reason is None:
                if open_subgraph and not _alike(facts[open_subgraph[0]], facts[node]):
                    subgraphs.append(open_subgraph)
                    open_subgraph = []
                open_subgraph.append(node)
                continue
            if node.target in (ops.conv2d, ops.linear):
                left.append((node, reason))
        if any(source in open_subgraph for source in node.all_input_nodes):
            subgraphs.append(open_subgraph)
            open_subgraph = []
    subgraphs.append(open_subgraph)
    kept = [
        subgraph for subgraph in subgraphs if any(node.target is ops.conv2d for node in subgraph)
    ]
    return Partition(kept, left)


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two values can be in one subgraph, which has a number of images and a dtype."""
    return one.shape[0] == other.shape[0] and one.dtype == other.dtype


def rewrite(
    module: fx.GraphModule,
    subgraphs: Sequence[Sequence[fx.Node]],
    facts: Mapping[fx.Node, Any],
    make: Callable[[LoweredSubgraph, list[torch.dtype]], Callable[..., Any]],
) -> fx.GraphModule:
    """The graph with each subgraph as one call of what ``make`` makes of the lowered subgraph.

    Casts at a subgraph's edges go into it: ``make`` gets the dtypes that its inputs really have.
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
        # A cast between two subgraphs goes into the one that comes first.
        sources = [n if n in absorbed else _source(n, nodes, facts) for n in operations.inputs]
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
    users = list(node.users)
    casts = len(users) == 1 and users[0].target is aten.to.dtype
    return users[0] if casts and arguments(users[0])[1] in NATIVE else None


def _source(node: fx.Node, subgraph: Sequence[fx.Node], facts: Mapping[fx.Node, Any]) -> fx.Node:
    """What a subgraph reads as an input: the argument of a cast that only the subgraph reads."""
    if node.target is aten.to.dtype and all(user in subgraph for user in node.users):
        before = arguments(node)[0]
        if isinstance(before, fx.Node):
            fact = facts[before]
            if isinstance(fact, Tensor) and fact.dtype in NATIVE:
                return before
    return node
