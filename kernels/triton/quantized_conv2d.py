"""Convolution of uint8 with int8: the products of :mod:`~fastres.kernels.triton.conv2d`, in int32.

Tensor cores multiply signed bytes, so that pixels are read 128 less, and the bias holds what that
and the zero point take away (:func:`fastres.kernels.packing.pack_quantized_bias`)::

    sum (x - x_zero_point) * weight = sum (x - 128) * weight - (x_zero_point - 128) * sum weight

The padding holds the zero point. Sums are exact in any order, those of splits too.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastres.kernels.triton.chain import await_inputs, let_next_start
from fastres.kernels.triton.conv2d import (
    is_last_split,
    operands_of_tile,
    sum_of_products,
    sum_of_stored,
)
from fastres.kernels.triton.quantized import finish_sums, rounded


@triton.jit
def store_finished(
    acc,
    bias_ptr,
    multiplier_ptr,
    residual_ptr,
    out_ptr,
    offsets,
    stored,
    filters,
    in_n,
    residual_zero_point,
    residual_ratio,
    ratio,
    zero_point,
    PRE_ACTIVATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    """Finish int32 sums and store them: as uint8, or where ``out`` is float32 as they are then.

    ``filters`` and ``in_n`` are as wide as ``offsets`` along the pixels, or one.
    """
    bias = tl.load(bias_ptr + filters, mask=in_n, other=0)
    multiplier = tl.load(multiplier_ptr + filters, mask=in_n, other=0.0)
    residual = acc
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptr + offsets, mask=stored, other=0)
    y = finish_sums(
        acc,
        bias,
        multiplier,
        residual,
        residual_zero_point,
        residual_ratio,
        PRE_ACTIVATION,
        ACTIVATION,
        HAS_RESIDUAL,
    )
    if out_ptr.dtype.element_ty == tl.uint8:
        tl.store(out_ptr + offsets, rounded(y * ratio, zero_point), mask=stored)
    else:
        tl.store(out_ptr + offsets, y, mask=stored)


@triton.jit
def quantized_conv2d_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    multiplier_ptr,
    residual_ptr,
    out_ptr,
    partial_ptr,
    counter_ptr,
    M,
    H,
    W,
    P,
    Q,
    x_zero_point,
    residual_zero_point,
    residual_ratio,
    ratio,
    zero_point,
    C: tl.constexpr,
    K: tl.constexpr,
    ALL_C: tl.constexpr,
    ALL_K: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_TOP: tl.constexpr,
    PAD_LEFT: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    PADDED: tl.constexpr,
    PADDING_IS_0: tl.constexpr,
    PRE_ACTIVATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_SIZE_M: tl.constexpr,
    BLOCK_SIZE_N: tl.constexpr,
    BLOCK_SIZE_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    SPLIT_K: tl.constexpr,
    FUSED_SUM: tl.constexpr,
    INT64: tl.constexpr,
    CHAINED: tl.constexpr = False,
):
    """One tile of ``out``, or with SPLIT_K > 1 of one of its partial sums, as ``conv2d_kernel``.

    Partial sums are int32. PADDING_IS_0: ``x_zero_point`` is 0, which a masked load gives for
    nothing.
    """
    (
        group,
        split,
        offs_m,
        offs_n,
        x_ptr,
        first,
        top,
        left,
        outside,
        weight_ptrs,
        offs_k,
        row_distance,
        begin,
        end,
    ) = operands_of_tile(
        x_ptr,
        weight_ptr,
        M,
        H,
        W,
        P,
        Q,
        C,
        K,
        ALL_C,
        ALL_K,
        R,
        S,
        STRIDE_H,
        STRIDE_W,
        PAD_TOP,
        PAD_LEFT,
        DILATION_H,
        DILATION_W,
        PADDED,
        BLOCK_SIZE_M,
        BLOCK_SIZE_N,
        BLOCK_SIZE_K,
        GROUP_M,
        SPLIT_K,
        INT64,
    )
    fill = 0
    if not PADDING_IS_0:
        fill = tl.cast(x_zero_point, tl.uint8)
    await_inputs(CHAINED)
    acc = sum_of_products(
        x_ptr,
        first,
        top,
        left,
        outside,
        weight_ptrs,
        offs_k,
        row_distance,
        begin,
        end,
        0,
        fill,
        H,
        W,
        C,
        C,
        ALL_C,
        R,
        S,
        DILATION_H,
        DILATION_W,
        PADDED,
        INPUT_PRECISION,
        BLOCK_SIZE_M,
        BLOCK_SIZE_N,
        BLOCK_SIZE_K,
        False,
    )
    let_next_start(CHAINED)
    filters = (group * K + offs_n)[None, :]
    in_n = (offs_n < K)[None, :]
    offsets = offs_m[:, None] * ALL_K + filters
    stored = (offs_m < M)[:, None] & in_n
    if SPLIT_K > 1:
        # M is 64 bits wide wherever M * ALL_K needs it.
        tl.store(partial_ptr + split * M * ALL_K + offsets, acc, mask=stored)
    if FUSED_SUM:
        size = M * ALL_K
        if INT64:
            size = tl.cast(M, tl.int64) * ALL_K
        counter_ptr += tl.program_id(0)
        if is_last_split(counter_ptr, SPLIT_K):
            store_finished(
                sum_of_stored(partial_ptr, offsets, stored, size, SPLIT_K),
                bias_ptr,
                multiplier_ptr,
                residual_ptr,
                out_ptr,
                offsets,
                stored,
                filters,
                in_n,
                residual_zero_point,
                residual_ratio,
                ratio,
                zero_point,
                PRE_ACTIVATION,
                ACTIVATION,
                HAS_RESIDUAL,
            )
            tl.store(counter_ptr, 0)
    elif SPLIT_K == 1:
        store_finished(
            acc,
            bias_ptr,
            multiplier_ptr,
            residual_ptr,
            out_ptr,
            offsets,
            stored,
            filters,
            in_n,
            residual_zero_point,
            residual_ratio,
            ratio,
            zero_point,
            PRE_ACTIVATION,
            ACTIVATION,
            HAS_RESIDUAL,
        )


@triton.jit
def quantized_sum_of_splits_kernel(
    partial_ptr,
    bias_ptr,
    multiplier_ptr,
    residual_ptr,
    out_ptr,
    SIZE,
    residual_zero_point,
    residual_ratio,
    ratio,
    zero_point,
    ALL_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    PRE_ACTIVATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    INT64: tl.constexpr,
    CHAINED: tl.constexpr = False,
):
    """Add the partial sums [SPLIT_K, SIZE] and finish."""
    pid = tl.program_id(0)
    if INT64:
        pid = pid.to(tl.int64)
    offs = pid * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    stored = offs < SIZE
    await_inputs(CHAINED)
    acc = sum_of_stored(partial_ptr, offs, stored, SIZE, SPLIT_K)
    let_next_start(CHAINED)
    store_finished(
        acc,
        bias_ptr,
        multiplier_ptr,
        residual_ptr,
        out_ptr,
        offs,
        stored,
        offs % ALL_K,
        stored,
        residual_zero_point,
        residual_ratio,
        ratio,
        zero_point,
        PRE_ACTIVATION,
        ACTIVATION,
        HAS_RESIDUAL,
    )
