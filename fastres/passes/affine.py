"""Per-channel constants multiplied or added become one scale and shift.

::

    x * c              -> scale_shift(x, c, 0)
    x + c              -> scale_shift(x, 1, c)
    (x * a + b) * c + d -> scale_shift(x, a * c, b * c + d)

Frozen BatchNorms and layer scales are spelled this way. Constants are float64 until the end.

Checks: the constant has one value per channel (shape [C, 1, 1] or [1, C, 1, 1]) and broadcasts
without changing the shape; two are merged only where nobody else reads the value between them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fastres.ir import ops
from fastres.ir.graph import (
    add_constant,
    arguments,
    call,
    constant,
    is_call,
    label,
    replace,
    same_shape,
    value_of,
)
from fastres.passes.context import Context

aten = torch.ops.aten


def run(module: fx.GraphModule, context: Context) -> None:
    """Rewrite each operation, then merge adjacent scale-and-shifts."""
    for node in list(module.graph.nodes):
        if is_call(node, aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor):
            _to_scale_shift(node)
    for node in list(module.graph.nodes):
        if is_call(node, ops.scale_shift):
            _merge(node)


def _to_scale_shift(node: fx.Node) -> None:
    x, value = arguments(node)[:2]
    if node.kwargs.get("alpha", 1) != 1 and constant(value) is None:
        return  # constant + alpha * x: the factor belongs to the image
    if constant(value) is None and node.target is not aten.sub.Tensor:
        x, value = value, x
    per_channel = _per_channel(x, value, node)
    if per_channel is None:
        return
    assert isinstance(x, fx.Node)
    if node.target is aten.mul.Tensor:
        scale, shift = per_channel, torch.zeros_like(per_channel)
    else:
        alpha: Any = node.kwargs.get("alpha", 1)
        factor = float(alpha)
        sign = -factor if node.target is aten.sub.Tensor else factor
        scale, shift = torch.ones_like(per_channel), per_channel * sign
    _replace_by_scale_shift(node, x, scale, shift)


def _per_channel(x: Any, value: Any, result: fx.Node) -> Tensor | None:
    tensor = constant(value)
    if tensor is None or not isinstance(x, fx.Node) or not same_shape(x, result):
        return None
    x_value = value_of(x)
    if x_value.dim() != 4 or tensor.dim() not in (3, 4) or not tensor.is_floating_point():
        return None
    channels = x_value.shape[1]
    if list(tensor.shape)[-3:] != [channels, 1, 1] or tensor.numel() != channels:
        return None
    return tensor.detach().double().flatten()


def _merge(node: fx.Node) -> None:
    first = arguments(node)[0]
    if not is_call(first, ops.scale_shift) or len(first.users) != 1:
        return
    a, b = constant(arguments(first)[1]), constant(arguments(first)[2])
    c, d = constant(arguments(node)[1]), constant(arguments(node)[2])
    assert a is not None and b is not None and c is not None and d is not None
    has_batch_norm = first.meta.get("batch_norm") or node.meta.get("batch_norm")
    if first.meta.get("batch_norm") and node.meta.get("batch_norm"):
        return  # two BatchNorms are two lines of the receipt; folding takes them one by one
    new = _replace_by_scale_shift(node, arguments(first)[0], a * c, b * c + d)
    if has_batch_norm:
        new.meta["batch_norm"] = True
        new.meta["module"] = (first if first.meta.get("batch_norm") else node).meta.get(
            "module", ""
        )
    node.graph.erase_node(first)


def _replace_by_scale_shift(node: fx.Node, x: fx.Node, scale: Tensor, shift: Tensor) -> fx.Node:
    with node.graph.inserting_before(node):
        scale_node = add_constant(node.graph, f"{label(node)}_scale", scale, folded=True)
        shift_node = add_constant(node.graph, f"{label(node)}_shift", shift, folded=True)
        new = call(node.graph, ops.scale_shift, (x, scale_node, shift_node, "none"), label(node))
    replace(node, new)
    return new
