"""Launches of the convolution kernels: checks, grid, constants; and a function that runs them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastres.dtypes import BY_DTYPE, GPU_PRECISIONS
from fastres.errors import InputError, OptionError
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.launch.checks import check_activation, check_tensor, wide
from fastres.kernels.launch.pointwise import pointwise_call, why_no_descriptors
from fastres.kernels.launch.split_sums import (
    checked_counters,
    partial_bytes,
    partial_sums,
    sum_call,
)
from fastres.kernels.launch.tiled import tiled_call, why_no_boxes
from fastres.kernels.packing import pack_conv2d, packed_shape, super_groups
from fastres.kernels.spec import ConvSpec, Padding, Pair
from fastres.kernels.triton.conv2d import conv2d_kernel
from fastres.kernels.tuning.conv2d import Conv2dConfig, choose_conv2d, used_splits
from fastres.kernels.tuning.conv2d import counters as counters_of
from fastres.kernels.tuning.gpus import Gpu, by_name


def precision_of(dtype: torch.dtype) -> str:
    """``fp16``, ``bf16`` or ``fp32``: nothing is computed less exactly than its dtype, unasked.

    Raises:
        InputError: another dtype.
    """
    if dtype not in BY_DTYPE:
        raise InputError(f"x of {dtype}: expected float16, bfloat16 or float32")
    return BY_DTYPE[dtype].name


def workspace_bytes(spec: ConvSpec, config: Conv2dConfig, precision: str) -> int:
    """Size of the float32 partial sums that ``conv2d_calls`` needs, 0 without split sums."""
    _check_precision(precision)
    return partial_bytes(spec, config)


def conv2d_calls(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    spec: ConvSpec,
    pre_activation: str,
    activation: str,
    config: Conv2dConfig,
    precision: str,
    workspace: Tensor | None = None,
    counters: Tensor | None = None,
) -> list[KernelCall]:
    """Launches of ``activation(pre_activation(conv(x) + bias) + residual)`` into ``out``.

    Args:
        x: [N, C, H, W], channels-last and dense, in ``precision``'s dtype; also on "meta".
        packed: the weight as ``packing.pack_conv2d`` gives it for this precision, same dtype.
        bias: [K] float32, or None.
        residual: like ``out``, or None. May be ``out`` itself.
        out: [N, K, P, Q], channels-last and dense, same dtype.
        spec: the convolution.
        pre_activation, activation: of :data:`fastres.kernels.activations.ACTIVATIONS`.
        config: how to launch.
        precision: ``fp16``, ``bf16``, ``tf32`` or ``fp32``.
        workspace: one-dimensional, contiguous float32 of at least ``workspace_bytes(...)``.
        counters: one-dimensional, contiguous int32 of at least ``configs.conv2d.counters(...)``,
            all zero, and all zero again after the launch.

    Returns:
        No launch for an empty ``out``, two for split sums that are not added in the same launch,
        otherwise one. Where ``config`` asks for
        tensor descriptors and these tensors cannot have them, the launch's ``note`` says why.

    Raises:
        InputError: a tensor has another shape, dtype, device or memory format.
        OptionError: no such activation or precision.
    """
    _check(x, packed, bias, residual, out, spec, precision)
    check_activation(pre_activation)
    check_activation(activation)
    if out.numel() == 0:
        return []
    note = ""
    if config.descriptors:
        tensors = (x, packed, residual, out)
        by_descriptor, reason = pointwise_call, why_no_descriptors(spec, precision, *tensors)
        if config.box_w:
            by_descriptor, reason = tiled_call, why_no_boxes(spec, config, precision, *tensors)
        if reason is None:
            return [
                by_descriptor(
                    x,
                    packed,
                    bias,
                    residual,
                    out,
                    spec,
                    pre_activation,
                    activation,
                    config,
                    precision,
                )
            ]
        note = f"by pointers: {reason}"
    splits = used_splits(spec, config)
    if splits == 1:
        return [
            _main_call(
                x,
                packed,
                bias,
                residual,
                out,
                spec,
                pre_activation,
                activation,
                config,
                precision,
                1,
                note,
            )
        ]
    partial = partial_sums(workspace, out, splits)
    if config.fused_sum:
        counters = checked_counters(counters, out, counters_of(spec, config))
        return [
            _main_call(
                x,
                packed,
                bias,
                residual,
                out,
                spec,
                pre_activation,
                activation,
                config,
                precision,
                splits,
                note,
                partial,
                counters,
            )
        ]
    return [
        _main_call(
            x,
            packed,
            None,
            None,
            partial,
            spec,
            "none",
            "none",
            config,
            precision,
            splits,
            note,
        ),
        sum_call(partial, bias, residual, out, spec, pre_activation, activation, splits),
    ]


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pre_activation: str,
    activation: str,
    *,
    config: Conv2dConfig | None = None,
    precision: str | None = None,
    gpu: Gpu | None = None,
) -> Tensor:
    """``reference.conv2d`` by these kernels: packs, allocates, chooses and runs.

    Args:
        config: how to launch, or None for what ``choose_conv2d`` says.
        precision: None for that of ``x``'s dtype; ``tf32`` is only taken when asked for.
        gpu: whose data sheet the choice is made by; an A100's unless told.

    The others, and the result, are as in :func:`fastres.kernels.reference.conv2d`; tensors may
    have any strides. Errors are those of :func:`conv2d_calls`.
    """
    spec = spec_of(x, weight, stride, padding, dilation, groups)
    precision = precision or precision_of(x.dtype)
    config = config or choose_conv2d(spec, precision, gpu or by_name("a100"))
    out = x.new_empty(spec.n, spec.p, spec.q, spec.k).permute(0, 3, 1, 2)
    size = workspace_bytes(spec, config, precision)
    workspace = x.new_empty(size // 4, dtype=torch.float32) if size else None
    count = counters_of(spec, config)
    calls = conv2d_calls(
        channels_last(x),
        pack_conv2d(weight, groups, precision),
        None if bias is None else bias.float().contiguous(),
        None if residual is None else channels_last(residual),
        out,
        spec,
        pre_activation,
        activation,
        config,
        precision,
        workspace,
        x.new_zeros(count, dtype=torch.int32) if count else None,
    )
    for call in calls:
        call.run()
    return out


def spec_of(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> ConvSpec:
    """The geometry of a convolution of ``x`` [N, C, H, W] with ``weight`` [K, C / groups, R, S].

    Raises:
        InputError: the two do not fit together, or no window fits into the image.
    """
    if x.dim() != 4 or weight.dim() != 4:
        raise InputError(
            f"x with {x.dim()} axes and weight with {weight.dim()}: expected four of each"
        )
    spec = ConvSpec(
        x.shape[0],
        x.shape[1],
        x.shape[2],
        x.shape[3],
        weight.shape[0],
        weight.shape[2],
        weight.shape[3],
        stride=_pair(stride),
        padding=_four(padding),
        dilation=_pair(dilation),
        groups=groups,
    )
    if weight.shape[1] * groups != spec.c:
        raise InputError(
            f"weight of shape {list(weight.shape)} with groups={groups}, on {spec.c} channels: "
            f"expected {spec.c} / groups channels"
        )
    if spec.p < 1 or spec.q < 1:
        raise InputError(
            f"image of {spec.h}x{spec.w} pixels: too small for a {spec.r}x{spec.s} filter with "
            f"padding {spec.padding} and dilation {spec.dilation}; expected room for one window"
        )
    return spec


def channels_last(x: Tensor) -> Tensor:
    """``x`` [N, C, H, W], or a copy that is dense with the channels innermost."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _main_call(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    spec: ConvSpec,
    pre_activation: str,
    activation: str,
    config: Conv2dConfig,
    precision: str,
    splits: int,
    note: str,
    partial: Tensor | None = None,
    counters: Tensor | None = None,
) -> KernelCall:
    rows = spec.n * spec.p * spec.q
    groups = super_groups(spec.c, spec.k, spec.groups)
    filters = spec.k // groups
    grid_m, grid_n = math.ceil(rows / config.block_m), math.ceil(filters / config.block_n)
    return KernelCall(
        kernel=conv2d_kernel,
        grid=(grid_m * grid_n * groups, splits, 1),
        arguments={
            "x_ptr": x,
            "weight_ptr": packed,
            "bias_ptr": bias,
            "residual_ptr": residual,
            "out_ptr": out,
            "partial_ptr": partial,
            "counter_ptr": counters,
            "M": rows,
            "H": spec.h,
            "W": spec.w,
            "P": spec.p,
            "Q": spec.q,
        },
        constants={
            "TOGETHER": spec.groups // groups,
            **geometry(spec),
            "PRE_ACTIVATION": pre_activation,
            "ACTIVATION": activation,
            "HAS_BIAS": bias is not None,
            "HAS_RESIDUAL": residual is not None,
            "INPUT_PRECISION": "tf32" if precision == "tf32" else "ieee",
            "BLOCK_SIZE_M": config.block_m,
            "BLOCK_SIZE_N": config.block_n,
            "BLOCK_SIZE_K": config.block_k,
            "GROUP_M": config.group_m,
            "SPLIT_K": splits,
            "FUSED_SUM": partial is not None,
            "INT64": wide(grid_m * config.block_m, x, packed, residual, out, partial),
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        note=note,
    )


def geometry(spec: ConvSpec) -> dict[str, Any]:
    """What kernels for a convolution have as constants; C and K are those of a super-group."""
    groups = super_groups(spec.c, spec.k, spec.groups)
    return {
        "C": spec.c // groups,
        "K": spec.k // groups,
        "ALL_C": spec.c,
        "ALL_K": spec.k,
        "R": spec.r,
        "S": spec.s,
        "STRIDE_H": spec.stride[0],
        "STRIDE_W": spec.stride[1],
        "PAD_TOP": spec.padding[0],
        "PAD_LEFT": spec.padding[1],
        "DILATION_H": spec.dilation[0],
        "DILATION_W": spec.dilation[1],
        "PADDED": reaches_padding(spec),
    }


def reaches_padding(spec: ConvSpec) -> bool:
    """Whether some window covers pixels outside the image, so that loads need a mask."""
    last_row = (spec.p - 1) * spec.stride[0] + (spec.r - 1) * spec.dilation[0] - spec.padding[0]
    last_column = (spec.q - 1) * spec.stride[1] + (spec.s - 1) * spec.dilation[1] - spec.padding[1]
    return spec.padding[0] > 0 or spec.padding[1] > 0 or last_row >= spec.h or last_column >= spec.w


def _check_precision(precision: str) -> None:
    if precision not in GPU_PRECISIONS:
        raise OptionError(f"precision={precision!r}: expected one of {', '.join(GPU_PRECISIONS)}")


def _check(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    spec: ConvSpec,
    precision: str,
) -> None:
    _check_precision(precision)
    dtype = GPU_PRECISIONS[precision].dtype
    images = (spec.n, spec.k, spec.p, spec.q)
    weight_shape = packed_shape(spec.c, spec.k, spec.r, spec.s, spec.groups)
    check_tensor("x", x, x, (spec.n, spec.c, spec.h, spec.w), dtype)
    check_tensor("packed weight", packed, x, weight_shape, dtype)
    check_tensor("out", out, x, images, dtype)
    if bias is not None:
        check_tensor("bias", bias, x, (spec.k,), torch.float32)
    if residual is not None:
        check_tensor("residual", residual, x, images, dtype)


def _pair(values: Sequence[int]) -> Pair:
    height, width = values
    return int(height), int(width)


def _four(values: Sequence[int]) -> Padding:
    top, left, bottom, right = values
    return int(top), int(left), int(bottom), int(right)
