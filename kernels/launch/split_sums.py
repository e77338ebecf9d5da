"""Split sums: a workspace for the partial ones, and the launch that adds them in a fixed order."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastres.errors import InputError
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.launch.checks import check_tensor, described, wide
from fastres.kernels.spec import ConvSpec
from fastres.kernels.triton.conv2d import sum_of_splits_kernel
from fastres.kernels.tuning.conv2d import Conv2dConfig, used_splits

SUM_BLOCK = 1024
"""Numbers that one program of a launch adds up."""


def partial_bytes(spec: ConvSpec, config: Conv2dConfig) -> int:
    """Size of the partial sums, four bytes each; 0 without split sums."""
    splits = used_splits(spec, config)
    return splits * spec.n * spec.p * spec.q * spec.k * 4 if splits > 1 else 0


def partial_sums(
    workspace: Tensor | None, out: Tensor, splits: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The part of ``workspace`` that holds ``splits`` sums for each element of ``out``.

    Raises:
        InputError: it is missing, too small, or not contiguous ``dtype`` on the same device.
    """
    needed = splits * out.numel()
    if workspace is None or workspace.dim() != 1 or workspace.numel() < needed:
        got = "None" if workspace is None else described(workspace)
        raise InputError(
            f"workspace is {got}: split sums of {splits} need "
            f"{str(dtype).removeprefix('torch.')} [{needed}] or longer; see workspace_bytes()"
        )
    check_tensor("workspace", workspace[:needed], out, (needed,), dtype)
    return workspace[:needed]


def checked_counters(counters: Tensor | None, out: Tensor, count: int) -> Tensor:
    """``counters``, if they count ``count`` tiles.

    Raises:
        InputError: they are missing, too few, or not contiguous int32 on ``out``'s device.
    """
    if counters is None or counters.dim() != 1 or counters.numel() < count:
        got = "None" if counters is None else described(counters)
        raise InputError(f"counters is {got}: expected int32 [{count}] or longer, all zero")
    check_tensor("counters", counters[:count], out, (count,), torch.int32)
    return counters


def sum_call(
    partial: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    spec: ConvSpec,
    pre_activation: str,
    activation: str,
    splits: int,
) -> KernelCall:
    """The launch that adds the partial sums and finishes as the convolution would have.

    Arguments are those of ``conv2d_launch.conv2d_calls``, which checks them.
    """
    size = out.numel()
    blocks = math.ceil(size / SUM_BLOCK)
    return KernelCall(
        kernel=sum_of_splits_kernel,
        grid=(blocks, 1, 1),
        arguments={
            "partial_ptr": partial,
            "bias_ptr": bias,
            "residual_ptr": residual,
            "out_ptr": out,
            "SIZE": size,
        },
        constants={
            "ALL_K": spec.k,
            "SPLIT_K": splits,
            "PRE_ACTIVATION": pre_activation,
            "ACTIVATION": activation,
            "HAS_BIAS": bias is not None,
            "HAS_RESIDUAL": residual is not None,
            "BLOCK_SIZE": SUM_BLOCK,
            "INT64": wide(blocks * SUM_BLOCK, residual, out),
        },
    )
