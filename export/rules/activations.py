"""Activations in standard operators that every runtime of :mod:`fastres.export` has."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastres.export.builder import Builder


def activate(b: Builder, x: str, name: str) -> str:
    """Apply one of :data:`fastres.kernels.activations.ACTIVATIONS`."""
    if name not in RULES:
        raise b.refusal(f"the activation {name!r} has no translation")
    return RULES[name](b, x)


def hard_sigmoid(b: Builder, x: str) -> str:
    """``clamp(x / 6 + 1/2, 0, 1)``."""
    return b.emit("HardSigmoid", x, alpha=1.0 / 6.0, beta=0.5)


def clip(b: Builder, x: str, low: float | None, high: float | None) -> str:
    """Clamp to constants, either of which may be missing."""
    dtype = b.dtype(x)
    bounds = (
        "" if bound is None else b.constant(torch.tensor(bound, dtype=dtype, device="cpu"))
        for bound in (low, high)
    )
    return b.emit("Clip", x, *bounds)


def _none(b: Builder, x: str) -> str:
    return x


def _relu(b: Builder, x: str) -> str:
    return b.emit("Relu", x)


def _relu6(b: Builder, x: str) -> str:
    return clip(b, x, 0.0, 6.0)


def _silu(b: Builder, x: str) -> str:
    return b.emit("Mul", x, b.emit("Sigmoid", x))


def _hardswish(b: Builder, x: str) -> str:
    """``x * HardSigmoid(x)``: the operator HardSwish is not on TensorRT's list."""
    return b.emit("Mul", x, hard_sigmoid(b, x))


RULES: dict[str, Callable[[Builder, str], str]] = {
    "none": _none,
    "relu": _relu,
    "relu6": _relu6,
    "silu": _silu,
    "hardswish": _hardswish,
}
"""How each activation is written."""
