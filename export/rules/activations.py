"""Activations in standard operators that every runtime of :mod:`fastres.export` has."""

from __future__ import annotations

import torch

from fastres.export.builder import Builder


def activate(b: Builder, x: str, name: str) -> str:
    """Apply one of :data:`fastres.kernels.spec.ACTIVATIONS`.

    Hard-swish is ``x * HardSigmoid(x)``: the operator HardSwish is not on TensorRT's list.
    """
    if name == "none":
        return x
    if name == "relu":
        return b.emit("Relu", x)
    if name == "relu6":
        return clip(b, x, 0.0, 6.0)
    if name == "silu":
        return b.emit("Mul", x, b.emit("Sigmoid", x))
    if name == "hardswish":
        return b.emit("Mul", x, hard_sigmoid(b, x))
    raise b.refusal(f"the activation {name!r} has no translation")


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
