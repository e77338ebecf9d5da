"""Pooling of channels-last images: windows, whole images, and whole images into a classifier.

A program's tile is output pixels times channels; channels lie next to each other in memory, so
every access is as wide as they allow. Sums are kept in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastres.kernels.triton.activations import activate
from fastres.kernels.triton.chain import await_inputs, let_next_start


@triton.jit
def tile_of_windows(
    M, P, Q, C: tl.constexpr, BLOCK_SIZE_M: tl.constexpr, BLOCK_SIZE_C: tl.constexpr, INT64
):
    """Output pixels and channels of this program, and the pixels' image, row and column."""
    pid = tl.program_id(0)
    blocks_c = tl.cdiv(C, BLOCK_SIZE_C)
    pid_m = pid // blocks_c
    if INT64:
        pid_m = pid_m.to(tl.int64)
    offs_m = pid_m * BLOCK_SIZE_M + tl.arange(0, BLOCK_SIZE_M)
    offs_c = pid % blocks_c * BLOCK_SIZE_C + tl.arange(0, BLOCK_SIZE_C)
    return offs_m, offs_c, offs_m // (P * Q), offs_m // Q % P, offs_m % Q


@triton.jit
def max_pool2d_kernel(
    x_ptr,
    out_ptr,
    M,
    H,
    W,
    P,
    Q,
    C: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    BLOCK_SIZE_M: tl.constexpr,
    BLOCK_SIZE_C: tl.constexpr,
    UNROLL: tl.constexpr,
    INT64: tl.constexpr,
    CHAINED: tl.constexpr = False,
):
    """Largest value under each window of R x S pixels; NaN where the window holds one.

    Of uint8 as it is, whose least value every window may have beside its own.
    """
    IS_BYTE: tl.constexpr = x_ptr.dtype.element_ty == tl.uint8
    LEAST: tl.constexpr = 0 if IS_BYTE else float("-inf")
    COMPARED: tl.constexpr = tl.int32 if IS_BYTE else tl.float32
    await_inputs(CHAINED)
    offs_m, offs_c, n, p, q = tile_of_windows(M, P, Q, C, BLOCK_SIZE_M, BLOCK_SIZE_C, INT64)
    top = p * STRIDE_H - PAD_H
    left = q * STRIDE_W - PAD_W
    best = tl.full((BLOCK_SIZE_M, BLOCK_SIZE_C), LEAST, COMPARED)
    for tap in tl.range(0, R * S, loop_unroll_factor=UNROLL):
        y = top + tap // S * DILATION_H
        x = left + tap % S * DILATION_W
        inside = (offs_m < M) & (y >= 0) & (y < H) & (x >= 0) & (x < W)
        value = tl.load(
            x_ptr + ((n * H + y) * W + x)[:, None] * C + offs_c[None, :],
            mask=inside[:, None] & (offs_c < C)[None, :],
            other=LEAST,
        ).to(COMPARED)
        # NaN is larger than everything, and once it is the best nothing is larger than it.
        best = tl.where((value > best) | (value != value), value, best)
    let_next_start(CHAINED)
    tl.store(
        out_ptr + offs_m[:, None] * C + offs_c[None, :],
        best.to(out_ptr.dtype.element_ty),
        mask=(offs_m < M)[:, None] & (offs_c < C)[None, :],
    )


@triton.jit
def avg_pool2d_kernel(
    x_ptr,
    out_ptr,
    M,
    H,
    W,
    P,
    Q,
    C: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    COUNT_INCLUDE_PAD: tl.constexpr,
    DIVISOR: tl.constexpr,
    BLOCK_SIZE_M: tl.constexpr,
    BLOCK_SIZE_C: tl.constexpr,
    UNROLL: tl.constexpr,
    INT64: tl.constexpr,
    CHAINED: tl.constexpr = False,
):
    """Sum under each window over DIVISOR; where that is 0, over the window's number of pixels."""
    await_inputs(CHAINED)
    offs_m, offs_c, n, p, q = tile_of_windows(M, P, Q, C, BLOCK_SIZE_M, BLOCK_SIZE_C, INT64)
    top = p * STRIDE_H - PAD_H
    left = q * STRIDE_W - PAD_W
    total = tl.zeros((BLOCK_SIZE_M, BLOCK_SIZE_C), tl.float32)
    for tap in tl.range(0, R * S, loop_unroll_factor=UNROLL):
        y = top + tap // S
        x = left + tap % S
        inside = (offs_m < M) & (y >= 0) & (y < H) & (x >= 0) & (x < W)
        total += tl.load(
            x_ptr + ((n * H + y) * W + x)[:, None] * C + offs_c[None, :],
            mask=inside[:, None] & (offs_c < C)[None, :],
            other=0.0,
        ).to(tl.float32)
    if DIVISOR == 0:
        # In ceil mode a window may end beyond the padding, which never counts.
        bottom = tl.minimum(top + R, H + PAD_H)
        right = tl.minimum(left + S, W + PAD_W)
        if not COUNT_INCLUDE_PAD:
            top = tl.maximum(top, 0)
            left = tl.maximum(left, 0)
            bottom = tl.minimum(bottom, H)
            right = tl.minimum(right, W)
        # No window lies in the padding alone: at most half of one may, and the last one starts
        # inside the image.
        pixels = (bottom - top) * (right - left)
        total = total / pixels.to(tl.float32)[:, None]
    else:
        total = total / DIVISOR
    let_next_start(CHAINED)
    tl.store(
        out_ptr + offs_m[:, None] * C + offs_c[None, :],
        total.to(out_ptr.dtype.element_ty),
        mask=(offs_m < M)[:, None] & (offs_c < C)[None, :],
    )


