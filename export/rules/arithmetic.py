"""Element-wise arithmetic of ATen. Numbers become constants of the result's dtype."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fastres.export.builder import Builder
from fastres.export.rules.activations import activate, clip, hard_sigmoid
from fastres.ir.graph import arguments
from fastres.kernels.activations import BY_ATEN

aten = torch.ops.aten


def _unary(operator: str) -> Callable[[Builder, fx.Node], str]:
    def rule(b: Builder, node: fx.Node) -> str:
        return b.emit(operator, _operand(b, node, 0))

    return rule


def _activation(name: str) -> Callable[[Builder, fx.Node], str]:
    return lambda b, node: activate(b, _operand(b, node, 0), name)


def _operand(b: Builder, node: fx.Node, index: int) -> str:
    """An operand in the dtype of the result: torch promotes, ONNX does not."""
    return b.tensor(arguments(node)[index], b.fact(node).dtype)


def _binary(operator: str) -> Callable[[Builder, fx.Node], str]:
    def rule(b: Builder, node: fx.Node) -> str:
        return b.emit(operator, _operand(b, node, 0), _operand(b, node, 1))

    return rule


def _sum(operator: str, reverse: bool = False) -> Callable[[Builder, fx.Node], str]:
    """``x ± alpha * y``, or ``y - alpha * x``."""

    def rule(b: Builder, node: fx.Node) -> str:
        first, second = (_operand(b, node, index) for index in ((1, 0) if reverse else (0, 1)))
        alpha = b.number(b.argument(2, "alpha", 1))
        if alpha != 1:
            second = b.emit("Mul", second, b.tensor(alpha, b.fact(node).dtype))
        return b.emit(operator, first, second)

    return rule


def _div(b: Builder, node: fx.Node) -> str:
    mode = b.argument(2, "rounding_mode")
    if not b.fact(node).is_floating_point():
        raise b.refusal("it divides whole numbers")
    quotient = b.emit("Div", _operand(b, node, 0), _operand(b, node, 1))
    if mode is None:
        return quotient
    if mode != "floor":
        raise b.refusal(f"it rounds by {mode!r}; expected None or 'floor'")
    return b.emit("Floor", quotient)


def _one_over(b: Builder, node: fx.Node) -> str:
    return _reciprocal(b, _operand(b, node, 0))


def _rsqrt(b: Builder, node: fx.Node) -> str:
    return _reciprocal(b, b.emit("Sqrt", _operand(b, node, 0)))


def _reciprocal(b: Builder, x: str) -> str:
    """The operator Reciprocal is not on TensorRT's list."""
    return b.emit("Div", b.constant(torch.ones((), dtype=b.dtype(x), device="cpu")), x)


def _clamp(b: Builder, node: fx.Node) -> str:
    low, high = b.number(b.argument(1, "min")), b.number(b.argument(2, "max"))
    return clip(b, _operand(b, node, 0), low, high)


def _hardtanh(b: Builder, node: fx.Node) -> str:
    low, high = b.argument(1, "min_val", -1.0), b.argument(2, "max_val", 1.0)
    return clip(b, _operand(b, node, 0), low, high)


def _leaky_relu(b: Builder, node: fx.Node) -> str:
    slope = b.argument(1, "negative_slope", 0.01)
    return b.emit("LeakyRelu", _operand(b, node, 0), alpha=float(slope))


def _elu(b: Builder, node: fx.Node) -> str:
    if b.argument(2, "scale", 1) != 1 or b.argument(3, "input_scale", 1) != 1:
        raise b.refusal("it scales its input or result")
    return b.emit("Elu", _operand(b, node, 0), alpha=float(b.argument(1, "alpha", 1.0)))


def _prelu(b: Builder, node: fx.Node) -> str:
    x, slope = arguments(node)
    values = b.weight_of(slope)
    over = [-1] + [1] * (b.rank(x) - 2) if values.numel() > 1 else [1]
    name = f"{node.meta.get('module') or node.name}.weight"
    return b.emit("PRelu", b.tensor(x), b.constant(values.reshape(over), name))


def _softplus(b: Builder, node: fx.Node) -> str:
    if b.argument(1, "beta", 1) != 1:
        raise b.refusal("it has a beta other than 1")
    return b.emit("Softplus", _operand(b, node, 0))


def _mish(b: Builder, node: fx.Node) -> str:
    x = _operand(b, node, 0)
    return b.emit("Mul", x, b.emit("Tanh", b.emit("Softplus", x)))


def _log_sigmoid(b: Builder, node: fx.Node) -> str:
    """``-log(1 + exp(-x))``."""
    return b.emit("Neg", b.emit("Softplus", b.emit("Neg", _operand(b, node, 0))))


def _selu(b: Builder, node: fx.Node) -> str:
    """Klambauer et al. (2017); ONNX's defaults are its two constants."""
    return b.emit("Selu", _operand(b, node, 0))


