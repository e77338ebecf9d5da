"""Comparisons, and selections by them: ``where``, ``masked_fill``, ``threshold``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from fastres.export.builder import Builder
from fastres.ir.graph import arguments

aten = torch.ops.aten


def _fact(b: Builder, argument: Any) -> Any:
    return b.fact(argument) if isinstance(argument, fx.Node) else argument


def _compared(operator: str) -> Callable[[Builder, fx.Node], str]:
    """Both sides in the dtype that torch promotes them to."""

    def rule(b: Builder, node: fx.Node) -> str:
        first, second = arguments(node)[:2]
        dtype = torch.result_type(_fact(b, first), _fact(b, second))
        sides = (b.tensor(first, dtype), b.tensor(second, dtype))
        result = b.emit(operator.removeprefix("Not"), *sides, dtype=torch.bool)
        return b.emit("Not", result) if operator.startswith("Not") else result

    return rule


def _where(b: Builder, node: fx.Node) -> str:
    condition, *choices = arguments(node)
    mask = b.tensor(condition)
    if b.dtype(mask) != torch.bool:
        raise b.refusal("its condition is no comparison")
    dtype = b.fact(node).dtype
    return b.emit("Where", mask, *(b.tensor(choice, dtype) for choice in choices), dtype=dtype)


def _masked_fill(b: Builder, node: fx.Node) -> str:
    x, mask, value = arguments(node)
    dtype = b.fact(node).dtype
    return b.emit("Where", b.tensor(mask), b.tensor(value, dtype), b.tensor(x), dtype=dtype)


def _threshold(b: Builder, node: fx.Node) -> str:
    """``value`` where ``x <= threshold``, else ``x``; as in torch, NaN is not <= and stays."""
    x, threshold, value = arguments(node)
    x_name = b.tensor(x)
    at_most = b.emit("LessOrEqual", x_name, b.tensor(threshold, b.dtype(x_name)), dtype=torch.bool)
    return b.emit("Where", at_most, b.tensor(value, b.dtype(x_name)), x_name, dtype=b.dtype(x_name))


def _both(operator: str) -> Callable[[Builder, fx.Node], str]:
    def rule(b: Builder, node: fx.Node) -> str:
        sides = arguments(node)
        facts = [_fact(b, side) for side in sides]
        if not all(isinstance(fact, Tensor) and fact.dtype == torch.bool for fact in facts):
            raise b.refusal("it takes numbers for truth values")
        return b.emit(operator, *map(b.tensor, sides))

    return rule


_COMPARISONS = {
    "gt": "Greater", "lt": "Less", "ge": "GreaterOrEqual", "le": "LessOrEqual", "eq": "Equal",
    "ne": "NotEqual",
}  # fmt: skip

RULES: dict[Any, Any] = {
    **{
        getattr(getattr(aten, name), overload): _compared(operator)
        for name, operator in _COMPARISONS.items()
        for overload in ("Scalar", "Tensor")
    },
    **{
        getattr(aten.where, overload): _where
        for overload in ("self", "ScalarSelf", "ScalarOther", "Scalar")
    },
    aten.masked_fill.Scalar: _masked_fill,
    aten.masked_fill.Tensor: _masked_fill,
    aten.threshold.default: _threshold,
    **dict.fromkeys(
        (aten.logical_and.default, aten.bitwise_and.Tensor, aten.__and__.Tensor),
        _both("And"),
    ),
    **dict.fromkeys(
        (aten.logical_or.default, aten.bitwise_or.Tensor, aten.__or__.Tensor),
        _both("Or"),
    ),
    **dict.fromkeys((aten.logical_not.default, aten.bitwise_not.default), _both("Not")),
}
"""Operator -> translation."""
