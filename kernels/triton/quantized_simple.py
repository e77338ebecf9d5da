"""Quantised operators that compute little: into uint8 and out of it, sums, and means.

The definition is :mod:`fastres.kernels.quantized`; scales and zero points are as in
:mod:`fastres.kernels.triton.quantized`. Tensors are walked as those of
:mod:`fastres.kernels.triton.elementwise` are.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastres.kernels.triton.chain import await_inputs, let_next_start
from fastres.kernels.triton.elementwise import block_of_row
from fastres.kernels.triton.quantized import activate_exactly, centred, rounded


@triton.jit
def quantize_kernel(
    x_ptr,
    out_ptr,
    vectors,
    scale,
    zero_point,
    VECTOR: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    INT64: tl.constexpr,
    CHAINED: tl.constexpr = False,
):
    """``out = round(x / scale) + zero_point``; NaN becomes the zero point."""
    offs, exists = block_of_row(vectors, VECTOR, BLOCK_SIZE, INT64)
    await_inputs(CHAINED)
    y = tl.div_rn(tl.load(x_ptr + offs, mask=exists, other=0.0).to(tl.float32), scale)
    y = tl.where(y == y, y, 0.0)
    let_next_start(CHAINED)
    tl.store(out_ptr + offs, rounded(y, zero_point), mask=exists)


@triton.jit
def dequantize_kernel(
    x_ptr,
    out_ptr,
    vectors,
    scale,
    zero_point,
    VECTOR: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    INT64: tl.constexpr,
    CHAINED: tl.constexpr = False,
):
    """``out = (x - zero_point) * scale`` in float32."""
    offs, exists = block_of_row(vectors, VECTOR, BLOCK_SIZE, INT64)
    await_inputs(CHAINED)
    x = tl.load(x_ptr + offs, mask=exists, other=0)
    let_next_start(CHAINED)
    tl.store(out_ptr + offs, centred(x, zero_point) * scale, mask=exists)


@triton.jit
def quantized_add_kernel(
    x_ptr,
    y_ptr,
    out_ptr,
    vectors,
    x_ratio,
    x_zero_point,
    y_ratio,
    y_zero_point,
    ratio,
    zero_point,
    ACTIVATION: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    INT64: tl.constexpr,
    CHAINED: tl.constexpr = False,
):
    """``out = activation(x + y)``; the ratios count ``x``, ``y`` and the sum in other units."""
    offs, exists = block_of_row(vectors, VECTOR, BLOCK_SIZE, INT64)
    await_inputs(CHAINED)
    x = tl.load(x_ptr + offs, mask=exists, other=0)
    y = tl.load(y_ptr + offs, mask=exists, other=0)
    total = centred(x, x_zero_point) * x_ratio + centred(y, y_zero_point) * y_ratio
    total = activate_exactly(total, ACTIVATION) * ratio
    let_next_start(CHAINED)
    tl.store(out_ptr + offs, rounded(total, zero_point), mask=exists)


@triton.jit
def quantized_global_avg_pool_kernel(
    x_ptr,
    out_ptr,
    x_zero_point,
    ratio,
    zero_point,
    PIXELS: tl.constexpr,
    C: tl.constexpr,
    BLOCK_SIZE_P: tl.constexpr,
    BLOCK_SIZE_C: tl.constexpr,
    INT64: tl.constexpr,
    CHAINED: tl.constexpr = False,
):
    """``out[n, c]`` = mean of ``x[n, :, c]`` over PIXELS pixels; the sum is int32, and exact."""
    await_inputs(CHAINED)
    pid = tl.program_id(0)
    blocks_c = tl.cdiv(C, BLOCK_SIZE_C)
    image = pid // blocks_c
    if INT64:
        image = image.to(tl.int64)
    offs_c = pid % blocks_c * BLOCK_SIZE_C + tl.arange(0, BLOCK_SIZE_C)
    total = tl.zeros((BLOCK_SIZE_P, BLOCK_SIZE_C), tl.int32)
    for start in range(0, PIXELS, BLOCK_SIZE_P):
        offs_p = start + tl.arange(0, BLOCK_SIZE_P)
        total += tl.load(
            x_ptr + (image * PIXELS + offs_p)[:, None] * C + offs_c[None, :],
            mask=(offs_p < PIXELS)[:, None] & (offs_c < C)[None, :],
            other=0,
        ).to(tl.int32)
    sums = tl.sum(total, axis=0) - tl.cast(x_zero_point, tl.int32) * PIXELS
    mean = tl.div_rn(sums.to(tl.float32) * ratio, tl.cast(PIXELS, tl.float32))
    let_next_start(CHAINED)
    tl.store(out_ptr + image * C + offs_c, rounded(mean, zero_point), mask=offs_c < C)
