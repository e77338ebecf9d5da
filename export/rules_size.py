"""Sizes that depend on the input: numbers in PyTorch's graph, tensors [1] of int64 in a file."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fastres.export.onnx_builder import Builder
from fastres.graph import arguments

aten = torch.ops.aten


def _sym_size(b: Builder, node: fx.Node) -> int | str:
    x, axis = arguments(node)
    return b.size_of(x, axis)


def _computed(name: str) -> Callable[[Builder, fx.Node], str]:
    """Whole-number arithmetic of sizes, none of which is negative."""

    def rule(b: Builder, node: fx.Node) -> str:
        parts = [b.scalar(argument) for argument in arguments(node)]
        return b.emit(name, *(b.integers(p) if isinstance(p, int) else p for p in parts))

    return rule


def _item(b: Builder, node: fx.Node) -> Any:
    source, index = arguments(node)
    return b.values[source][index]


RULES: dict[Any, Any] = {
    aten.sym_size.int: _sym_size,
    operator.getitem: _item,
    operator.add: _computed("Add"),
    operator.sub: _computed("Sub"),
    operator.mul: _computed("Mul"),
    operator.floordiv: _computed("Div"),
    max: _computed("Max"),
    min: _computed("Min"),
    torch.sym_max: _computed("Max"),
    torch.sym_min: _computed("Min"),
}
"""Operator -> translation."""
