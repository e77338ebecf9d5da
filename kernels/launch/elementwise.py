"""Launches of the element-wise kernels, and functions that run them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastres.errors import InputError
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.launch.checks import (
    channels_innermost,
    check_activation,
    check_floating,
    check_tensor,
    described,
    power_of_two_divisor,
    wide,
)
from fastres.kernels.triton.elementwise import add_relu_kernel, scale_shift_kernel
from fastres.kernels.tuning.elementwise import ElementwiseConfig, choose_elementwise


def add_relu_calls(
    x: Tensor, y: Tensor, out: Tensor, config: ElementwiseConfig | None = None
) -> list[KernelCall]:
    """The launch of ``relu(x + y)`` into ``out``; none where there is nothing to do.

    Args:
        x, y, out: of one shape and dtype (float16, bfloat16, float32) on one device, dense; those
            of four axes channels-last, others row-major. ``out`` may be ``x`` or ``y``.
        config: how to launch, or None for what ``choose_elementwise`` says.

    Raises:
        InputError: a tensor is something else.
    """
    check_floating("x", x)
    for name, tensor in (("x", x), ("y", y), ("out", out)):
        check_tensor(name, tensor, x, x.shape)
    return row_calls(add_relu_kernel, {"x_ptr": x, "y_ptr": y, "out_ptr": out}, {}, config)


def add_relu(x: Tensor, y: Tensor) -> Tensor:
    """``reference.add_relu`` by this kernel; tensors may have any strides.

    Raises:
        InputError: shapes, dtypes or devices differ, or the dtype is not one of the kernels'.
    """
    x, y = dense(x), dense(y)
    out = torch.empty_like(x)
    for call in add_relu_calls(x, y, out):
        call.run()
    return out


def scale_shift_calls(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    out: Tensor,
    activation: str,
    config: ElementwiseConfig | None = None,
) -> list[KernelCall]:
    """The launch of ``activation(x * scale + shift)`` into ``out``; none where nothing is to do.

    Args:
        x, out: [N, C, ...] of one dtype (float16, bfloat16, float32), dense with the channels
            innermost. ``out`` may be ``x``.
        scale, shift: [C] float32; the arithmetic is done in float32.
        activation: of :data:`fastres.kernels.activations.ACTIVATIONS`.
        config: how to launch, or None for what ``choose_elementwise`` says.

    Raises:
        InputError: a tensor is something else.
        OptionError: no such activation.
    """
    check_floating("x", x)
    check_activation(activation)
    if x.dim() < 2:
        raise InputError(f"x has {x.dim()} axes: expected [N, C, ...]")
    for name, tensor in (("x", x), ("out", out)):
        if tensor.shape != x.shape or tensor.dtype != x.dtype or tensor.device != x.device:
            raise InputError(f"{name} is {described(tensor)}: expected the like of {described(x)}")
        if not channels_innermost(tensor):
            raise InputError(
                f"{name} {list(tensor.shape)} has strides {tensor.stride()}: expected dense memory "
                "with channels innermost"
            )
    for name, tensor in (("scale", scale), ("shift", shift)):
        check_tensor(name, tensor, x, (x.shape[1],), torch.float32)
    tensors = {"x_ptr": x, "scale_ptr": scale, "shift_ptr": shift, "out_ptr": out}
    constants = {"C": x.shape[1], "ACTIVATION": activation}
    return row_calls(scale_shift_kernel, tensors, constants, config)


def scale_shift(x: Tensor, scale: Tensor, shift: Tensor, activation: str) -> Tensor:
    """``reference.scale_shift`` by this kernel, in float32; tensors may have any strides.

    Raises:
        InputError, OptionError: as :func:`scale_shift_calls`.
    """
    if x.dim() < 2:
        raise InputError(f"x has {x.dim()} axes: expected [N, C, ...]")
    x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    out = torch.empty_like(x)
    constants = (scale.float().contiguous(), shift.float().contiguous())
    for call in scale_shift_calls(x, *constants, out, activation):
        call.run()
    return out


def row_calls(
    kernel: Any,
    tensors: dict[str, Tensor],
    constants: dict[str, Any],
    config: ElementwiseConfig | None = None,
) -> list[KernelCall]:
    """The launch of a kernel that walks ``tensors["x_ptr"]`` and the output as one row."""
    x = tensors["x_ptr"]
    size = x.numel()
    if size == 0:
        return []
    # The narrower of the two dtypes decides how many numbers make an access of 16 bytes.
    config = config or choose_elementwise(min(x.element_size(), tensors["out_ptr"].element_size()))
    vector = power_of_two_divisor(size)
    programs = math.ceil(size / config.block_size)
    return [
        KernelCall(
            kernel=kernel,
            grid=(programs, 1, 1),
            arguments={**tensors, "vectors": size // vector},
            constants={
                **constants,
                "VECTOR": vector,
                "BLOCK_SIZE": config.block_size,
                "INT64": wide(programs * config.block_size, x, tensors["out_ptr"]),
            },
            num_warps=config.num_warps,
            num_stages=1,
        )
    ]


def dense(x: Tensor) -> Tensor:
    """``x``, or a copy without gaps: channels-last if it has four axes, else row-major."""
    if x.dim() == 4:
        return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    return x.contiguous()
