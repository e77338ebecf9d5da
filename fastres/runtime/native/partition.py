"""Which parts of a fused graph the engine runs in one call each, and the graph of those calls.

A piece is a run of nodes that the engine has operations for, all for as many images; the first node
that it has none for and that reads from the piece ends it. What is left between pieces is lowered
as for the oneDNN engine.
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
from fastres.runtime.native.lower import Draft, draft, refusal

aten = torch.ops.aten


@dataclass(frozen=True)
class Cut:
    """Where a graph is cut.

    Attributes:
        pieces: the nodes of each piece.
        left: operators of ours that the engine does not run, with the reason.
    """

    pieces: list[list[fx.Node]]
    left: list[tuple[fx.Node, str]]


def cut(graph: fx.Graph, facts: Mapping[fx.Node, Any]) -> Cut:
    """The pieces of a graph at these sizes; without a convolution in it, a run is no piece."""
    pieces: list[list[fx.Node]] = []
    left: list[tuple[fx.Node, str]] = []
    open_piece: list[fx.Node] = []
    for node in graph.nodes:
        if node.op == "call_function" and not isinstance(facts[node], (int, float, torch.SymInt)):
            reason = refusal(node, facts)
            if reason is None:
                if open_piece and not _alike(facts[open_piece[0]], facts[node]):
                    pieces.append(open_piece)
                    open_piece = []
                open_piece.append(node)
                continue
            if node.target in (ops.conv2d, ops.linear):
                left.append((node, reason))
        if any(source in open_piece for source in node.all_input_nodes):
            pieces.append(open_piece)
            open_piece = []
    pieces.append(open_piece)
    worth = [piece for piece in pieces if any(node.target is ops.conv2d for node in piece)]
    return Cut(worth, left)


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two values can be in one piece, which has a number of images and a dtype."""
    return one.shape[0] == other.shape[0] and one.dtype == other.dtype


def rewrite(
    module: fx.GraphModule,
    pieces: Sequence[Sequence[fx.Node]],
    facts: Mapping[fx.Node, Any],
    make: Callable[[Draft, list[torch.dtype]], Callable[..., Any]],
) -> fx.GraphModule:
    """The graph with each piece as one call of what ``make`` makes of its draft.

    Casts at a piece's edges go into it: ``make`` gets the dtypes that its inputs really have.
    """
    last = {piece[-1]: list(piece) for piece in pieces}
    inside = {node for piece in pieces for node in piece}
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    taken: set[fx.Node] = set()
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
        wanted = [_cast_behind(n) for n in outputs]
        drafted = draft(
            nodes,
            [(n, facts[c or n].dtype) for n, c in zip(outputs, wanted, strict=True)],
            facts,
        )
        # A cast between two pieces goes into the one that comes first.
        sources = [n if n in taken else _source(n, nodes, facts) for n in drafted.inputs]
        taken.update(cast for cast in wanted if cast is not None)
        function = make(drafted, [facts[source].dtype for source in sources])
        result = graph.call_function(function, tuple(values[source] for source in sources))
        copy_meta(result, node)
        for index, (output, cast) in enumerate(zip(outputs, wanted, strict=True)):
            one = result
            if len(outputs) > 1:
                one = copy_meta(graph.call_function(operator.getitem, (result, index)), output)
            values[output] = one
            if cast is not None:
                values[cast] = one
    graph.eliminate_dead_code()
    return fx.GraphModule(module, graph)


def _cast_behind(node: fx.Node) -> fx.Node | None:
    """The cast that is the only reader of a piece's output."""
    users = list(node.users)
    casts = len(users) == 1 and users[0].target is aten.to.dtype
    return users[0] if casts and arguments(users[0])[1] in NATIVE else None


def _source(node: fx.Node, piece: Sequence[fx.Node], facts: Mapping[fx.Node, Any]) -> fx.Node:
    """What a piece reads for an input: in front of a cast that nobody else reads, its argument."""
    if node.target is aten.to.dtype and all(user in piece for user in node.users):
        before = arguments(node)[0]
        if isinstance(before, fx.Node):
            fact = facts[before]
            if isinstance(fact, Tensor) and fact.dtype in NATIVE:
                return before
    return node
