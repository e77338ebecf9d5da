"""The dtype and device that a captured graph took from torch's defaults are written into it.

``torch.ones(3)``, ``torch.arange(w) / w`` and ``image / 255`` on bytes give numbers of torch's
default dtype. That may be another one in a later call, and it is the whole process's, so that a
call cannot set it either. The graph therefore names it: as an argument of operators that create
tensors, and by a cast of integers before they become fractions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fastres.ir.graph import arguments, call, value_of

aten = torch.ops.aten


def make_defaults_explicit(graph: fx.Graph) -> None:
    """Make the graph's values independent of torch's default dtype and device."""
    for node in list(graph.nodes):
        value = value_of(node)
        if not isinstance(node.target, torch._ops.OpOverload) or not isinstance(value, Tensor):
            continue
        read = [n for n in node.all_input_nodes if isinstance(value_of(n), Tensor)]
        if not read:
            _add_dtype_and_device(node, value)
        elif _promotes_to_default_dtype(node, value, read):
            _cast(node, value.dtype if value.is_floating_point() else torch.get_default_dtype())


def _add_dtype_and_device(node: fx.Node, value: Tensor) -> None:
    assert isinstance(node.target, torch._ops.OpOverload)
    accepted = {argument.name for argument in node.target._schema.arguments}
    defaults: dict[str, Any] = {"device": value.device}
    if value.is_floating_point() or value.is_complex():
        defaults["dtype"] = value.dtype
    missing = {k: v for k, v in defaults.items() if k in accepted and node.kwargs.get(k) is None}
    node.kwargs = {**node.kwargs, **missing}


def _promotes_to_default_dtype(node: fx.Node, value: Tensor, read: list[fx.Node]) -> bool:
    """Whether ``node`` promotes integers to torch's default dtype, or compares them to floats."""
    operands = [*node.args, *node.kwargs.values()]
    if any(isinstance(argument, torch.dtype) for argument in operands):
        return False
    if not all(_is_whole(value_of(n)) for n in read):
        return False
    return value.is_floating_point() or any(map(_is_fraction, operands))


def _is_whole(value: Tensor) -> bool:
    return not (value.is_floating_point() or value.is_complex() or value.is_quantized)


def _is_fraction(argument: Any) -> bool:
    value = value_of(argument) if isinstance(argument, fx.Node) else argument
    return isinstance(value, (float, torch.SymFloat))


def _cast(node: fx.Node, dtype: torch.dtype) -> None:
    """Cast the tensors that ``node`` reads to ``dtype``; ``where`` reads its numbers as tensors."""
    assert isinstance(node.target, torch._ops.OpOverload)
    with node.graph.inserting_before(node):
        if node.target._opname != "where":
            for old in node.all_input_nodes:
                if isinstance(value_of(old), Tensor):
                    node.replace_input_with(old, _as_tensor(node, old, dtype))
            return
        condition, *choices = arguments(node)
        node.target = aten.where.self
        node.args = (condition, *(_as_tensor(node, choice, dtype) for choice in choices))


def _as_tensor(node: fx.Node, argument: Any, dtype: torch.dtype) -> fx.Node:
    """A tensor or a number that ``node`` reads, as a tensor of ``dtype``."""
    value = value_of(node)
    operand = value_of(argument) if isinstance(argument, fx.Node) else argument
    name = f"{node.name}_operand"
    if isinstance(operand, Tensor):
        new = call(node.graph, aten.to.dtype, (argument, dtype), name)
        new.meta["val"] = operand.to(dtype)
    else:
        new = call(node.graph, aten.scalar_tensor.default, (argument,), name)
        new.kwargs = {"dtype": dtype, "device": value.device}
        new.meta["val"] = value.new_empty((), dtype=dtype)
    new.meta["module"] = node.meta.get("module", "")
    return new
