"""Convolution with stride 1 whose tiles are boxes of pixels, copied by tensor descriptor.

``out[n, p, q, k] = activation(pre_activation(sum_rsc x[n, p + r, q + s, c] * weight[k, r, s, c]
+ bias[k]) + residual[n, p, q, k])``, with padding and dilation; letters as in
:mod:`fastres.kernels.spec`.

A program's tile is a box of BOX_N images by BOX_H rows by BOX_W columns. Under each tap of the
filter lies such a box of the input, shifted: one copy of the copy engine's *tiled* mode, which
fills what lies outside the image with zeros. That is the padding: there are neither masks nor
addresses. What of a box lies outside ``out`` is computed as well and cut off when it is stored.

The product is ``weight @ x.T``, filters by pixels: Triton leaves a box, reshaped to a matrix, in
shared memory where it is the second operand, and reads it into registers where it is the first.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastres.kernels.triton.chain import await_inputs, let_next_start
from fastres.kernels.triton.conv2d import finish, tile_of_program
from fastres.kernels.triton.dot import INTERPRETED, dot, rounded_to_tf32


@triton.jit
def tiled_conv2d_kernel(
    x_desc,
    weight_desc,
    bias_ptr,
    residual_desc,
    out_desc,
    N,
    P,
    Q,
    C: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    PAD_TOP: tl.constexpr,
    PAD_LEFT: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    PRE_ACTIVATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BOX_N: tl.constexpr,
    BOX_H: tl.constexpr,
    BOX_W: tl.constexpr,
    BLOCK_SIZE_M: tl.constexpr,
    BLOCK_SIZE_N: tl.constexpr,
    BLOCK_SIZE_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    ROUND_X: tl.constexpr,
    CHAINED: tl.constexpr = False,
):
    """One box of ``out`` [N, P, Q, K] from ``x`` [N, H, W, C] and ``weight`` [K, R*S*C].

    BLOCK_SIZE_M is BOX_N * BOX_H * BOX_W.
    """
    boxes_h = tl.cdiv(P, BOX_H)
    boxes_w = tl.cdiv(Q, BOX_W)
    boxes = tl.cdiv(N, BOX_N) * boxes_h * boxes_w
    box, pid_n = tile_of_program(tl.program_id(0), boxes, K, 1, BLOCK_SIZE_N, GROUP_M=GROUP_M)
    image = box // (boxes_h * boxes_w) * BOX_N
    top = box // boxes_w % boxes_h * BOX_H
    left = box % boxes_w * BOX_W
    first_n = pid_n * BLOCK_SIZE_N
    acc = tl.zeros((BLOCK_SIZE_N, BLOCK_SIZE_M), tl.float32)
    STEPS_PER_TAP: tl.constexpr = (C + BLOCK_SIZE_K - 1) // BLOCK_SIZE_K
    await_inputs(CHAINED)
    # Counted on, in selections: divisions take more instructions, and branches end the pipelining.
    y = top - PAD_TOP
    x = left - PAD_LEFT
    tap = 0
    channel = 0
    for _ in range(0, R * S * STEPS_PER_TAP):
        a = weight_desc.load([first_n, tap * C + channel])
        if C % BLOCK_SIZE_K != 0:  # beyond are the next tap's, and zero times infinity is NaN
            a = tl.where(channel + tl.arange(0, BLOCK_SIZE_K)[None, :] < C, a, 0.0)
        b = x_desc.load([image, y, x, channel]).reshape(BLOCK_SIZE_M, BLOCK_SIZE_K)
        if INPUT_PRECISION == "tf32" and (ROUND_X or INTERPRETED):
            b = rounded_to_tf32(b)
        acc = dot(a, b.T, acc, INPUT_PRECISION, ROUND_A=False)
        channel += BLOCK_SIZE_K
        next_tap = channel >= C
        channel = tl.where(next_tap, 0, channel)
        tap += tl.where(next_tap, 1, 0)
        x += tl.where(next_tap, DILATION_W, 0)
        next_row = x >= left - PAD_LEFT + S * DILATION_W
        x = tl.where(next_row, left - PAD_LEFT, x)
        y += tl.where(next_row, DILATION_H, 0)
    let_next_start(CHAINED)
    bias = 0.0
    if HAS_BIAS:
        offs_n = first_n + tl.arange(0, BLOCK_SIZE_N)
        bias = tl.load(bias_ptr + offs_n, mask=offs_n < K, other=0.0)[:, None]
    residual = acc
    if HAS_RESIDUAL:
        residual = residual_desc.load([image, top, left, first_n])
        residual = residual.reshape(BLOCK_SIZE_M, BLOCK_SIZE_N).T
    acc = finish(acc, bias, residual, PRE_ACTIVATION, ACTIVATION, HAS_BIAS, HAS_RESIDUAL)
    tile = acc.to(out_desc.dtype).T.reshape(BOX_N, BOX_H, BOX_W, BLOCK_SIZE_N)
    out_desc.store([image, top, left, first_n], tile)
