"""Device code of the stem: a convolution on few channels and the max-pool behind it.

A program computes TILE_H x TILE_W pixels of the convolution, rounds them as if they were stored,
and keeps the largest under each window that lies in the tile. Windows have two or three taps per
axis and a stride of two: each is a pair of pixels, and with three taps the first of the next pair,
so that neighbouring tiles overlap by one pair. Letters as in :mod:`fastres.kernels.spec`.

In channels-last memory the S * C numbers under a row of the filter are neighbours. A step of the
loop is one such row: ROW numbers, a power of two, of which LEAD come before the filter's first one,
so that addresses are multiples of ALIGNMENT numbers, which are copied at once. Weights are zero
where a row has no number of the filter.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastres.kernels.triton.activations import activate
from fastres.kernels.triton.bottleneck import taps_inside
from fastres.kernels.triton.chain import await_inputs, let_next_start
from fastres.kernels.triton.dot import dot


@triton.jit
def larger(x, y):
    """The larger of two, NaN if one is; two numbers of 16 bits by one instruction from sm_80 on."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def pooled_pairs(x, A: tl.constexpr, B: tl.constexpr, TAPS: tl.constexpr):
    """Over windows along the first axis: [2 * A, B] -> [A, B]; the last has its pair only."""
    first, second = tl.split(tl.permute(tl.reshape(x, [A, 2, B]), [0, 2, 1]))
    best = larger(first, second)
    if TAPS == 3:
        following = tl.minimum(tl.arange(0, A) + 1, A - 1)
        third = tl.gather(first, tl.broadcast_to(following[:, None], [A, B]), 0)
        best = larger(third, best)
    return best