def _gelu(b: Builder, node: fx.Node) -> str:
    """``x/2 * (1 + erf(x / sqrt(2)))``, or its approximation by tanh (Hendrycks and Gimpel)."""
    x = _operand(b, node, 0)

    def number(value: float) -> str:
        return b.tensor(value, b.dtype(x))

    if b.argument(1, "approximate", "none") == "none":
        inner = b.emit("Erf", b.emit("Mul", x, number(math.sqrt(0.5))))
    else:
        cube = b.emit("Mul", b.emit("Mul", x, x), x)
        shifted = b.emit("Add", x, b.emit("Mul", cube, number(0.044715)))
        inner = b.emit("Tanh", b.emit("Mul", shifted, number(math.sqrt(2.0 / math.pi))))
    half = b.emit("Mul", x, number(0.5))
    return b.emit("Mul", half, b.emit("Add", inner, number(1.0)))


def _power(b: Builder, node: fx.Node) -> str:
    x, exponent = _operand(b, node, 0), b.number(arguments(node)[1])
    if exponent == 2:
        return b.emit("Mul", x, x)
    if exponent == 0.5:
        return b.emit("Sqrt", x)
    return b.emit("Pow", x, b.tensor(float(exponent), b.dtype(x)))


def _exp2(b: Builder, node: fx.Node) -> str:
    x = _operand(b, node, 0)
    return b.emit("Pow", b.tensor(2.0, b.dtype(x)), x)


def _log2(b: Builder, node: fx.Node) -> str:
    x = _operand(b, node, 0)
    return b.emit("Mul", b.emit("Log", x), b.tensor(1.0 / math.log(2.0), b.dtype(x)))


def _clamp_tensor(b: Builder, node: fx.Node) -> str:
    x = _operand(b, node, 0)
    for index, name, operator in ((1, "min", "Max"), (2, "max", "Min")):
        bound = b.argument(index, name)
        if bound is not None:
            x = b.emit(operator, x, b.tensor(bound, b.fact(node).dtype))
    return x


def _hardsigmoid(b: Builder, node: fx.Node) -> str:
    return hard_sigmoid(b, _operand(b, node, 0))


def _square(b: Builder, node: fx.Node) -> str:
    x = _operand(b, node, 0)
    return b.emit("Mul", x, x)


def _added(operator: str) -> Callable[[Builder, fx.Node], str]:
    """``x + value * a * b``, or ``a / b``."""

    def rule(b: Builder, node: fx.Node) -> str:
        x, a, c = (_operand(b, node, index) for index in range(3))
        term = b.emit(operator, a, c)
        value = b.argument(3, "value", 1)
        if value != 1:
            term = b.emit("Mul", term, b.tensor(float(value), b.dtype(x)))
        return b.emit("Add", x, term)

    return rule


def _lerp(b: Builder, node: fx.Node) -> str:
    """``x + weight * (y - x)``."""
    x, y, weight = (_operand(b, node, index) for index in range(3))
    return b.emit("Add", x, b.emit("Mul", weight, b.emit("Sub", y, x)))


RULES: dict[Any, Any] = {
    **{aten.add.Tensor: _sum("Add"), aten.add.Scalar: _sum("Add")},
    **{aten.sub.Tensor: _sum("Sub"), aten.sub.Scalar: _sum("Sub")},
    **{aten.rsub.Tensor: _sum("Sub", reverse=True), aten.rsub.Scalar: _sum("Sub", reverse=True)},
    **{aten.mul.Tensor: _binary("Mul"), aten.mul.Scalar: _binary("Mul")},
    **{aten.div.Tensor: _div, aten.div.Scalar: _div, aten.div.Tensor_mode: _div},
    **{aten.maximum.default: _binary("Max"), aten.minimum.default: _binary("Min")},
    **{aten.addcmul.default: _added("Mul"), aten.addcdiv.default: _added("Div")},
    **{aten.lerp.Scalar: _lerp, aten.lerp.Tensor: _lerp},
    **{aten.pow.Tensor_Scalar: _power, aten.square.default: _square},
    **{aten.pow.Tensor_Tensor: _binary("Pow"), aten.pow.Scalar: _binary("Pow")},
    **{aten.exp2.default: _exp2, aten.log2.default: _log2},
    aten.clamp.Tensor: _clamp_tensor,
    **{aten.clamp.default: _clamp, aten.clip.default: _clamp, aten.hardtanh.default: _hardtanh},
    aten.clamp_min.default: _clamp,
    aten.clamp_max.default: lambda b, node: clip(
        b, _operand(b, node, 0), None, b.number(arguments(node)[1])
    ),
    **{overload: _activation(row.name) for overload, row in BY_ATEN.items()},
    **{aten.hardsigmoid.default: _hardsigmoid, aten.leaky_relu.default: _leaky_relu},
    **{aten.elu.default: _elu, aten.prelu.default: _prelu, aten.softplus.default: _softplus},
    **{aten.log_sigmoid.default: _log_sigmoid, aten.selu.default: _selu},
    **{aten.mish.default: _mish, aten.gelu.default: _gelu},
    **{aten.reciprocal.default: _one_over, aten.rsqrt.default: _rsqrt},
    **{
        getattr(aten, name).default: _unary(operator)
        for name, operator in {
            "sigmoid": "Sigmoid", "tanh": "Tanh", "neg": "Neg", "abs": "Abs", "exp": "Exp",
            "log": "Log", "sqrt": "Sqrt", "erf": "Erf", "floor": "Floor", "ceil": "Ceil",
            "round": "Round", "sin": "Sin", "cos": "Cos", "sign": "Sign",
            "atan": "Atan",
        }.items()
    },
}  # fmt: skip
"""Operator -> translation."""
