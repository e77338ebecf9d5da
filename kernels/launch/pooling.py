"""Launches of the pooling kernels, and functions that run them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastres.errors import OptionError
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.launch.checks import check_images, check_tensor, wide
from fastres.kernels.spec import Pair, pair
from fastres.kernels.triton.pooling import (
    avg_pool2d_kernel,
    global_avg_pool_kernel,
    max_pool2d_kernel,
)
from fastres.kernels.tuning.pooling import PoolConfig, choose_global_avg_pool, choose_pool2d

UNROLLED_TAPS = 9
"""Steps of a window that are unrolled: their loads are in flight together."""


def max_pool2d_calls(
    x: Tensor,
    out: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    config: PoolConfig | None = None,
) -> list[KernelCall]:
    """The launch of ``reference.max_pool2d`` into ``out``; none for an empty one.

    Args:
        x: [N, C, H, W], channels-last and dense; float16, bfloat16, float32 or uint8.
        out: [N, C, P, Q] likewise, P and Q as :func:`pooled_size` says.
        kernel, stride, padding, dilation, ceil_mode: as in ``reference.max_pool2d``; an empty
            stride is the kernel's size, as in ATen.
        config: how to launch, or None for what ``choose_pool2d`` says.

    Raises:
        InputError: a tensor is something else.
        OptionError: the window does not fit, or torch would not take it.
    """
    window = Window(kernel, stride, padding, dilation, ceil_mode)
    constants = {"DILATION_H": window.dilation[0], "DILATION_W": window.dilation[1]}
    return _window_calls(max_pool2d_kernel, x, out, window, constants, config)


def max_pool2d(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Tensor:
    """``reference.max_pool2d`` by this kernel; ``x`` may have any strides.

    Raises:
        InputError, OptionError: as :func:`max_pool2d_calls`.
    """
    window = Window(kernel, stride, padding, dilation, ceil_mode)
    x, out = _inputs_and_output(x, window)
    return _run(max_pool2d_calls(x, out, kernel, stride, padding, dilation, ceil_mode), out)


def avg_pool2d_calls(
    x: Tensor,
    out: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    config: PoolConfig | None = None,
) -> list[KernelCall]:
    """The launch of ``reference.avg_pool2d`` into ``out``; none for an empty one.

    Args:
        x, out, config: as in :func:`max_pool2d_calls`.
        kernel, stride, padding, ceil_mode, count_include_pad, divisor_override: as in
            ``reference.avg_pool2d``; an empty stride is the kernel's size.

    Raises:
        InputError, OptionError: as :func:`max_pool2d_calls`.
    """
    if divisor_override == 0:
        raise OptionError("divisor_override=0: expected another number, or None")
    window = Window(kernel, stride, padding, (1, 1), ceil_mode)
    constants = {"COUNT_INCLUDE_PAD": count_include_pad, "DIVISOR": divisor_override or 0}
    return _window_calls(avg_pool2d_kernel, x, out, window, constants, config)


def avg_pool2d(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    """``reference.avg_pool2d`` by this kernel; ``x`` may have any strides.

    Raises:
        InputError, OptionError: as :func:`avg_pool2d_calls`.
    """
    x, out = _inputs_and_output(x, Window(kernel, stride, padding, (1, 1), ceil_mode))
    more = (ceil_mode, count_include_pad, divisor_override)
    return _run(avg_pool2d_calls(x, out, kernel, stride, padding, *more), out)


def global_avg_pool_calls(
    x: Tensor, out: Tensor, config: PoolConfig | None = None
) -> list[KernelCall]:
    """The launch of ``reference.global_avg_pool`` into ``out``; none for an empty one.

    Args:
        x: [N, C, H, W] with at least one pixel, channels-last and dense; float16, bfloat16 or
            float32.
        out: [N, C] or [N, C, 1, 1] of the same dtype, dense.
        config: how to launch, or None for what ``choose_global_avg_pool`` says.

    Raises:
        InputError: a tensor is something else.
    """
    check_images("x", x)
    n, c, h, w = x.shape
    check_tensor("x", x, x, (n, c, max(h, 1), max(w, 1)))
    check_tensor("out", out, x, (n, c) if out.dim() == 2 else (n, c, 1, 1))
    if out.numel() == 0:
        return []
    config = config or choose_global_avg_pool(c, h * w, x.element_size())
    return [
        KernelCall(
            kernel=global_avg_pool_kernel,
            grid=(n * math.ceil(c / config.block_c), 1, 1),
            arguments={"x_ptr": x, "out_ptr": out},
            constants={
                "PIXELS": h * w,
                "C": c,
                "BLOCK_SIZE_P": config.block_m,
                "BLOCK_SIZE_C": config.block_c,
                "INT64": wide(0, x),
            },
            num_warps=config.num_warps,
            num_stages=1,
        )
    ]


def global_avg_pool(x: Tensor, keepdim: bool) -> Tensor:
    """``reference.global_avg_pool`` by this kernel; ``x`` may have any strides.

    Raises:
        InputError: as :func:`global_avg_pool_calls`.
    """
    check_images("x", x)
    out = x.new_empty(x.shape[0], x.shape[1])
    calls = global_avg_pool_calls(channels_last(x), out)
    return _run(calls, out[:, :, None, None] if keepdim else out)


class Window:
    """One pooling's window, checked.

    Raises:
        OptionError: a size that torch would not take.
    """

    def __init__(
        self,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        ceil_mode: bool,
    ) -> None:
        self.kernel = _checked_pair("kernel", kernel, 1)
        self.stride = _checked_pair("stride", stride, 1) if len(stride) else self.kernel
        self.padding = _checked_pair("padding", padding, 0)
        self.dilation = _checked_pair("dilation", dilation, 1)
        self.ceil_mode = ceil_mode
        if any(2 * pad > size for pad, size in zip(self.padding, self.kernel, strict=True)):
            raise OptionError(
                f"padding {self.padding} of a window of {self.kernel}: expected at most half of it"
            )

    def output(self, h: int, w: int) -> Pair:
        """P and Q for an image of H x W pixels.

        Raises:
            OptionError: no window fits.
        """
        p, q = (
            pooled_size(*sizes, self.ceil_mode)
            for sizes in zip(
                (h, w), self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )
        if p < 1 or q < 1:
            raise OptionError(
                f"window of {self.kernel} with padding {self.padding} and dilation "
                f"{self.dilation}: too large for an image of {h} x {w} pixels"
            )
        return p, q


def pooled_size(
    size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> int:
    """Windows along one axis, as torch counts them.

    ``floor((size + 2 * padding - dilation * (kernel - 1) - 1) / stride) + 1``; ``ceil_mode``
    rounds up instead, but no window may start behind the image and its first padding.
    """
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (span + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (count - 1) * stride >= size + padding:
        count -= 1
    return count


def channels_last(x: Tensor) -> Tensor:
    """``x`` [N, C, H, W], or a copy that is dense with the channels innermost."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _window_calls(
    kernel: Any,
    x: Tensor,
    out: Tensor,
    window: Window,
    constants: dict[str, Any],
    config: PoolConfig | None,
) -> list[KernelCall]:
    check_images("x", x, uint8=kernel is max_pool2d_kernel)
    n, c, h, w = x.shape
    p, q = window.output(h, w)
    check_tensor("x", x, x, x.shape)
    check_tensor("out", out, x, (n, c, p, q))
    if out.numel() == 0:
        return []
    config = config or choose_pool2d(c, x.element_size())
    pixels = n * p * q
    rows = math.ceil(pixels / config.block_m)
    taps = window.kernel[0] * window.kernel[1]
    return [
        KernelCall(
            kernel=kernel,
            grid=(rows * math.ceil(c / config.block_c), 1, 1),
            arguments={"x_ptr": x, "out_ptr": out, "M": pixels, "H": h, "W": w, "P": p, "Q": q},
            constants={
                "C": c,
                "R": window.kernel[0],
                "S": window.kernel[1],
                "STRIDE_H": window.stride[0],
                "STRIDE_W": window.stride[1],
                "PAD_H": window.padding[0],
                "PAD_W": window.padding[1],
                **constants,
                "BLOCK_SIZE_M": config.block_m,
                "BLOCK_SIZE_C": config.block_c,
                "UNROLL": min(taps, UNROLLED_TAPS),
                "INT64": wide(rows * config.block_m, x, out),
            },
            num_warps=config.num_warps,
            num_stages=1,
        )
    ]


def _inputs_and_output(x: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    check_images("x", x, uint8=True)
    n, c, h, w = x.shape
    p, q = window.output(h, w)
    return channels_last(x), x.new_empty(n, p, q, c).permute(0, 3, 1, 2)


def _run(calls: list[KernelCall], out: Tensor) -> Tensor:
    for call in calls:
        call.run()
    return out


def _checked_pair(name: str, values: Sequence[int], least: int) -> Pair:
    if len(values) not in (1, 2) or min(values) < least:
        raise OptionError(f"{name}={list(values)}: expected (height, width), at least {least} each")
    return pair(values)
