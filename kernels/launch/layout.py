"""Images from one memory format and dtype to another.

The GPU engine transposes with these kernels what torch computed between two of its steps (see
:mod:`fastres.runtime.triton.layouts`): a transposition in tiles moves whole cache lines on both
sides.

A call's arguments and results are copied by torch even where they change their format. Their
addresses are new with every call, and a result's format is the caller's input's, so these copies
cannot be part of the recorded graph: each is work for the host, of which a launch of Triton's, made
in Python, takes more than a copy of torch's, and a small batch waits for the host. Nor would bytes
be saved: torch casts and changes the format in the same pass. An image of three channels is
transposed as well by either: neighbouring threads write neighbours, and read along three rows at
once. What a kernel could gain is a large result of many channels in NCHW, and only the copy of it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastres.dtypes import FLOATING
from fastres.errors import InputError
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.launch.checks import channels_innermost, described, wide
from fastres.kernels.launch.elementwise import row_calls
from fastres.kernels.triton.elementwise import cast_kernel, transpose_kernel
from fastres.kernels.tuning.elementwise import TransposeConfig, choose_transpose

_SOURCES = (*FLOATING, torch.uint8)


def convert_calls(
    x: Tensor, out: Tensor, config: TransposeConfig | None = None
) -> list[KernelCall]:
    """The launch that copies ``x`` into ``out``, each in its own memory format and dtype.

    Args:
        x: [N, C, H, W], dense, NCHW or channels-last; float16, bfloat16, float32 or uint8.
        out: the same shape, dense, NCHW or channels-last; float16, bfloat16 or float32.
        config: tile of a transposition, or None for what ``choose_transpose`` says.

    Returns:
        One launch, or none for an empty tensor.

    Raises:
        InputError: a tensor is something else.
    """
    for name, tensor, dtypes in (("x", x, _SOURCES), ("out", out, FLOATING)):
        if tensor.dim() != 4 or tensor.shape != x.shape or tensor.device != x.device:
            raise InputError(
                f"{name} is {described(tensor)}, x is {described(x)}: expected two tensors "
                "[N, C, H, W] of one shape on one device"
            )
        if tensor.dtype not in dtypes:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise InputError(f"{name} of {tensor.dtype}: expected one of {names}")
        if not (tensor.is_contiguous() or channels_innermost(tensor)):
            raise InputError(
                f"{name} {list(tensor.shape)} has strides {tensor.stride()}: expected dense NCHW "
                "or channels-last memory; make it contiguous first"
            )
    if x.numel() == 0:
        return []
    n, c, h, w = x.shape
    if (x.is_contiguous() and out.is_contiguous()) or (
        channels_innermost(x) and channels_innermost(out)
    ):
        return row_calls(cast_kernel, {"x_ptr": x, "out_ptr": out}, {})
    rows, columns = (c, h * w) if x.is_contiguous() else (h * w, c)
    config = config or choose_transpose(rows, columns)
    tiles = math.ceil(rows / config.block_rows) * math.ceil(columns / config.block_columns)
    return [
        KernelCall(
            kernel=transpose_kernel,
            grid=(n * tiles, 1, 1),
            arguments={"x_ptr": x, "out_ptr": out, "rows": rows, "columns": columns},
            constants={
                "BLOCK_SIZE_R": config.block_rows,
                "BLOCK_SIZE_C": config.block_columns,
                "INT64": wide(max(rows + config.block_rows, columns + config.block_columns), x),
            },
            num_warps=config.num_warps,
            num_stages=1,
        )
    ]


def to_channels_last(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A copy of ``x`` [N, C, H, W] in channels-last memory and in ``dtype``, by these kernels.

    Raises:
        InputError: ``x`` or ``dtype`` is something that :func:`convert_calls` does not take.
    """
    n, c, h, w = _images(x)
    out = x.new_empty(n, h, w, c, dtype=dtype or x.dtype).permute(0, 3, 1, 2)
    return _converted(x, out)


def to_nchw(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A copy of ``x`` [N, C, H, W] in row-major memory and in ``dtype``, by these kernels.

    Raises:
        InputError: as :func:`to_channels_last`.
    """
    return _converted(x, x.new_empty(_images(x), dtype=dtype or x.dtype))


def _images(x: Tensor) -> tuple[int, int, int, int]:
    if x.dim() != 4:
        raise InputError(f"x has {x.dim()} axes: expected four, [N, C, H, W]")
    n, c, h, w = x.shape
    return n, c, h, w


def _converted(x: Tensor, out: Tensor) -> Tensor:
    dense = x if channels_innermost(x) else x.contiguous()
    for call in convert_calls(dense, out):
        call.run()
    return out
