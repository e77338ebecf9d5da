"""Maps along an axis of their own become maps beside each other.

::

    stack([a, b], 1).sum(1)                            -> a + b
    x.reshape(N, 2, C, H, W).sum(1)                    -> x[:, :C] + x[:, C:]
    (stack([a, b], 1) * w.reshape(N, 2, C, 1, 1)).sum(1) -> a * w[:, :C] + b * w[:, C:]
    stack([a, b], 1).softmax(1)                        -> sigmoid(a - b), sigmoid(b - a)

Selective kernels (SKNet) and split attention (ResNeSt) are spelled this way, in tensors of five
axes that no kernel is for. The softmax of two numbers is a sigmoid: ``e^a / (e^a + e^b) =
1 / (1 + e^(b - a))``; the sums in it are of one rounding, as softmax's own.

Checks: it begins with a stack or an image's channels, ends with the sum over the axis, and between
are only products, softmaxes of two and new shapes that keep the order of numbers. Anything else
stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx

from fastres.ir.graph import (
    argument_of,
    arguments,
    call,
    erase_unused,
    is_call,
    label,
    replace,
    value_of,
)
from fastres.passes.context import Context

aten = torch.ops.aten

Parts = list[fx.Node]
"""Maps [N, C, H, W] that lie beside each other along the axis."""

Known = dict[tuple[fx.Node, int], Parts | None]
"""What has been looked for: a node's value as so many maps."""

_SHAPES = (aten.view.default, aten.reshape.default, aten.flatten.using_ints)


def run(module: fx.GraphModule, context: Context) -> None:
    """Rewrite every sum over an axis of maps, with what leads to it."""
    graph = module.graph
    before = set(graph.nodes)
    known: Known = {}
    for node in list(graph.nodes):
        if not _sums_maps(node):
            continue
        (stacked,) = node.all_input_nodes
        count = int(value_of(stacked).shape[1])
        parts = _parts(stacked, count, known)
        if parts is None or not _are_of(parts, stacked):
            continue
        with graph.inserting_before(node):
            *first, last = parts
            total = reduce(lambda a, b: _compute(node, aten.add.Tensor, a, b), first)
            summed = call(graph, aten.add.Tensor, (total, last), label(node))
            summed.meta["of_maps"] = True
            replace(node, summed)
    # What is no longer read, and what was made for a sum that then stayed.
    read = {node for node, _ in known}
    erase_unused(node for node in reversed(list(graph.nodes)) if node in read or node not in before)


def _sums_maps(node: fx.Node) -> bool:
    """Whether a node sums [N, R, C, H, W] over R, of which there are several."""
    if not is_call(node, aten.sum.dim_IntList) or node.kwargs.get("dtype") is not None:
        return False
    x, axes = arguments(node)[:2]
    value = value_of(x) if isinstance(x, fx.Node) else None
    if not isinstance(value, Tensor) or value.dim() != 5 or not value.is_floating_point():
        return False
    count: Any = value.shape[1]
    keeps = argument_of(node, 2, "keepdim", False)
    return list(axes or []) in ([1], [-4]) and not keeps and isinstance(count, int) and count > 1


def _parts(node: Any, count: int, known: Known) -> Parts | None:
    """The maps that lie beside each other in a node's value, or None where they are not found.

    Of every image, the node's numbers in their order are the first map's, the second's and so on.
    """
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return None
    if (node, count) not in known:
        known[node, count] = _found(node, count, known)
    return known[node, count]


