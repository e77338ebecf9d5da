"""Sizes that depend on the input: numbers in PyTorch's graph, tensors [1] of int64 in a file."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fastres.export.builder import Builder
from fastres.ir.graph import arguments

aten = torch.ops.aten


def _sym_size(b: Builder, node: fx.Node) -> int | str:
    x, axis = arguments(node)
    return b.size_of(x, axis)


def _computed(name: str) -> Callable[[Builder, fx.Node], str]:
    """Integer arithmetic on sizes."""

    def rule(b: Builder, node: fx.Node) -> str:
        return b.emit(name, *(_operand(b, argument) for argument in arguments(node)))

    return rule


def _operand(b: Builder, argument: Any) -> str:
    return b.as_sizes([b.scalar(argument)])


def _floordiv(b: Builder, node: fx.Node) -> str:
    """Python rounds down, ONNX towards zero: one less where a remainder has not the divisor's sign.

    ``-(x // -k)`` is how many write a division that rounds up.
    """
    first, second = arguments(node)
    x, y = _operand(b, first), _operand(b, second)
    quotient = b.emit("Div", x, y)
    if _not_negative(first) and _not_negative(second):
        return quotient
    remainder = b.emit("Sub", x, b.emit("Mul", quotient, y))
    if not _not_negative(second):
        remainder = b.emit("Mul", remainder, b.emit("Sign", y))
    return b.emit("Add", quotient, b.emit("Min", b.emit("Sign", remainder), b.integers(0)))


def _mod(b: Builder, node: fx.Node) -> str:
    """``x - y * (x // y)``: with the divisor's sign, as Python has it."""
    x, y = (_operand(b, argument) for argument in arguments(node))
    return b.emit("Sub", x, b.emit("Mul", _floordiv(b, node), y))


def _not_negative(argument: Any) -> bool:
    """Whether a size is known to be 0 or more, whatever the input's."""
    if not isinstance(argument, fx.Node):
        return bool(argument >= 0)
    if argument.target in (max, torch.sym_max):
        return any(map(_not_negative, arguments(argument)))
    if argument.target in (operator.add, operator.mul, operator.floordiv, min, torch.sym_min):
        return all(map(_not_negative, arguments(argument)))
    return argument.target is aten.sym_size.int


def _item(b: Builder, node: fx.Node) -> Any:
    source, index = arguments(node)
    return b.values[source][index]


RULES: dict[Any, Any] = {
    aten.sym_size.int: _sym_size,
    operator.getitem: _item,
    operator.add: _computed("Add"),
    operator.sub: _computed("Sub"),
    operator.mul: _computed("Mul"),
    operator.neg: _computed("Neg"),
    operator.floordiv: _floordiv,
    operator.mod: _mod,
    max: _computed("Max"),
    min: _computed("Min"),
    torch.sym_max: _computed("Max"),
    torch.sym_min: _computed("Min"),
}
"""Operator -> translation."""
