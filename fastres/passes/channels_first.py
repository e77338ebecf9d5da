"""What is computed with channels last is computed with channels first instead.

::

    permute(0, 2, 3, 1) -> layer_norm -> permute(0, 3, 1, 2)        -> fastres::layer_norm2d
    permute(0, 2, 3, 1) -> linear -> gelu -> linear -> permute(...) -> conv2d -> gelu -> conv2d

ConvNeXt's blocks and every ``LayerNorm2d`` are spelled this way: a linear layer over the channels
of an image is a convolution of one pixel. Functions of single numbers move along, and so do sums
and products with what has been moved, with numbers and with a constant for each channel.

Checks: the value between is the image with its channels last, in every reader's eyes; weights are
constants. Whoever else reads a value with channels last gets it from a ``permute``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from fastres.ir import ops
from fastres.ir.graph import add_constant, argument_of, arguments, call, constant, label, value_of
from fastres.passes.context import Context

aten = torch.ops.aten

_TO_LAST = [0, 2, 3, 1]
_TO_FIRST = [0, 3, 1, 2]

Moved = dict[fx.Node, fx.Node]
"""Values with channels last, and the same with channels first."""


def run(module: fx.GraphModule, context: Context) -> None:
    """Move what can be moved, in the graph's order."""
    graph = module.graph
    moved: Moved = {}
    made: set[fx.Node] = set()
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        source = arguments(node)[0] if arguments(node) else None
        if _is_permutation(node, _TO_LAST):
            assert isinstance(source, fx.Node)
            moved[node] = source
        elif _is_permutation(node, _TO_FIRST) and source in moved:
            assert isinstance(source, fx.Node)
            first = moved[source]
            if first in made and "source" in node.meta:
                first.meta["source"] = node.meta["source"]
            node.replace_all_uses_with(first)
            graph.erase_node(node)
        else:
            with graph.inserting_before(node):
                new = _with_channels_first(node, moved)
            if new is not None:
                new.meta["val"] = value_of(node).permute(_TO_FIRST)
                new.meta["module"] = node.meta.get("module", "")
                new.meta["added"] = node.meta.get("added", False)
                moved[node] = new
                made.add(new)
    _hand_out(graph, moved, made)


def _is_permutation(node: fx.Node, order: list[int]) -> bool:
    if node.target is not aten.permute.default:
        return False
    value = value_of(arguments(node)[0])
    axes: Any = arguments(node)[1]
    return isinstance(value, Tensor) and [axis % value.dim() for axis in axes] == order


def _with_channels_first(node: fx.Node, moved: Moved) -> fx.Node | None:
    """The same operation on values with channels first, or None where there is none."""
    rewrite = _REWRITES.get(node.target)
    if rewrite is None and _is_function(node):
        rewrite = _elementwise
    return None if rewrite is None else rewrite(node, moved)


def _is_function(node: fx.Node) -> bool:
    """Whether a node is a function of every number of its only tensor."""
    return (
        isinstance(node.target, torch._ops.OpOverload)
        and torch.Tag.pointwise in node.target.tags
        and node.all_input_nodes == [arguments(node)[0]]
        and _same_rank(node, arguments(node)[0])
    )


def _same_rank(node: fx.Node, other: Any) -> bool:
    """Whether both are tensors of as many axes."""
    values = [value_of(each) if isinstance(each, fx.Node) else None for each in (node, other)]
    ranks = [value.dim() for value in values if isinstance(value, Tensor)]
    return len(ranks) == 2 and ranks[0] == ranks[1]


def _layer_norm(node: fx.Node, moved: Moved) -> fx.Node | None:
    x, shape = arguments(node)[:2]
    weight, bias = argument_of(node, 2, "weight", None), argument_of(node, 3, "bias", None)
    assert isinstance(shape, (list, tuple))
    constants = all(each is None or constant(each) is not None for each in (weight, bias))
    if x not in moved or len(shape) != 1 or not constants:
        return None
    assert isinstance(x, fx.Node)
    epsilon = argument_of(node, 4, "eps", 1e-5)
    return call(node.graph, ops.layer_norm2d, (moved[x], weight, bias, epsilon), label(node))


def _linear(node: fx.Node, moved: Moved) -> fx.Node | None:
    x, weight = arguments(node)[:2]
    bias = argument_of(node, 2, "bias", None)
    tensor = constant(weight)
    if x not in moved or tensor is None or (bias is not None and constant(bias) is None):
        return None
    assert isinstance(x, fx.Node)
    filters = add_constant(node.graph, f"{label(node)}_filters", tensor[:, :, None, None])
    geometry = ([1, 1], [0, 0], [1, 1], 1)
    return call(node.graph, aten.conv2d.default, (moved[x], filters, bias, *geometry), label(node))


def _elementwise(node: fx.Node, moved: Moved) -> fx.Node | None:
    """A function, or a sum or product whose other side is moved, a number or one per channel."""
    if not any(each in moved for each in node.all_input_nodes):
        return None
    channels = value_of(node).shape[-1]
    sides: list[Any] = []
    for argument in arguments(node):
        if isinstance(argument, fx.Node) and argument in moved:
            if not _same_rank(node, argument):
                return None
            sides.append(moved[argument])
            continue
        tensor = constant(argument)
        if isinstance(argument, fx.Node) and (tensor is None or tensor.shape != (channels,)):
            return None
        if tensor is not None:
            name = f"{label(node)}_constant"
            argument = add_constant(node.graph, name, tensor[:, None, None])
        sides.append(argument)
    new = call(node.graph, node.target, sides, label(node))
    new.kwargs = node.kwargs
    return new


_REWRITES: dict[Any, Callable[[fx.Node, Moved], fx.Node | None]] = {
    aten.layer_norm.default: _layer_norm,
    aten.linear.default: _linear,
    aten.add.Tensor: _elementwise,
    aten.sub.Tensor: _elementwise,
    aten.mul.Tensor: _elementwise,
    aten.div.Tensor: _elementwise,
}


def _hand_out(graph: fx.Graph, moved: Moved, made: set[fx.Node]) -> None:
    """Give the values back with channels last to those that read them so, and drop the rest."""
    for last, first in reversed(moved.items()):
        left = [user for user in last.users if user not in moved]
        if left and first in made:
            with graph.inserting_after(first):
                given = call(graph, aten.permute.default, (first, _TO_LAST), last.name)
            given.meta.update(last.meta)
            last.replace_all_uses_with(given, delete_user_cb=left.__contains__)
        if not last.users:
            graph.erase_node(last)
