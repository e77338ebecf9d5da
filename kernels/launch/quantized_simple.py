"""Launches of the quantised operators that compute little, and functions that run them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastres.errors import InputError
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.launch.checks import check_floating, check_tensor, wide
from fastres.kernels.launch.elementwise import dense, row_calls
from fastres.kernels.launch.pooling import channels_last
from fastres.kernels.launch.quantized_conv2d import check_exact_activation, check_zero_points
from fastres.kernels.quantized import output_unit, ratio
from fastres.kernels.triton.quantized_simple import (
    dequantize_kernel,
    quantize_kernel,
    quantized_add_kernel,
    quantized_global_avg_pool_kernel,
)
from fastres.kernels.tuning.pooling import choose_global_avg_pool


def quantize_calls(x: Tensor, out: Tensor, scale: float, zero_point: int) -> list[KernelCall]:
    """The launch of ``quantized.quantize`` into ``out``; none for an empty one.

    Args:
        x: float16, bfloat16 or float32, dense; with four axes channels-last, else row-major.
        out: uint8, the same shape and layout.
        scale, zero_point: as in the definition.

    Raises:
        InputError: a tensor is something else.
        OptionError: the zero point is no uint8.
    """
    check_floating("x", x)
    check_zero_points(zero_point=zero_point)
    check_tensor("x", x, x, x.shape)
    check_tensor("out", out, x, x.shape, torch.uint8)
    return _rows(quantize_kernel, {"x_ptr": x, "out_ptr": out}, _scaled(scale, zero_point))


def quantize(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """``quantized.quantize`` by this kernel; ``x`` may have any strides."""
    x = dense(x)
    out = torch.empty_like(x, dtype=torch.uint8)
    return _run(quantize_calls(x, out, scale, zero_point), out)


def dequantize_calls(q: Tensor, out: Tensor, scale: float, zero_point: int) -> list[KernelCall]:
    """The launch of ``quantized.dequantize`` into ``out``; none for an empty one.

    Args:
        q: uint8, dense; with four axes channels-last, else row-major.
        out: float32, the same shape and layout.

    The others, and errors, are as in :func:`quantize_calls`.
    """
    check_zero_points(zero_point=zero_point)
    check_tensor("q", q, q, q.shape, torch.uint8)
    check_tensor("out", out, q, q.shape, torch.float32)
    return _rows(dequantize_kernel, {"x_ptr": q, "out_ptr": out}, _scaled(scale, zero_point))


def dequantize(q: Tensor, scale: float, zero_point: int) -> Tensor:
    """``quantized.dequantize`` by this kernel; ``q`` may have any strides."""
    q = dense(q)
    out = torch.empty_like(q, dtype=torch.float32)
    return _run(dequantize_calls(q, out, scale, zero_point), out)


def quantized_add_calls(
    x: Tensor,
    y: Tensor,
    out: Tensor,
    activation: str,
    x_scale: float,
    x_zero_point: int,
    y_scale: float,
    y_zero_point: int,
    scale: float,
    zero_point: int,
) -> list[KernelCall]:
    """The launch of ``quantized.quantized_add`` into ``out``; none for an empty one.

    Args:
        x, y, out: uint8 of one shape, dense; with four axes channels-last, else row-major.
            ``out`` may be ``x`` or ``y``.

    The others are as in the definition.

    Raises:
        InputError: a tensor is something else.
        OptionError: no such activation, or a zero point that is no uint8.
    """
    check_exact_activation(activation)
    check_zero_points(x_zero_point=x_zero_point, y_zero_point=y_zero_point, zero_point=zero_point)
    for name, tensor in (("x", x), ("y", y), ("out", out)):
        check_tensor(name, tensor, x, x.shape, torch.uint8)
    unit = output_unit((activation,), scale)
    numbers = {
        "x_ratio": ratio(x_scale, unit),
        "x_zero_point": float(x_zero_point),
        "y_ratio": ratio(y_scale, unit),
        "y_zero_point": float(y_zero_point),
        "ratio": ratio(unit, scale),
        "zero_point": float(zero_point),
    }
    tensors = {"x_ptr": x, "y_ptr": y, "out_ptr": out}
    return _rows(quantized_add_kernel, tensors, numbers, {"ACTIVATION": activation})


def quantized_add(
    x: Tensor,
    y: Tensor,
    activation: str,
    x_scale: float,
    x_zero_point: int,
    y_scale: float,
    y_zero_point: int,
    scale: float,
    zero_point: int,
) -> Tensor:
    """``quantized.quantized_add`` by this kernel; tensors may have any strides."""
    x, y = dense(x), dense(y)
    out = torch.empty_like(x)
    scales = (x_scale, x_zero_point, y_scale, y_zero_point, scale, zero_point)
    return _run(quantized_add_calls(x, y, out, activation, *scales), out)


def quantized_global_avg_pool_calls(
    x: Tensor, out: Tensor, x_scale: float, x_zero_point: int, scale: float, zero_point: int
) -> list[KernelCall]:
    """The launch of ``quantized.quantized_global_avg_pool`` into ``out``; none for an empty one.

    Args:
        x: [N, C, H, W] uint8 with at least one pixel, channels-last and dense.
        out: [N, C] or [N, C, 1, 1] uint8, dense.

    The others are as in the definition.

    Raises:
        InputError: a tensor is something else.
        OptionError: a zero point is no uint8.
    """
    check_zero_points(x_zero_point=x_zero_point, zero_point=zero_point)
    if x.dim() != 4:
        raise InputError(f"x has {x.dim()} axes: expected four, [N, C, H, W]")
    n, c, h, w = x.shape
    check_tensor("x", x, x, (n, c, max(h, 1), max(w, 1)), torch.uint8)
    check_tensor("out", out, x, (n, c) if out.dim() == 2 else (n, c, 1, 1))
    if out.numel() == 0:
        return []
    config = choose_global_avg_pool(c, h * w, 1)
    return [
        KernelCall(
            kernel=quantized_global_avg_pool_kernel,
            grid=(n * math.ceil(c / config.block_c), 1, 1),
            arguments={
                "x_ptr": x,
                "out_ptr": out,
                "x_zero_point": float(x_zero_point),
                "ratio": ratio(x_scale, scale),
                "zero_point": float(zero_point),
            },
            constants={
                "PIXELS": h * w,
                "C": c,
                "BLOCK_SIZE_P": config.block_m,
                "BLOCK_SIZE_C": config.block_c,
                "INT64": wide(0, x),
            },
            num_warps=config.num_warps,
            num_stages=1,
            rounds_each=True,
        )
    ]


def quantized_global_avg_pool(
    x: Tensor, keepdim: bool, x_scale: float, x_zero_point: int, scale: float, zero_point: int
) -> Tensor:
    """``quantized.quantized_global_avg_pool`` by this kernel; ``x`` may have any strides."""
    if x.dim() != 4:
        raise InputError(f"x has {x.dim()} axes: expected four, [N, C, H, W]")
    out = x.new_empty(x.shape[0], x.shape[1])
    scales = (x_scale, x_zero_point, scale, zero_point)
    calls = quantized_global_avg_pool_calls(channels_last(x), out, *scales)
    return _run(calls, out[:, :, None, None] if keepdim else out)


def _scaled(scale: float, zero_point: int) -> dict[str, float]:
    return {"scale": scale, "zero_point": float(zero_point)}


def _rows(
    kernel: Any,
    tensors: dict[str, Tensor],
    numbers: dict[str, float],
    constants: dict[str, Any] | None = None,
) -> list[KernelCall]:
    """The launch of a kernel that walks its tensors as one row, and has more arguments."""
    return [
        replace(call, arguments={**call.arguments, **numbers}, rounds_each=True)
        for call in row_calls(kernel, tensors, constants or {})
    ]


def _run(calls: list[KernelCall], out: Tensor) -> Tensor:
    for call in calls:
        call.run()
    return out
