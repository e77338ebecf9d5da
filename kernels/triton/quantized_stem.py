"""Device code of the stem of int8: :mod:`~fastres.kernels.triton.stem` in bytes.

Products are as in :mod:`~fastres.kernels.triton.quantized_conv2d`: pixels are read 128 less, biases
hold what that and the zero point take away, and the padding holds the zero point. Numbers of a row
that lie beside the filter have weights of 0, and whatever is multiplied by them is 0. Each sum is
finished as the definition finishes that of the convolution by itself, and the bytes are pooled, so
that fusing changes no integer.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastres.kernels.triton.chain import await_inputs, let_next_start
from fastres.kernels.triton.dot import dot
from fastres.kernels.triton.quantized import finish_sums, rounded
from fastres.kernels.triton.stem import operands_of_rows, store_pooled


@triton.jit
def quantized_stem_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    multiplier_ptr,
    out_ptr,
    H,
    W,
    P,
    Q,
    POOLED_P,
    POOLED_Q,
    TILES_H,
    TILES_W,
    x_zero_point,
    residual_zero_point,
    residual_ratio,
    ratio,
    zero_point,
    C: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    ROW: tl.constexpr,
    LEAD: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_TOP: tl.constexpr,
    PAD_LEFT: tl.constexpr,
    POOL_R: tl.constexpr,
    POOL_S: tl.constexpr,
    POOL_PAD_H: tl.constexpr,
    POOL_PAD_W: tl.constexpr,
    PADDING_IS_0: tl.constexpr,
    ACTIVATION: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_SIZE_N: tl.constexpr,
    INT64: tl.constexpr,
    CHAINED: tl.constexpr = False,
):
    """The windows in a tile of TILE_H x TILE_W pixels, as ``stem_kernel``; ROW is 32 or more.

    PADDING_IS_0: ``x_zero_point`` is 0, which a masked load gives for nothing.
    """
    (
        image,
        tile_h,
        tile_w,
        exists,
        rows_inside,
        columns_inside,
        x_ptrs,
        row_length,
        _,
        offs_n,
        weight_ptrs,
    ) = operands_of_rows(
        x_ptr,
        weight_ptr,
        H,
        W,
        P,
        Q,
        TILES_H,
        TILES_W,
        C,
        R,
        S,
        ROW,
        LEAD,
        ALIGNMENT,
        STRIDE_H,
        STRIDE_W,
        PAD_TOP,
        PAD_LEFT,
        POOL_R,
        POOL_S,
        POOL_PAD_H,
        POOL_PAD_W,
        TILE_H,
        TILE_W,
        BLOCK_SIZE_N,
        INT64,
    )
    fill = 0
    if not PADDING_IS_0:
        fill = tl.cast(x_zero_point, tl.uint8)
    in_n = offs_n < K
    acc = tl.zeros((TILE_H * TILE_W, BLOCK_SIZE_N), tl.int32)
    await_inputs(CHAINED)
    for r in range(R):
        inside = columns_inside & (((rows_inside >> r) & 1) != 0)[:, None]
        a = tl.load(x_ptrs + r * row_length, mask=inside, other=fill)
        if K % BLOCK_SIZE_N == 0:
            b = tl.load(weight_ptrs + r * ROW)
        else:
            b = tl.load(weight_ptrs + r * ROW, mask=in_n[None, :], other=0)
        acc = dot(a, b, acc, INPUT_PRECISION)
    let_next_start(CHAINED)
    bias = tl.load(bias_ptr + offs_n, mask=in_n, other=0)[None, :]
    multiplier = tl.load(multiplier_ptr + offs_n, mask=in_n, other=0.0)[None, :]
    y = finish_sums(
        acc,
        bias,
        multiplier,
        acc,
        residual_zero_point,
        residual_ratio,
        "none",
        ACTIVATION,
        False,
    )
    # Where there is no pixel, the least byte: every window holds a pixel that there is.
    tile = tl.where(exists[:, None], rounded(y * ratio, zero_point), 0).to(tl.uint8)
    store_pooled(
        tile,
        out_ptr,
        image,
        tile_h,
        tile_w,
        offs_n,
        in_n,
        POOLED_P,
        POOLED_Q,
        K,
        POOL_R,
        POOL_S,
        TILE_H,
        TILE_W,
        BLOCK_SIZE_N,
    )
