"""A 1x1 convolution with stride 1, or a fully connected layer: a plain matrix product.

``out[m, n] = activation(pre_activation(sum_k x[m, k] * weight[n, k] + bias[n]) + residual[m, n])``
with m a pixel and n a filter. Tiles move by tensor descriptor: the copy engine computes addresses
and cuts off what lies outside, so that the main loop does neither.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastres.kernels.triton.chain import await_inputs, let_next_start
from fastres.kernels.triton.conv2d import finish, tile_of_program
from fastres.kernels.triton.dot import dot


@triton.jit
def pointwise_kernel(
    x_desc,
    weight_desc,
    bias_ptr,
    residual_desc,
    out_desc,
    M,
    C: tl.constexpr,
    K: tl.constexpr,
    PRE_ACTIVATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_SIZE_M: tl.constexpr,
    BLOCK_SIZE_N: tl.constexpr,
    BLOCK_SIZE_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    ROUND_A: tl.constexpr,
    CHAINED: tl.constexpr = False,
):
    """One tile of ``out`` [M, K] from ``x`` [M, C] and ``weight`` [K, C]."""
    pid_m, pid_n = tile_of_program(
        tl.program_id(0), M, K, BLOCK_SIZE_M, BLOCK_SIZE_N, GROUP_M=GROUP_M
    )
    first_m = pid_m * BLOCK_SIZE_M
    first_n = pid_n * BLOCK_SIZE_N
    acc = tl.zeros((BLOCK_SIZE_M, BLOCK_SIZE_N), tl.float32)
    await_inputs(CHAINED)
    for step in range(0, tl.cdiv(C, BLOCK_SIZE_K)):
        a = x_desc.load([first_m, step * BLOCK_SIZE_K])
        b = weight_desc.load([first_n, step * BLOCK_SIZE_K])
        acc = dot(a, b.T, acc, INPUT_PRECISION, ROUND_A=ROUND_A)
    let_next_start(CHAINED)
    bias = 0.0
    if HAS_BIAS:
        offs_n = first_n + tl.arange(0, BLOCK_SIZE_N)
        bias = tl.load(bias_ptr + offs_n, mask=offs_n < K, other=0.0)[None, :]
    residual = acc
    if HAS_RESIDUAL:
        residual = residual_desc.load([first_m, first_n])
    acc = finish(acc, bias, residual, PRE_ACTIVATION, ACTIVATION, HAS_BIAS, HAS_RESIDUAL)
    out_desc.store([first_m, first_n], acc.to(out_desc.dtype))
