"""Element-wise functions as the library has them: ``enum fr_activation`` and its numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fastres.ir.graph import constant
from fastres.kernels.activations import BY_ATEN
from fastres.runtime.native.abi import ACTIVATIONS, CFunction

aten = torch.ops.aten


@dataclass(frozen=True)
class Function:
    """A function of one number.

    Attributes:
        name: one of :data:`fastres.runtime.native.abi.ACTIVATIONS`.
        values: its parameters.
    """

    name: str
    values: tuple[float, float] = (0.0, 0.0)

    def structure(self) -> CFunction:
        """As the library takes it."""
        return CFunction(ACTIVATIONS[self.name], self.values)


NONE = Function("none")

INFINITY = float("inf")


def function_of(node: fx.Node) -> Function | None:
    """What one of torch's element-wise operators computes, or None where the library has no such.

    Of ``prelu`` the slopes are the operator's second argument, which has to be a constant.
    """
    row = BY_ATEN.get(node.target)
    if row is not None:
        return Function(row.name)
    rule = _RULES.get(node.target)
    if rule is None:
        return None
    try:
        return rule(*node.args[1:], **node.kwargs)
    except (TypeError, ValueError):  # numbers that are computed
        return None


def slopes_of(node: fx.Node) -> Tensor | None:
    """The constant slopes of a ``prelu``, [C] or [1]."""
    weight = node.args[1]
    return constant(weight) if isinstance(weight, fx.Node) else None


def _gelu(approximate: str = "none") -> Function:
    return Function("gelu" if approximate == "none" else "gelu_tanh")


def _elu(alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Function | None:
    return Function("elu", (float(alpha), float(scale))) if input_scale == 1.0 else None


def _clamp(low: float | None = None, high: float | None = None) -> Function:
    return Function(
        "clamp",
        (-INFINITY if low is None else float(low), INFINITY if high is None else float(high)),
    )


_SELU = (1.6732632423543772848170429916717, 1.0507009873554804934193349852946)
"""Klambauer et al. (2017), section 2."""

_RULES: dict[Any, Callable[..., Function | None]] = {
    aten.sigmoid.default: lambda: Function("sigmoid"),
    aten.hardsigmoid.default: lambda: Function("hardsigmoid"),
    aten.gelu.default: _gelu,
    aten.tanh.default: lambda: Function("tanh"),
    aten.mish.default: lambda: Function("mish"),
    aten.leaky_relu.default: lambda slope=0.01: Function("leaky_relu", (float(slope), 0.0)),
    aten.prelu.default: lambda _: Function("prelu"),
    aten.elu.default: _elu,
    aten.selu.default: lambda: Function("elu", _SELU),
    aten.hardtanh.default: lambda low=-1.0, high=1.0: _clamp(low, high),
    aten.clamp.default: lambda min=None, max=None: _clamp(min, max),
    aten.clamp_min.default: lambda min: _clamp(min, None),
    aten.clamp_max.default: lambda max: _clamp(None, max),
}

FUNCTIONS: tuple[Any, ...] = (*BY_ATEN, *_RULES)
"""Torch's operators that :func:`function_of` knows."""