@triton.jit
def means_of_channels(
    x_ptr,
    image,
    offs_c,
    PIXELS: tl.constexpr,
    C: tl.constexpr,
    BLOCK_SIZE_P: tl.constexpr,
    BLOCK_SIZE_C: tl.constexpr,
):
    """Means over all pixels of one image, float32; 0 for channels that do not exist."""
    total = tl.zeros((BLOCK_SIZE_P, BLOCK_SIZE_C), tl.float32)
    for first in range(0, PIXELS, BLOCK_SIZE_P):
        offs_p = first + tl.arange(0, BLOCK_SIZE_P)
        total += tl.load(
            x_ptr + (image * PIXELS + offs_p)[:, None] * C + offs_c[None, :],
            mask=(offs_p < PIXELS)[:, None] & (offs_c < C)[None, :],
            other=0.0,
        ).to(tl.float32)
    return tl.sum(total, axis=0) / PIXELS


@triton.jit
def global_avg_pool_kernel(
    x_ptr,
    out_ptr,
    PIXELS: tl.constexpr,
    C: tl.constexpr,
    BLOCK_SIZE_P: tl.constexpr,
    BLOCK_SIZE_C: tl.constexpr,
    INT64: tl.constexpr,
    CHAINED: tl.constexpr = False,
):
    """``out[n, c]`` = mean of ``x[n, :, c]`` over PIXELS pixels."""
    await_inputs(CHAINED)
    pid = tl.program_id(0)
    blocks_c = tl.cdiv(C, BLOCK_SIZE_C)
    image = pid // blocks_c
    if INT64:
        image = image.to(tl.int64)
    offs_c = pid % blocks_c * BLOCK_SIZE_C + tl.arange(0, BLOCK_SIZE_C)
    mean = means_of_channels(x_ptr, image, offs_c, PIXELS, C, BLOCK_SIZE_P, BLOCK_SIZE_C)
    let_next_start(CHAINED)
    tl.store(out_ptr + image * C + offs_c, mean.to(out_ptr.dtype.element_ty), mask=offs_c < C)


@triton.jit
def pool_linear_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    PIXELS: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_SIZE_P: tl.constexpr,
    BLOCK_SIZE_N: tl.constexpr,
    BLOCK_SIZE_K: tl.constexpr,
    INT64: tl.constexpr,
    CHAINED: tl.constexpr = False,
):
    """``out[n, k] = activation(sum_c mean(x[n, :, c]) * weight[k, c] + bias[k])``.

    A program makes BLOCK_SIZE_N classes of one image. It computes the image's means itself: reading
    them again costs L2 traffic, a launch of their own costs more while images are few. Means are
    rounded to the images' dtype before the product, as they are when stored in between. Products
    are exact in float32 for the narrow dtypes; for one image, tensor cores would be idle anyway.
    """
    await_inputs(CHAINED)
    pid = tl.program_id(0)
    blocks_n = tl.cdiv(K, BLOCK_SIZE_N)
    image = pid // blocks_n
    offs_n = pid % blocks_n * BLOCK_SIZE_N + tl.arange(0, BLOCK_SIZE_N)
    if INT64:
        image = image.to(tl.int64)
        offs_n = offs_n.to(tl.int64)
    total = tl.zeros((BLOCK_SIZE_N, BLOCK_SIZE_K), tl.float32)
    for first in range(0, C, BLOCK_SIZE_K):
        offs_k = first + tl.arange(0, BLOCK_SIZE_K)
        weight = tl.load(
            weight_ptr + offs_n[:, None] * C + offs_k[None, :],
            mask=(offs_n < K)[:, None] & (offs_k < C)[None, :],
            other=0.0,
        ).to(tl.float32)
        mean = means_of_channels(x_ptr, image, offs_k, PIXELS, C, BLOCK_SIZE_P, BLOCK_SIZE_K)
        mean = mean.to(x_ptr.dtype.element_ty).to(tl.float32)
        total += weight * mean[None, :]
    y = tl.sum(total, axis=1)
    if HAS_BIAS:
        y += tl.load(bias_ptr + offs_n, mask=offs_n < K, other=0.0)
    y = activate(y, ACTIVATION)
    let_next_start(CHAINED)
    tl.store(out_ptr + image * K + offs_n, y.to(out_ptr.dtype.element_ty), mask=offs_n < K)
