"""Normalisations whose statistics come from the input, written as their arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from fastres.export.builder import Builder
from fastres.export.rules.reduction import reduce
from fastres.ir import ops
from fastres.ir.graph import arguments
from fastres.ir.views import LayerNorm2d

aten = torch.ops.aten


def _standardised(b: Builder, x: str, axes: Sequence[int], eps: float) -> str:
    """``(x - mean) / sqrt(variance + eps)`` over ``axes`` (Ioffe and Szegedy 2015, algorithm 1)."""
    centred = b.emit("Sub", x, reduce(b, "ReduceMean", x, axes, keepdim=True))
    variance = reduce(b, "ReduceMean", b.emit("Mul", centred, centred), axes, keepdim=True)
    deviation = b.emit("Sqrt", b.emit("Add", variance, b.tensor(float(eps), b.dtype(x))))
    return b.emit("Div", centred, deviation)


def _affine(b: Builder, y: str, weight: Any, bias: Any, shape: Sequence[int]) -> str:
    """``y * weight + bias``, each in a shape that broadcasts."""
    for operator, argument in (("Mul", weight), ("Add", bias)):
        if argument is not None:
            name = f"{argument.target}"
            value = b.constant(b.weight_of(argument).reshape(list(shape)), name)
            y = b.emit(operator, y, value)
    return y


def _batch_norm(b: Builder, node: fx.Node) -> str:
    """With the statistics of the batch; those with running statistics were folded."""
    x, weight, bias, mean, variance, training = arguments(node)[:6]
    if not training and mean is not None and variance is not None:
        raise b.refusal("its statistics are computed from the input")
    rank = b.rank(x)
    y = _standardised(b, b.tensor(x), [0, *range(2, rank)], arguments(node)[7])
    return _affine(b, y, weight, bias, [1, -1] + [1] * (rank - 2))


def _group_norm(b: Builder, node: fx.Node) -> str:
    x, groups = arguments(node)[:2]
    weight, bias, eps = b.argument(2, "weight"), b.argument(3, "bias"), b.argument(4, "eps", 1e-5)
    rank = b.rank(x)
    grouped = b.emit("Reshape", b.tensor(x), b.integers(0, groups, -1))
    y = b.reshape_like(_standardised(b, grouped, [2], eps), x)
    return _affine(b, y, weight, bias, [1, -1] + [1] * (rank - 2))


def _instance_norm(b: Builder, node: fx.Node) -> str:
    x, weight, bias, mean, _, use_input, _, eps = arguments(node)[:8]
    if mean is not None and not use_input:
        raise b.refusal("it has running statistics")
    rank = b.rank(x)
    y = _standardised(b, b.tensor(x), list(range(2, rank)), eps)
    return _affine(b, y, weight, bias, [1, -1] + [1] * (rank - 2))


def _layer_norm(b: Builder, node: fx.Node) -> str:
    x, shape = arguments(node)[0], b.number(arguments(node)[1])
    weight, bias, eps = b.argument(2, "weight"), b.argument(3, "bias"), b.argument(4, "eps", 1e-5)
    rank = b.rank(x)
    y = _standardised(b, b.tensor(x), list(range(rank - len(shape), rank)), eps)
    return _affine(b, y, weight, bias, shape)


def _layer_norm2d(b: Builder, node: fx.Node) -> str:
    norm = LayerNorm2d.of(node)
    y = _standardised(b, b.tensor(norm.x), [1], norm.eps)
    return _affine(b, y, norm.weight, norm.bias, [1, -1, 1, 1])


RULES: dict[Any, Any] = {
    aten.batch_norm.default: _batch_norm,
    aten.group_norm.default: _group_norm,
    aten.instance_norm.default: _instance_norm,
    aten.layer_norm.default: _layer_norm,
    ops.layer_norm2d: _layer_norm2d,
}
"""Operator -> translation."""