@triton.jit
def operands_of_rows(
    x_ptr,
    weight_ptr,
    H,
    W,
    P,
    Q,
    TILES_H,
    TILES_W,
    C: tl.constexpr,
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
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_SIZE_N: tl.constexpr,
    INT64: tl.constexpr,
):
    """Where this program's operands lie.

    Returns, in this order: the image's number, the tile's, down and across; which pixels there are
    [TILE_H * TILE_W]; which rows of the filter lie in the image there, a bit each; which numbers of
    a row do [TILE_H * TILE_W, ROW]; pointers to those of the first row; how many numbers a row of
    the image has; places in a row [ROW]; the filters [BLOCK_SIZE_N], and pointers to the first row
    of their weights.
    """
    pid = tl.program_id(0)
    tile_h = pid // TILES_W % TILES_H
    tile_w = pid % TILES_W
    image = pid // TILES_W // TILES_H
    if INT64:
        image = image.to(tl.int64)
    WINDOWS_H: tl.constexpr = TILE_H // 2 - (POOL_R - 2)
    WINDOWS_W: tl.constexpr = TILE_W // 2 - (POOL_S - 2)
    BLOCK_SIZE_M: tl.constexpr = TILE_H * TILE_W

    offs_m = tl.arange(0, BLOCK_SIZE_M)
    p = tile_h * (2 * WINDOWS_H) - POOL_PAD_H + offs_m // TILE_W
    q = tile_w * (2 * WINDOWS_W) - POOL_PAD_W + offs_m % TILE_W
    exists = (p >= 0) & (p < P) & (q >= 0) & (q < Q)
    top = p * STRIDE_H - PAD_TOP
    rows_inside = tl.where(exists, taps_inside(top, H, 1, R), 0)

    # Exact: multiplied by ALIGNMENT last, so that the compiler knows what divides them.
    row_length = W * C // ALIGNMENT * ALIGNMENT
    left = (q * (STRIDE_W * C) - (PAD_LEFT * C + LEAD)) // ALIGNMENT * ALIGNMENT
    j = tl.arange(0, ROW)
    ROW_END: tl.constexpr = (LEAD + S * C + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
    column = left[:, None] + j[None, :]
    columns_inside = (column >= 0) & (column < row_length) & (j < ROW_END)[None, :]
    x_ptrs = x_ptr + (((image * H + top) * row_length + left)[:, None] + j[None, :])

    offs_n = tl.program_id(1) * BLOCK_SIZE_N + tl.arange(0, BLOCK_SIZE_N)
    weight_ptrs = weight_ptr + (offs_n * (R * ROW))[None, :] + j[:, None]
    return (
        image,
        tile_h,
        tile_w,
        exists,
        rows_inside,
        columns_inside,
        x_ptrs,
        row_length,
        j,
        offs_n,
        weight_ptrs,
    )


@triton.jit
def store_pooled(
    tile,
    out_ptr,
    image,
    tile_h,
    tile_w,
    offs_n,
    in_n,
    POOLED_P,
    POOLED_Q,
    K: tl.constexpr,
    POOL_R: tl.constexpr,
    POOL_S: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_SIZE_N: tl.constexpr,
):
    """The largest under each window in a tile [TILE_H * TILE_W, BLOCK_SIZE_N], into ``out``."""
    WINDOWS_H: tl.constexpr = TILE_H // 2 - (POOL_R - 2)
    WINDOWS_W: tl.constexpr = TILE_W // 2 - (POOL_S - 2)
    HALF_H: tl.constexpr = TILE_H // 2
    HALF_W: tl.constexpr = TILE_W // 2
    tile = pooled_pairs(
        tl.reshape(tile, [TILE_H, TILE_W * BLOCK_SIZE_N]), HALF_H, TILE_W * BLOCK_SIZE_N, POOL_R
    )
    tile = pooled_pairs(
        tl.reshape(tile, [HALF_H * TILE_W, BLOCK_SIZE_N]), HALF_H * HALF_W, BLOCK_SIZE_N, POOL_S
    )

    offs_pooled = tl.arange(0, HALF_H * HALF_W)
    row = offs_pooled // HALF_W
    window = offs_pooled % HALF_W
    pooled_p = tile_h * WINDOWS_H + row
    pooled_q = tile_w * WINDOWS_W + window
    pixel = (image * POOLED_P + pooled_p) * POOLED_Q + pooled_q
    stored = (pooled_p < POOLED_P) & (pooled_q < POOLED_Q)
    stored = stored & (row < WINDOWS_H) & (window < WINDOWS_W)
    out_offsets = (pixel * K)[:, None] + offs_n[None, :]
    tl.store(out_ptr + out_offsets, tile, mask=stored[:, None] & in_n[None, :])


@triton.jit
def stem_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    out_ptr,
    H,
    W,
    P,
    Q,
    POOLED_P,
    POOLED_Q,
    TILES_H,
    TILES_W,
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
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    NORMALISE: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_SIZE_N: tl.constexpr,
    INT64: tl.constexpr,
    CHAINED: tl.constexpr = False,
):
    """The windows in a tile of TILE_H x TILE_W pixels, of ``out`` [N, POOLED_P, POOLED_Q, K].

    NORMALISE: ``x`` is uint8, and what is convolved is ``x * scale + shift`` per channel, rounded
    to the weight's dtype, with zeros around it. R is at most 32.
    """
    dtype = out_ptr.dtype.element_ty
    (
        image,
        tile_h,
        tile_w,
        exists,
        rows_inside,
        columns_inside,
        x_ptrs,
        row_length,
        j,
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
    used = (j >= LEAD) & (j < LEAD + S * C)
    ROW_END: tl.constexpr = (LEAD + S * C + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
    if NORMALISE:
        channel = (j + (C - LEAD % C)) % C
        scale = tl.load(scale_ptr + channel)
        shift = tl.load(shift_ptr + channel)
    in_n = offs_n < K
    acc = tl.zeros((TILE_H * TILE_W, BLOCK_SIZE_N), tl.float32)
    await_inputs(CHAINED)
    for r in range(R):
        inside = columns_inside & (((rows_inside >> r) & 1) != 0)[:, None]
        a = tl.load(x_ptrs + r * row_length, mask=inside, other=0)
        if NORMALISE:
            normal = a.to(tl.float32) * scale[None, :] + shift[None, :]
            a = tl.where(inside & used[None, :], normal, 0.0).to(weight_ptr.dtype.element_ty)
        elif LEAD > 0 or ROW_END != S * C:  # infinity times the weight of zero would be NaN
            a = tl.where(used[None, :], a, 0.0)
        if K % BLOCK_SIZE_N == 0:
            b = tl.load(weight_ptrs + r * ROW)
        else:
            b = tl.load(weight_ptrs + r * ROW, mask=in_n[None, :], other=0.0)
        acc = dot(a, b, acc, INPUT_PRECISION)
    let_next_start(CHAINED)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + offs_n, mask=in_n, other=0.0)[None, :]
    acc = activate(acc, ACTIVATION)
    tile = tl.where(exists[:, None], acc, -float("inf")).to(dtype)
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
