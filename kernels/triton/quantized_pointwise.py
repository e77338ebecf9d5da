"""A 1x1 convolution of uint8 with int8 as a plain matrix product, its tiles moved by descriptor.

As :mod:`fastres.kernels.triton.pointwise`, finished as
:mod:`fastres.kernels.triton.quantized_conv2d` is. Beyond the last channel descriptors give zeros:
those of the weight count, whatever the pixel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastres.kernels.triton.chain import await_inputs, let_next_start
from fastres.kernels.triton.conv2d import tile_of_program
from fastres.kernels.triton.dot import dot
from fastres.kernels.triton.quantized import finish_sums, rounded


@triton.jit
def quantized_pointwise_kernel(
    x_desc,
    weight_desc,
    bias_ptr,
    multiplier_ptr,
    residual_desc,
    out_desc,
    M,
    residual_zero_point,
    residual_ratio,
    ratio,
    zero_point,
    C: tl.constexpr,
    K: tl.constexpr,
    PRE_ACTIVATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_SIZE_M: tl.constexpr,
    BLOCK_SIZE_N: tl.constexpr,
    BLOCK_SIZE_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    CHAINED: tl.constexpr = False,
):
    """One tile of ``out`` [M, K] from ``x`` [M, C] and ``weight`` [K, C]."""
    pid_m, pid_n = tile_of_program(
        tl.program_id(0), M, K, BLOCK_SIZE_M, BLOCK_SIZE_N, GROUP_M=GROUP_M
    )
    first_m = pid_m * BLOCK_SIZE_M
    first_n = pid_n * BLOCK_SIZE_N
    acc = tl.zeros((BLOCK_SIZE_M, BLOCK_SIZE_N), tl.int32)
    await_inputs(CHAINED)
    for step in range(0, tl.cdiv(C, BLOCK_SIZE_K)):
        a = x_desc.load([first_m, step * BLOCK_SIZE_K])
        b = weight_desc.load([first_n, step * BLOCK_SIZE_K])
        acc = dot(a, b.T, acc, INPUT_PRECISION)
    let_next_start(CHAINED)
    offs_n = first_n + tl.arange(0, BLOCK_SIZE_N)
    bias = tl.load(bias_ptr + offs_n, mask=offs_n < K, other=0)[None, :]
    multiplier = tl.load(multiplier_ptr + offs_n, mask=offs_n < K, other=0.0)[None, :]
    residual = acc
    if HAS_RESIDUAL:
        residual = residual_desc.load([first_m, first_n])
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
    out_desc.store([first_m, first_n], rounded(y * ratio, zero_point))
