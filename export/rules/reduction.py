"""ATen operators that reduce dimensions or rank values, and matrix products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from fastres.export.builder import Builder
from fastres.ir.graph import arguments

aten = torch.ops.aten

AXES_ARE_INPUTS = 18
"""Version from which on all reductions take their axes as an input (ReduceSum since 13)."""


def reduce(b: Builder, operator: str, x: str, axes: Sequence[int], keepdim: bool) -> str:
    """One of the Reduce operators.

    Sums and means are taken one dimension after the other, from the last on: runtimes add up all
    values of one reduction in a row, and the rounding errors with them.
    """
    if operator in ("ReduceSum", "ReduceMean") and len(axes) > 1:
        for axis in sorted(axes, reverse=True):
            x = reduce(b, operator, x, [axis], keepdim)
        return x
    keep: dict[str, Any] = {"keepdims": int(keepdim)}
    if operator == "ReduceSum" or b.opset >= AXES_ARE_INPUTS:
        return b.emit(operator, x, b.integers(*axes), **keep)
    return b.emit(operator, x, axes=list(axes), **keep)


def axes_of(b: Builder, node: fx.Node, dims: Any) -> list[int]:
    """The reduced dimensions, counted from the front; all of them for None."""
    rank = b.rank(arguments(node)[0])
    if dims is None or dims == []:
        return list(range(rank))
    return sorted(axis % rank for axis in ([dims] if isinstance(dims, int) else dims))


def _reduction(operator: str) -> Callable[[Builder, fx.Node], str]:
    def rule(b: Builder, node: fx.Node) -> str:
        x = b.tensor(arguments(node)[0], b.fact(node).dtype)
        axes = axes_of(b, node, b.argument(1, "dim"))
        return reduce(b, operator, x, axes, bool(b.argument(2, "keepdim", False)))

    return rule


def _over_everything(operator: str) -> Callable[[Builder, fx.Node], str]:
    def rule(b: Builder, node: fx.Node) -> str:
        x = b.tensor(arguments(node)[0], b.fact(node).dtype)
        return reduce(b, operator, x, axes_of(b, node, None), keepdim=False)

    return rule


def _argmax(b: Builder, node: fx.Node) -> str:
    x, axis = arguments(node)[0], b.argument(1, "dim")
    keepdim = bool(b.argument(2, "keepdim", False))
    x_name = b.tensor(x)
    if axis is None:
        x_name, axis = b.emit("Reshape", x_name, b.integers(-1)), 0
    return b.emit("ArgMax", x_name, dtype=torch.int64, axis=axis, keepdims=int(keepdim))


def _softmax(operator: str) -> Callable[[Builder, fx.Node], str]:
    def rule(b: Builder, node: fx.Node) -> str:
        x, axis = arguments(node)[:2]
        x_name = b.tensor(x, b.fact(node).dtype)
        return b.emit(operator, x_name, axis=axis % max(b.rank(x), 1))

    return rule


def _topk(b: Builder, node: fx.Node) -> list[str]:
    x, count = arguments(node)[0], b.number(arguments(node)[1])
    axis = b.argument(2, "dim", -1) % b.rank(x)
    largest, ordered = b.argument(3, "largest", True), b.argument(4, "sorted", True)
    values, indices = b.emit_many(
        "TopK",
        b.tensor(x),
        b.integers(count),
        results=2,
        axis=axis,
        largest=int(largest),
        sorted=int(ordered),
    )
    return [values, b.retyped(indices, torch.int64)]


def _max_along(operator: str, index: str) -> Callable[[Builder, fx.Node], list[str]]:
    """``max(dim)``: the values and their indices."""

    def rule(b: Builder, node: fx.Node) -> list[str]:
        x, axis = arguments(node)[0], b.argument(1, "dim") % b.rank(arguments(node)[0])
        keepdim, x_name = bool(b.argument(2, "keepdim", False)), b.tensor(x)
        values = reduce(b, operator, x_name, [axis], keepdim)
        where = b.emit(index, x_name, dtype=torch.int64, axis=axis, keepdims=int(keepdim))
        return [values, where]

    return rule


def _matmul(b: Builder, node: fx.Node) -> str:
    x, y = arguments(node)
    return b.emit("MatMul", b.tensor(x), b.tensor(y))


def _addmm(b: Builder, node: fx.Node) -> str:
    bias, x, y = arguments(node)[:3]
    alpha, beta = (float(b.number(node.kwargs.get(name, 1))) for name in ("alpha", "beta"))
    return b.emit("Gemm", b.tensor(x), b.tensor(y), b.tensor(bias), alpha=alpha, beta=beta)


def _baddbmm(b: Builder, node: fx.Node) -> str:
    """``beta * bias + alpha * x @ y``."""
    bias, x, y = (b.tensor(argument) for argument in arguments(node)[:3])
    alpha, beta = (float(b.number(node.kwargs.get(name, 1))) for name in ("alpha", "beta"))
    product = b.emit("MatMul", x, y)
    if alpha != 1:
        product = b.emit("Mul", product, b.tensor(alpha, b.dtype(x)))
    if beta == 0:
        return product
    if beta != 1:
        bias = b.emit("Mul", bias, b.tensor(beta, b.dtype(x)))
    return b.emit("Add", product, bias)


def _einsum(b: Builder, node: fx.Node) -> str:
    equation, operands = arguments(node)[:2]
    if not isinstance(equation, str):
        raise b.refusal("its equation is no text")
    return b.emit("Einsum", *(b.tensor(x, b.fact(node).dtype) for x in operands), equation=equation)


def _cosine(b: Builder, node: fx.Node) -> str:
    """``(x / max(|x|, eps)) . (y / max(|y|, eps))`` along a dimension."""
    dtype = b.fact(node).dtype
    rank = max(b.rank(x) for x in arguments(node)[:2])
    axes = [b.argument(2, "dim", 1) % rank]
    least = b.tensor(float(b.argument(3, "eps", 1e-8)), dtype)

    def scaled(x: str) -> str:
        length = b.emit("Sqrt", reduce(b, "ReduceSum", b.emit("Mul", x, x), axes, keepdim=True))
        return b.emit("Div", x, b.emit("Max", length, least))

    x, y = (scaled(b.tensor(argument, dtype)) for argument in arguments(node)[:2])
    return reduce(b, "ReduceSum", b.emit("Mul", x, y), axes, keepdim=False)


def _vector_norm(b: Builder, node: fx.Node) -> str:
    """The vector norm of order 2 or 1."""
    x, order = arguments(node)[0], float(b.argument(1, "ord", 2))
    if order not in (1.0, 2.0):
        raise b.refusal(f"it is of order {order:g}; expected 1 or 2")
    axes, keepdim = axes_of(b, node, b.argument(2, "dim")), bool(b.argument(3, "keepdim", False))
    x_name = b.tensor(x, b.fact(node).dtype)
    terms = b.emit("Abs", x_name) if order == 1 else b.emit("Mul", x_name, x_name)
    y = reduce(b, "ReduceSum", terms, axes, keepdim)
    return y if order == 1 else b.emit("Sqrt", y)


def _variance(root: bool) -> Callable[[Builder, fx.Node], str]:
    def rule(b: Builder, node: fx.Node) -> str:
        x = arguments(node)[0]
        axes = axes_of(b, node, b.argument(1, "dim"))
        if node.target in (aten.var.dim, aten.std.dim):
            correction, keepdim = float(b.argument(2, "unbiased", True)), b.argument(3, "keepdim")
        else:
            correction = float(b.number(node.kwargs.get("correction", 1)))
            keepdim = node.kwargs.get("keepdim")
        keepdim = bool(keepdim)
        x_name = b.tensor(x)
        centred = b.emit("Sub", x_name, reduce(b, "ReduceMean", x_name, axes, keepdim=True))
        squared = b.emit("Mul", centred, centred)
        y = reduce(b, "ReduceMean", squared, axes, keepdim)
        if correction:
            sizes = [b.size(x, axis) for axis in axes]
            if None in sizes:
                raise b.refusal("it divides by a number of values that depends on the input")
            count = 1
            for size in sizes:
                count *= int(size or 1)
            y = b.emit("Mul", y, b.tensor(count / (count - correction), b.dtype(y)))
        return b.emit("Sqrt", y) if root else y

    return rule


RULES: dict[Any, Any] = {
    **{aten.mean.dim: _reduction("ReduceMean"), aten.mean.default: _over_everything("ReduceMean")},
    **{
        aten.sum.dim_IntList: _reduction("ReduceSum"),
        aten.sum.default: _over_everything("ReduceSum"),
    },
    **{aten.amax.default: _reduction("ReduceMax"), aten.amin.default: _reduction("ReduceMin")},
    **{
        aten.max.default: _over_everything("ReduceMax"),
        aten.min.default: _over_everything("ReduceMin"),
    },
    **{aten.max.dim: _max_along("ReduceMax", "ArgMax")},
    **{aten.min.dim: _max_along("ReduceMin", "ArgMin")},
    aten.logsumexp.default: _reduction("ReduceLogSumExp"),
    aten.prod.dim_int: _reduction("ReduceProd"),
    aten.argmax.default: _argmax,
    **{aten.softmax.int: _softmax("Softmax"), aten._softmax.default: _softmax("Softmax")},
    **{aten.log_softmax.int: _softmax("LogSoftmax")},
    **{aten._log_softmax.default: _softmax("LogSoftmax")},
    aten.topk.default: _topk,
    **{aten.matmul.default: _matmul, aten.mm.default: _matmul, aten.bmm.default: _matmul},
    **{aten.addmm.default: _addmm, aten.baddbmm.default: _baddbmm},
    **{aten.einsum.default: _einsum, aten.cosine_similarity.default: _cosine},
    aten.linalg_vector_norm.default: _vector_norm,
    **{aten.var.correction: _variance(root=False), aten.std.correction: _variance(root=True)},
    **{aten.var.dim: _variance(root=False), aten.std.dim: _variance(root=True)},
}
"""Operator -> translation."""
