"""Quantised values in a file: what they count, and the float32 values behind them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from fastres.export.builder import Builder
from fastres.ir import ops
from fastres.ir.graph import arguments
from fastres.ir.views import VIEWS, QuantizedConv2d
from fastres.quantization.observers import LEVELS, Scale

aten = torch.ops.aten

Unit = tuple[float, int]
"""Scale and zero point."""

_MADE = (
    ops.quantize,
    ops.quantized_conv2d,
    ops.quantized_conv2d_max_pool2d,
    ops.quantized_linear,
    ops.quantized_global_avg_pool,
    ops.quantized_add,
)
_MOVED = (ops.max_pool2d, aten.flatten.using_ints)


def unit_of(node: fx.Node) -> Unit | None:
    """What a value of the fused graph counts, None where it is not quantised."""
    if node.target in _MOVED:
        return unit_of(arguments(node)[0])
    if node.target not in _MADE:
        return None
    *_, scale, zero_point = VIEWS[node.target].of(node).args
    return None if scale is None else (scale, zero_point)


def unit_in_front(conv: QuantizedConv2d) -> Unit | None:
    """What a convolution can be rounded to in front of its residual; None where nothing will do.

    The range is all that matters to the sum: what is beyond is beyond the result's range whatever
    the residual is, as all activations but hard-swish only rise.
    """
    if conv.residual is None or conv.activation == "hardswish":
        return None
    low, high = _range(conv.scale, conv.zero_point)
    least, most = _range(conv.residual_scale, conv.residual_zero_point)
    found = Scale.covering(low - most, high - least)
    return found.scale, found.zero_point


def _range(scale: float, zero_point: int) -> tuple[float, float]:
    return -zero_point * scale, (LEVELS - zero_point) * scale


def quantized(b: Builder, x: str, unit: Unit) -> str:
    """A float32 value as uint8, and behind it what that stands for."""
    q = b.emit("QuantizeLinear", x, *_constants(b, unit), dtype=torch.uint8)
    real(b, q, unit)
    return q


def real(b: Builder, q: str, unit: Unit) -> str:
    """What a uint8 value stands for, as float32; written once for all who read it."""
    if (q, unit) not in b.dequantized:
        b.dequantized[q, unit] = b.emit(
            "DequantizeLinear", q, *_constants(b, unit), dtype=torch.float32
        )
    return b.dequantized[q, unit]


def through(b: Builder, node: fx.Node, operator: Callable[[str], str]) -> str:
    """What moves or compares the values of its first argument, which may be quantised."""
    x = arguments(node)[0]
    unit = unit_of(x)
    if unit is None:
        return operator(b.tensor(x))
    return quantized(b, operator(real(b, b.tensor(x), unit)), unit)


def _constants(b: Builder, unit: Unit) -> tuple[str, str]:
    scale, zero_point = unit
    return (
        b.constant(torch.tensor(scale, dtype=torch.float32, device="cpu")),
        b.constant(torch.tensor(zero_point, dtype=torch.uint8, device="cpu")),
    )
