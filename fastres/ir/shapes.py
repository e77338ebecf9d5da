"""Shapes of a graph's values by arithmetic, where every operator has a formula.

:func:`fastres.ir.propagate.propagate` asks torch, whose fake tensors import its compiler: most
of a second in a new process before the first answer. A ResNet consists of a dozen operators whose
shapes are formulas. Whatever is unusual here (an operator without a formula, sizes that do not fit)
is left to torch, which also says what is wrong.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fastres.ir import ops
from fastres.ir.propagate import propagate

aten = torch.ops.aten


class _Unusual(Exception):
    """No formula here gives this value's shape."""


def shapes(module: fx.GraphModule, inputs: Sequence[Any]) -> dict[fx.Node, Any]:
    """What every value is for these inputs: a tensor without memory, or a plain value.

    Shapes and dtypes are those of :func:`propagate`; strides and devices mean nothing.

    Raises:
        InputError: an operator cannot take these sizes.
    """
    try:
        return _by_formula(module, inputs)
    except _Unusual:
        return propagate(module, inputs)


def _by_formula(module: fx.GraphModule, inputs: Sequence[Any]) -> dict[fx.Node, Any]:
    facts: dict[fx.Node, Any] = {}
    values = iter(inputs)
    for node in module.graph.nodes:
        if node.op == "placeholder":
            facts[node] = _like(next(values))
        elif node.op == "get_attr":
            facts[node] = _like(getattr(module, str(node.target)))
        elif node.op == "call_function":
            formula = _FORMULAS.get(node.target) or getattr(node.target, "shape_formula", None)
            if formula is None or node.kwargs:
                raise _Unusual
            args = [facts[a] if isinstance(a, fx.Node) else a for a in node.args]
            facts[node] = formula(*args)
    return facts


def _like(value: Any) -> Any:
    return _tensor(value.shape, value.dtype) if isinstance(value, Tensor) else value


def _tensor(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _need(*conditions: bool) -> None:
    if not all(conditions):
        raise _Unusual


def _conv2d(
    x: Tensor, weight: Tensor, bias: Any, residual: Any, stride: Any, padding: Any,
    dilation: Any, groups: Any, before: str, after: str,
) -> Tensor:  # fmt: skip
    numbers = (*stride, *padding, *dilation, groups)
    _need(x.dim() == 4, weight.dim() == 4, all(type(number) is int for number in numbers))
    (n, c, h, w), (k, per_group, r, s) = x.shape, weight.shape
    _need(min(*stride, *dilation, groups) > 0, min(padding) >= 0, x.numel() > 0)
    _need(per_group * groups == c, k % groups == 0, x.dtype == weight.dtype)
    _need(bias is None or (tuple(bias.shape) == (k,) and bias.dtype == x.dtype))
    p = (h + padding[0] + padding[2] - dilation[0] * (r - 1) - 1) // stride[0] + 1
    q = (w + padding[1] + padding[3] - dilation[1] * (s - 1) - 1) // stride[1] + 1
    _need(p > 0, q > 0)
    shape = (n, k, p, q)
    _need(residual is None or (tuple(residual.shape) == shape and residual.dtype == x.dtype))
    return _tensor(shape, x.dtype)


def _scale_shift(x: Tensor, scale: Tensor, shift: Tensor, activation: str) -> Tensor:
    _need(x.dim() >= 2, x.is_floating_point())
    _need(tuple(scale.shape) == tuple(shift.shape) == (x.shape[1],), scale.dtype == shift.dtype)
    return _tensor(x.shape, x.dtype)


def _add_relu(x: Tensor, y: Tensor) -> Tensor:
    _need(x.shape == y.shape, x.dtype == y.dtype)
    return _tensor(x.shape, x.dtype)


def _max_pool2d(
    x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> Tensor:
    _need(x.dim() == 4, not ceil_mode, x.numel() > 0, min(*kernel, *stride, *dilation) > 0)
    sizes = list(x.shape[:2])
    for axis in range(2):
        _need(0 <= 2 * padding[axis] <= kernel[axis])
        span = x.shape[2 + axis] + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1
        sizes.append(span // stride[axis] + 1)
    _need(min(sizes) > 0)
    return _tensor(sizes, x.dtype)


def _global_avg_pool(x: Tensor, keepdim: bool) -> Tensor:
    _need(x.dim() == 4, x.is_floating_point())
    return _tensor((*x.shape[:2], 1, 1) if keepdim else x.shape[:2], x.dtype)


def _linear(x: Tensor, weight: Tensor, bias: Any, activation: str) -> Tensor:
    _need(x.dim() == 2, weight.dim() == 2, x.shape[1] == weight.shape[1], x.dtype == weight.dtype)
    _need(bias is None or (tuple(bias.shape) == (weight.shape[0],) and bias.dtype == x.dtype))
    return _tensor((x.shape[0], weight.shape[0]), x.dtype)


def _flatten(x: Tensor, start: int = 0, end: int = -1) -> Tensor:
    _need(x.dim() >= 2, start == 1, end in (-1, x.dim() - 1))
    return _tensor((x.shape[0], x.shape[1:].numel()), x.dtype)


def _to_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    return _tensor(x.shape, dtype)


_FORMULAS: dict[Any, Callable[..., Tensor]] = {
    ops.conv2d: _conv2d,
    ops.scale_shift: _scale_shift,
    ops.add_relu: _add_relu,
    ops.max_pool2d: _max_pool2d,
    ops.global_avg_pool: _global_avg_pool,
    ops.linear: _linear,
    aten.flatten.using_ints: _flatten,
    aten.to.dtype: _to_dtype,
    operator.getitem: operator.getitem,
}