def _found(node: fx.Node, count: int, known: Known) -> Parts | None:
    source = arguments(node)[0] if arguments(node) else None
    value = value_of(node)
    if is_call(node, aten.stack.default):
        maps: Any = source
        is_plain = argument_of(node, 1, "dim", 0) == 1 and value.dim() == 5
        return list(maps) if is_plain and len(maps) == count else None
    if is_call(node, aten.mul.Tensor):
        sides = [_parts(each, count, known) for each in arguments(node)[:2]]
        if any(s is None or not _are_of(s, n) for s, n in zip(sides, arguments(node), strict=True)):
            return None
        with node.graph.inserting_before(node):
            pairs = zip(*sides, strict=True)
            return [_compute(node, aten.mul.Tensor, a, b) for a, b in pairs]
    if is_call(node, aten.softmax.int):
        pair = _parts(source, count, known)
        if (
            pair is None
            or count != 2
            or arguments(node)[1] != 1
            or not _same(value.shape[1:2], (count,))
        ):
            return None
        if argument_of(node, 2, "dtype", None) is not None:
            return None
        with node.graph.inserting_before(node):
            a, b = pair
            return [
                _compute(node, aten.sigmoid.default, _compute(node, aten.sub.Tensor, *terms))
                for terms in ((a, b), (b, a))
            ]
    if is_call(node, aten.transpose.int):
        return _of_groups(node, count)
    if node.target in _SHAPES and _keeps_batch(node):
        inner = _parts(source, count, known)
        return _channels(node, count) if inner is None else inner
    return None


def _channels(node: fx.Node, count: int) -> Parts | None:
    """An image's channels as so many maps, where a node is [N, count, C, H, W] of [N, C', H, W]."""
    source, shape = arguments(node)[0], value_of(node).shape
    assert isinstance(source, fx.Node)
    image = value_of(source)
    if image.dim() != 4 or len(shape) != 5:
        return None
    size: Any = shape[2]
    if not isinstance(size, int) or not _same(
        (count, *image.shape[1:]), (shape[1], count * size, *shape[3:])
    ):
        return None
    return [_slice(node, source, each * size, (each + 1) * size) for each in range(count)]


def _of_groups(node: fx.Node, count: int) -> Parts | None:
    """Of [N, groups, count, C] with the middle axes exchanged: each map is one of every group."""
    view, *axes = arguments(node)
    if not isinstance(view, fx.Node) or view.target not in _SHAPES or not _keeps_batch(view):
        return None
    source, shape = arguments(view)[0], value_of(view).shape
    assert isinstance(source, fx.Node)
    vector = value_of(source)
    is_vector = vector.dim() == 4 and _same(vector.shape[2:], (1, 1))
    if len(shape) != 4 or sorted(axes) != [1, 2] or not is_vector:
        return None
    if not _same(shape[2:3], (count,)):
        return None
    groups, size = shape[1], shape[3]
    if not all(isinstance(each, int) for each in (groups, size)):
        return None
    parts = []
    for each in range(count):
        starts = [(group * count + each) * size for group in range(groups)]
        pieces = [_slice(node, source, start, start + size) for start in starts]
        with node.graph.inserting_before(node):
            parts.append(pieces[0] if groups == 1 else _compute(node, aten.cat.default, pieces, 1))
    return parts


def _keeps_batch(node: fx.Node) -> bool:
    source = arguments(node)[0]
    before = value_of(source) if isinstance(source, fx.Node) else None
    return isinstance(before, Tensor) and _same(before.shape[:1], value_of(node).shape[:1])


def _are_of(parts: Parts, node: Any) -> bool:
    """Whether a node is [N, R, C, H, W] of these R maps [N, C, H, W]."""
    shape = value_of(node).shape
    return (
        len(shape) == 5
        and shape[1] == len(parts)
        and all(_same(value_of(part).shape[1:], shape[2:]) for part in parts)
    )


def _same(sizes: Sequence[Any], others: Sequence[Any]) -> bool:
    """Equal as written: asking symbols would answer for the example's size."""
    return [str(size) for size in sizes] == [str(size) for size in others]


def _slice(node: fx.Node, x: fx.Node, start: int, end: int) -> fx.Node:
    with node.graph.inserting_before(node):
        return _compute(node, aten.slice.Tensor, x, 1, start, end)


def _compute(node: fx.Node, target: Any, *args: Any) -> fx.Node:
    """A call at the insert point that stands for a part of ``node``."""
    new = call(node.graph, target, args, label(node))
    new.meta["val"] = target(*fx.node.map_arg(args, value_of))
    new.meta["module"] = node.meta.get("module", "")
    new.meta["added"] = node.meta.get("added", False)
    new.meta["of_maps"] = True
    return new
