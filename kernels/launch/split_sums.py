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

_SUM_BLOCK = 1024


def partial_sums(workspace: Tensor | None, out: Tensor, splits: int) -> Tensor:
    """The part of ``workspace`` that holds ``splits`` sums for each element of ``out``.

    Raises:
        InputError: it is missing, too small, or not contiguous float32 on the same device.
    """
    needed = splits * out.numel()
    if workspace is None or workspace.dim() != 1 or workspace.numel() < needed:
        got = "None" if workspace is None else described(workspace)
        raise InputError(
            f"workspace is {got}: split sums of {splits} need float32 [{needed}] or longer; see "
            "workspace_bytes()"
        )
    check_tensor("workspace", workspace[:needed], out, (needed,), torch.float32)
    return workspace[:needed]


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
    blocks = math.ceil(size / _SUM_BLOCK)
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
            "BLOCK_SIZE": _SUM_BLOCK,
            "INT64": wide(blocks * _SUM_BLOCK, residual, out),
        },
    )
