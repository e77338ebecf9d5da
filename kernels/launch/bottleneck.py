"""Launches of the bottleneck's tail: checks, grid, constants; and a function that runs them.

The kernel keeps ``narrow`` [M, WIDTH] on the chip and makes ``wide`` [M, K] once. For a block of
ResNet-50's second stage (width 64, K = 256, per output pixel, in elements) it reads 64 of ``x``
and 256 of the residual and writes 256 of ``wide`` and 64 for the next block: 640, where four
kernels move 64 + 64, 64 + 256 + 256 and 256 + 64 = 1024. Weights come from the L2 cache, once per
program.

Basic blocks (two 3x3 convolutions) have no kernel of their own: they run as two convolutions, the
second with residual and ReLU in its epilogue. What one kernel could save is the write and the read
of the tensor between them; of 64 channels in 16 bits, 256 of the 640 bytes per pixel that the block
moves (x, the middle twice, the residual, the output). What it would cost, for T x T output pixels:

- recomputation: (T + 2)^2 pixels in the middle, in rows of matrix instructions. For T = 8 that is
  100 pixels, two times 64, 100 % more products in the first convolution and 50 % in all; for
  T = 16 it is 324, six times 64, and 50 % and 25 %.
- shared memory: 13 and 41 kB for the middle with 64 channels, 102 and 332 kB with 512, which no
  multiprocessor has; stages 4 and 5 would need other kernels.
- the second convolution reads the middle at nine shifts, and Triton has no addresses into shared
  memory: each shift would be a copy through it, or the middle would go to device memory after all.

Two convolutions do 147,456 FLOP per pixel: 230 per byte. An A100 has 153 per byte of bandwidth, so
that products bound the block, and a quarter more of them is a loss. An H100 has 295: the bytes take
191 ps per pixel and the products 149; with T = 16 these become 186, a gain of 3 % at best. With 128
channels and more, from the third stage on, products bound the block on both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastres.dtypes import GPU_PRECISIONS
from fastres.errors import InputError, OptionError
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.launch.checks import check_tensor, described, wide
from fastres.kernels.launch.conv2d import channels_last, precision_of
from fastres.kernels.packing import pack_conv2d, pack_linear, rounded
from fastres.kernels.spec import BottleneckSpec, ConvSpec
from fastres.kernels.triton.bottleneck import bottleneck_kernel
from fastres.kernels.tuning.bottleneck import (
    BottleneckConfig,
    block_chunk,
    block_shortcut,
    choose_bottleneck,
    chunks_of,
    supports,
    tail_stages,
)
from fastres.kernels.tuning.elementwise import power_of_two_from
from fastres.kernels.tuning.gpus import Gpu, by_name


def pack_bottleneck(weight: Tensor, groups: int = 1, precision: str | None = None) -> Tensor:
    """[K, C / groups, R, S] -> [K, R*S*C'] as ``bottleneck_calls`` takes it; a copy.

    Without groups C' = C. With groups, each row also holds zeros for the other groups of its
    chunk (see ``configs.bottleneck.chunks_of``).
    """
    if groups == 1:
        return pack_conv2d(weight, 1, precision)
    k, channels, r, s = weight.shape
    spec = ConvSpec(1, channels * groups, r, s, k, r, s, groups=groups)
    chunk = chunks_of(spec)
    together = chunk.channels // channels
    weight = rounded(weight, precision)
    rows = weight.permute(0, 2, 3, 1).reshape(chunk.count, together, k // groups, r, s, channels)
    dense = weight.new_zeros(*rows.shape[:5], together, channels)
    for group in range(together):
        dense[:, group, :, :, :, group] = rows[:, group]
    return dense.reshape(k, r * s * chunk.channels)


def pack_pointwise(weight: Tensor, precision: str | None = None) -> Tensor:
    """[K, C, 1, 1] -> [K, C], a copy: the expansion, the shortcut, the next block's head."""
    return pack_linear(weight.flatten(1), precision)


def bottleneck_calls(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    expand: Tensor,
    expand_bias: Tensor | None,
    residual: Tensor,
    shortcut: Tensor | None,
    next_weight: Tensor | None,
    next_bias: Tensor | None,
    out: Tensor,
    next_out: Tensor | None,
    spec: BottleneckSpec,
    config: BottleneckConfig,
    precision: str,
) -> list[KernelCall]:
    """Launches of ``reference.bottleneck`` into ``out`` and ``next_out``: one, or none if empty.

    Args:
        x: [N, C, H, W], channels-last and dense, in ``precision``'s dtype; also on "meta".
        packed: the convolution's weight as :func:`pack_bottleneck` gives it, same dtype.
        bias: [K] float32, or None.
        expand, shortcut, next_weight: [K2, K], [K2, C2] or None, [K3, K2] or None; contiguous.
        expand_bias, next_bias: [K2], [K3] float32, or None.
        residual: like ``out``, and may be ``out`` itself; with a shortcut the block's input
            [N, C2, H2, W2], which may not.
        out: [N, K2, P, Q], channels-last and dense, same dtype.
        next_out: [N, K3, P, Q] likewise, None without ``next_weight``.
        spec: the block; with a shortcut or a next head exactly where there are such weights.
        config: how to launch.
        precision: ``fp16``, ``bf16``, ``tf32`` or ``fp32``.

    Raises:
        InputError: a tensor is missing or has another shape, dtype, device or memory format.
        OptionError: no such precision, or a block that ``configs.bottleneck.supports`` refuses.
    """
    refusal = supports(spec)
    if refusal is not None:
        raise OptionError(f"{spec}: {refusal}; run its convolutions one by one")
    if precision not in GPU_PRECISIONS:
        raise OptionError(f"precision={precision!r}: expected one of {', '.join(GPU_PRECISIONS)}")
    conv, images = spec.conv, (spec.conv.n, spec.expand_k, spec.conv.p, spec.conv.q)
    chunk = chunks_of(conv)
    dtype = GPU_PRECISIONS[precision].dtype
    shortcut_spec, next_k = spec.shortcut, spec.next_k
    identity = (
        images
        if shortcut_spec is None
        else (shortcut_spec.n, shortcut_spec.c, shortcut_spec.h, shortcut_spec.w)
    )
    head = None if next_k is None else (next_k, spec.expand_k)
    for name, tensor, shape, kind in (
        ("x", x, (conv.n, conv.c, conv.h, conv.w), dtype),
        ("packed weight", packed, (conv.k, conv.r * conv.s * chunk.channels), dtype),
        ("bias", bias, (conv.k,), torch.float32),
        ("expand", expand, (spec.expand_k, conv.k), dtype),
        ("expand_bias", expand_bias, (spec.expand_k,), torch.float32),
        ("residual", residual, identity, dtype),
        (
            "shortcut",
            shortcut,
            None if shortcut_spec is None else (shortcut_spec.k, shortcut_spec.c),
            dtype,
        ),
        ("next_weight", next_weight, head, dtype),
        ("next_bias", next_bias, None if next_k is None else (next_k,), torch.float32),
        ("out", out, images, dtype),
        ("next_out", next_out, None if next_k is None else (images[0], next_k, *images[2:]), dtype),
    ):
        check_or_none(name, tensor, x, shape, kind)
    rows = images[0] * images[2] * images[3]
    if rows == 0:
        return []
    return [
        KernelCall(
            kernel=bottleneck_kernel,
            grid=(math.ceil(rows / config.block_m), 1, 1),
            arguments={
                "x_ptr": x,
                "weight_ptr": packed,
                "bias_ptr": bias,
                "expand_ptr": expand,
                "expand_bias_ptr": expand_bias,
                "residual_ptr": residual,
                "shortcut_ptr": shortcut,
                "next_weight_ptr": next_weight,
                "next_bias_ptr": next_bias,
                "out_ptr": out,
                "next_out_ptr": next_out,
                "M": rows,
                "H": conv.h,
                "W": conv.w,
                "P": conv.p,
                "Q": conv.q,
                "RESIDUAL_H": identity[2],
                "RESIDUAL_W": identity[3],
            },
            constants={
                **geometry(spec, config, precision),
                "TOGETHER": chunk.channels // (conv.c // conv.groups),
                "HAS_BIAS": bias is not None,
                "HAS_EXPAND_BIAS": expand_bias is not None,
                "HAS_NEXT_BIAS": next_bias is not None,
                "INT64": wide(
                    rows + config.block_m, x, packed, expand, residual, shortcut, out, next_out
                ),
            },
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
    ]


def geometry(spec: BottleneckSpec, config: BottleneckConfig, precision: str) -> dict[str, Any]:
    """The constants that say what is computed, and in which tiles."""
    conv, shortcut, next_k = spec.conv, spec.shortcut, spec.next_k
    chunk = chunks_of(conv)
    step = (1, 1) if shortcut is None else shortcut.stride
    return {
        "C": conv.c,
        "CHUNK_C": chunk.channels,
        "WIDTH": conv.k,
        "CHUNK": chunk.filters,
        "CHUNKS": chunk.count,
        "K": spec.expand_k,
        "SHORTCUT_C": 16 if shortcut is None else shortcut.c,
        "NEXT_K": next_k or 16,
        "R": conv.r,
        "S": conv.s,
        "STRIDE_H": conv.stride[0],
        "STRIDE_W": conv.stride[1],
        "PAD_TOP": conv.padding[0],
        "PAD_LEFT": conv.padding[1],
        "DILATION_H": conv.dilation[0],
        "DILATION_W": conv.dilation[1],
        "SHORTCUT_STRIDE_H": step[0],
        "SHORTCUT_STRIDE_W": step[1],
        "HAS_SHORTCUT": shortcut is not None,
        "HAS_NEXT": next_k is not None,
        "INPUT_PRECISION": "tf32" if precision == "tf32" else "ieee",
        "BLOCK_SIZE_M": config.block_m,
        "BLOCK_SIZE_K": config.block_k,
        "BLOCK_SIZE_N": config.block_n,
        "BLOCK_CHUNK": block_chunk(spec, precision),
        "BLOCK_SHORTCUT": block_shortcut(spec, config, precision),
        "BLOCK_NEXT": power_of_two_from(max(16, next_k or 16)),
        "TAIL_STAGES": tail_stages(spec, config, precision),
    }


def bottleneck(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    residual: Tensor,
    shortcut_weight: Tensor | None,
    shortcut_stride: Sequence[int],
    next_weight: Tensor | None,
    next_bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    *,
    config: BottleneckConfig | None = None,
    precision: str | None = None,
    gpu: Gpu | None = None,
) -> list[Tensor]:
    """``reference.bottleneck`` by this kernel: packs, allocates, chooses and runs.

    Args:
        config: how to launch, or None for what ``choose_bottleneck`` says.
        precision: None for that of ``x``'s dtype; ``tf32`` is only taken when asked for.
        gpu: whose data sheet the choice is made by; an A100's unless told.

    The others, and the result, are as in :func:`fastres.kernels.reference.bottleneck`; tensors may
    have any strides. Errors are those of :func:`bottleneck_calls`, and OptionError where no
    configuration fits the GPU.
    """
    spec = bottleneck_spec(
        x,
        weight,
        expand_weight,
        residual,
        shortcut_weight,
        shortcut_stride,
        next_weight,
        stride,
        padding,
        dilation,
        groups,
    )
    precision = precision or precision_of(x.dtype)
    gpu = gpu or by_name("a100")
    if supports(spec) is None:
        config = config or choose_bottleneck(spec, precision, gpu)
        if config is None:
            raise OptionError(
                f"{spec} in {precision}: too wide for one kernel on {gpu.name}; run its "
                "convolutions one by one"
            )
    else:  # refused by what follows
        config = config or BottleneckConfig(16, 16, 16, 4, 2)
    conv = spec.conv
    out = x.new_empty(conv.n, conv.p, conv.q, spec.expand_k).permute(0, 3, 1, 2)
    next_out = None
    if spec.next_k is not None:
        next_out = x.new_empty(conv.n, conv.p, conv.q, spec.next_k).permute(0, 3, 1, 2)
    for call in bottleneck_calls(
        channels_last(x),
        pack_bottleneck(weight, groups, precision) if supports(spec) is None else weight,
        _bias(bias),
        pack_pointwise(expand_weight, precision),
        _bias(expand_bias),
        channels_last(residual),
        None if shortcut_weight is None else pack_pointwise(shortcut_weight, precision),
        None if next_weight is None else pack_pointwise(next_weight, precision),
        _bias(next_bias),
        out,
        next_out,
        spec,
        config,
        precision,
    ):
        call.run()
    return [out] if next_out is None else [out, next_out]


def bottleneck_spec(
    x: Tensor,
    weight: Tensor,
    expand_weight: Tensor,
    residual: Tensor,
    shortcut_weight: Tensor | None,
    shortcut_stride: Sequence[int],
    next_weight: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    quantized: bool = False,
) -> BottleneckSpec:
    """The sizes of an operator's arguments, whose shapes are read and not checked.

    Raises:
        InputError: a tensor that has not four axes.
    """
    for name, tensor in (
        ("x", x),
        ("weight", weight),
        ("expand_weight", expand_weight),
        ("residual", residual),
        ("shortcut_weight", shortcut_weight),
        ("next_weight", next_weight),
    ):
        if tensor is not None and tensor.dim() != 4:
            raise InputError(f"{name} has {tensor.dim()} axes: expected four")
    top, left, bottom, right = padding
    conv = ConvSpec(
        int(x.shape[0]),
        int(x.shape[1]),
        int(x.shape[2]),
        int(x.shape[3]),
        int(weight.shape[0]),
        int(weight.shape[2]),
        int(weight.shape[3]),
        stride=(stride[0], stride[1]),
        padding=(top, left, bottom, right),
        dilation=(dilation[0], dilation[1]),
        groups=groups,
    )
    shortcut_spec = None
    if shortcut_weight is not None:
        n, c, h, w = residual.shape
        shortcut_spec = ConvSpec(
            int(n),
            int(c),
            int(h),
            int(w),
            int(shortcut_weight.shape[0]),
            1,
            1,
            stride=(shortcut_stride[0], shortcut_stride[1]),
        )
    next_k = None if next_weight is None else int(next_weight.shape[0])
    return BottleneckSpec(conv, int(expand_weight.shape[0]), shortcut_spec, next_k, quantized)


def _bias(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float().contiguous()


def check_or_none(
    name: str,
    tensor: Tensor | None,
    like: Tensor,
    shape: tuple[int, ...] | None,
    dtype: torch.dtype,
) -> None:
    """Refuse a tensor unless it is of this shape and dtype, or there is none and should be none.

    Args:
        shape: None where there must be no such tensor. Only biases may be missing where it is not.

    Raises:
        InputError: as it says.
    """
    if tensor is None:
        if shape is not None and not name.endswith("bias"):
            raise InputError(f"{name} is None: the spec says {list(shape)}")
    elif shape is None:
        raise InputError(f"{name} is {described(tensor)}: the spec has none; pass None")
    else:
        check_tensor(name, tensor, like, shape, dtype)
