"""Convolution as a matrix product whose left operand is gathered on the fly (implicit GEMM).

``out[m, n] = activation(pre_activation(sum_k x[m, k] * weight[n, k] + bias[n]) + residual[m, n])``
with m an output pixel (N*P*Q), n a filter and k = (r, s, c) a weight of it; letters as in
:mod:`fastres.kernels.spec`, images channels-last. One loop runs over all of k, whatever the
filter's shape: only a single loop is pipelined through shared memory.

The address of ``x[m, k]`` is a part that depends on m alone, computed before the loop, plus one
that depends on k alone: the tap's and channel's distance from the window's first pixel. Which
taps of m's window lie in the padding is kept as one bit per filter row and column.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastres.kernels.triton.activations import activate
from fastres.kernels.triton.chain import await_inputs, let_next_start
from fastres.kernels.triton.dot import dot, zero_sums


@triton.jit
def tile_of_program(pid, M, N, BLOCK_SIZE_M, BLOCK_SIZE_N, GROUP_M: tl.constexpr):
    """Row and column of tile ``pid``: down GROUP_M tiles, then right, so that L2 serves both."""
    tiles_m = tl.cdiv(M, BLOCK_SIZE_M)
    tiles_n = tl.cdiv(N, BLOCK_SIZE_N)
    if GROUP_M == 1:
        return pid // tiles_n, pid % tiles_n
    group = pid // (GROUP_M * tiles_n)
    height = tl.minimum(tiles_m - group * GROUP_M, GROUP_M)
    within = pid % (GROUP_M * tiles_n)
    return group * GROUP_M + within % height, within // height


@triton.jit
def finish(
    acc,
    bias,
    residual,
    PRE_ACTIVATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    """What follows the sum of products, on float32; ``bias`` and ``residual`` as wide as needed."""
    if HAS_BIAS:
        acc += bias
    acc = activate(acc, PRE_ACTIVATION)
    if HAS_RESIDUAL:
        acc += residual.to(tl.float32)
    return activate(acc, ACTIVATION)


@triton.jit
def taps_outside(top, left, H, W, R: tl.constexpr, S: tl.constexpr, DILATION_H, DILATION_W):
    """One bit per filter row (bits 0 to 14) and column (16 to 30) that falls into the padding."""
    bits = tl.zeros(top.shape, tl.int32)
    for r in tl.static_range(R):
        y = top + r * DILATION_H
        bits |= tl.where((y < 0) | (y >= H), 1 << r, 0)
    for s in tl.static_range(S):
        x = left + s * DILATION_W
        bits |= tl.where((x < 0) | (x >= W), 1 << (16 + s), 0)
    return bits


@triton.jit
def sum_of_products(
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
    only,
    fill,
    H,
    W,
    C: tl.constexpr,
    GROUP_C: tl.constexpr,
    ALL_C: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    PADDED: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_SIZE_M: tl.constexpr,
    BLOCK_SIZE_N: tl.constexpr,
    BLOCK_SIZE_K: tl.constexpr,
    ONLY_ONE: tl.constexpr,
):
    """The one loop: ``x @ weight`` over the steps from ``begin`` to ``end``.

    ``fill`` stands for pixels of the padding. Sums are float32, or int32 of integers.
    ONLY_ONE: of the groups of GROUP_C channels, ``only`` counts, and the others' are read as zero.
    """
    ALL_TAPS: tl.constexpr = R * S * C
    acc = zero_sums(x_ptr, BLOCK_SIZE_M, BLOCK_SIZE_N)
    for step in tl.range(begin, end, num_stages=1 if ONLY_ONE else None):
        if C % BLOCK_SIZE_K == 0:  # all of a block of k belongs to one tap: scalar arithmetic
            tap = step // (C // BLOCK_SIZE_K)
            channel = step % (C // BLOCK_SIZE_K) * BLOCK_SIZE_K
        else:
            k = step * BLOCK_SIZE_K + offs_k[None, :]
            tap = k // C
            channel = k % C
        r = tap // S
        s = tap % S
        distance = r * row_distance + s * (DILATION_W * ALL_C) + channel
        if C % BLOCK_SIZE_K == 0:
            x_ptrs = x_ptr + distance + (first[:, None] + offs_k[None, :])
        else:
            x_ptrs = x_ptr + (first[:, None] + distance)
        if PADDED:
            if R <= 15 and S <= 15:
                inside = (outside[:, None] & ((1 << r) | (65536 << s))) == 0
            else:
                y = top[:, None] + r * DILATION_H
                x = left[:, None] + s * DILATION_W
                inside = (y >= 0) & (y < H) & (x >= 0) & (x < W)
        if ALL_TAPS % BLOCK_SIZE_K == 0:
            b = tl.load(weight_ptrs + step * BLOCK_SIZE_K)
            a = tl.load(x_ptrs, mask=inside, other=fill) if PADDED else tl.load(x_ptrs)
        else:
            rest = ALL_TAPS - step * BLOCK_SIZE_K
            b = tl.load(weight_ptrs + step * BLOCK_SIZE_K, mask=offs_k[:, None] < rest, other=0.0)
            there = offs_k[None, :] < rest
            if PADDED:
                there = there & inside
            a = tl.load(x_ptrs, mask=there, other=fill)
        if ONLY_ONE:
            own = (channel + offs_k[None, :] if C % BLOCK_SIZE_K == 0 else channel) // GROUP_C
            a = tl.where(own == only, a, 0.0)
        acc = dot(a, b, acc, INPUT_PRECISION)
    return acc


@triton.jit
def store_tile(
    acc,
    bias_ptr,
    residual_ptr,
    out_ptr,
    offs_m,
    in_m,
    filters,
    in_n,
    ALL_K: tl.constexpr,
    PRE_ACTIVATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    SPLIT_K: tl.constexpr,
):
    """Finish the sums and store them; partial sums (SPLIT_K > 1) are stored as they are."""
    out_offsets = offs_m[:, None] * ALL_K + filters[None, :]
    stored = in_m[:, None] & in_n[None, :]
    if SPLIT_K == 1:
        bias = 0.0
        if HAS_BIAS:
            bias = tl.load(bias_ptr + filters, mask=in_n, other=0.0)[None, :]
        residual = acc
        if HAS_RESIDUAL:
            residual = tl.load(residual_ptr + out_offsets, mask=stored, other=0.0)
        acc = finish(acc, bias, residual, PRE_ACTIVATION, ACTIVATION, HAS_BIAS, HAS_RESIDUAL)
    tl.store(out_ptr + out_offsets, acc.to(out_ptr.dtype.element_ty), mask=stored)


@triton.jit
def is_last_split(counter_ptr, SPLIT_K: tl.constexpr):
    """Count this program's partial sums as stored: whether they are the last of their tile's."""
    # All warps have stored before one thread counts; counting releases and acquires.
    tl.debug_barrier()
    arrived = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu")
    return arrived == SPLIT_K - 1


@triton.jit
def sum_of_stored(partial_ptr, offsets, stored, size, SPLIT_K: tl.constexpr):
    """Add the splits' partial sums in their order; each split's are ``size`` numbers further."""
    # Past the first-level cache, which may hold what was there before others stored.
    acc = tl.load(partial_ptr + offsets, mask=stored, other=0.0, cache_modifier=".cg")
    for _ in tl.static_range(SPLIT_K - 1):
        partial_ptr += size
        acc += tl.load(partial_ptr + offsets, mask=stored, other=0.0, cache_modifier=".cg")
    return acc


@triton.jit
def add_splits_if_last(
    partial_ptr,
    counter_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    size,
    filters,
    in_n,
    offs_m,
    in_m,
    ALL_K: tl.constexpr,
    PRE_ACTIVATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    SPLIT_K: tl.constexpr,
):
    """Count this program's partial sums as stored; the last of a tile's adds them and finishes.

    They are added in their order whoever is last, so that the sum is always the same. The counter
    is zero before the launch and after it.

    Args:
        partial_ptr: the first split's sums; those of the next are ``size`` numbers further.
        counter_ptr: the tile's.
    """
    if is_last_split(counter_ptr, SPLIT_K):
        offsets = offs_m[:, None] * ALL_K + filters[None, :]
        stored = in_m[:, None] & in_n[None, :]
        acc = sum_of_stored(partial_ptr, offsets, stored, size, SPLIT_K)
        store_tile(
            acc,
            bias_ptr,
            residual_ptr,
            out_ptr,
            offs_m,
            in_m,
            filters,
            in_n,
            ALL_K,
            PRE_ACTIVATION,
            ACTIVATION,
            HAS_BIAS,
            HAS_RESIDUAL,
            1,
        )
        tl.store(counter_ptr, 0)


@triton.jit
def operands_of_tile(
    x_ptr,
    weight_ptr,
    M,
    H,
    W,
    P,
    Q,
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
    BLOCK_SIZE_M: tl.constexpr,
    BLOCK_SIZE_N: tl.constexpr,
    BLOCK_SIZE_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    SPLIT_K: tl.constexpr,
    INT64: tl.constexpr,
):
    """What this program multiplies: its group, split, pixels and filters, and where they lie.

    Letters as in :func:`conv2d_kernel`; the others, from ``x_ptr`` on, are for
    :func:`sum_of_products`.
    """
    # Super-groups of the same pixels one after the other: their channels share cache lines.
    group = tl.program_id(0) % (ALL_K // K)
    tile = tl.program_id(0) // (ALL_K // K)
    pid_m, pid_n = tile_of_program(tile, M, K, BLOCK_SIZE_M, BLOCK_SIZE_N, GROUP_M=GROUP_M)
    split = tl.program_id(1)
    if INT64:
        pid_m = pid_m.to(tl.int64)
        split = split.to(tl.int64)
        group = group.to(tl.int64)
    offs_m = pid_m * BLOCK_SIZE_M + tl.arange(0, BLOCK_SIZE_M)
    offs_n = pid_n * BLOCK_SIZE_N + tl.arange(0, BLOCK_SIZE_N)
    offs_k = tl.arange(0, BLOCK_SIZE_K)

    # Beyond the last pixel and the last filter, the last is computed again and not stored.
    row = tl.minimum(offs_m, M - 1)
    top, left, outside = row, row, row  # where nothing is padded, nothing asks
    if R == 1 and S == 1 and STRIDE_H == 1 and STRIDE_W == 1 and not PADDED:
        first = row * ALL_C
    else:
        top = (row // Q) % P * STRIDE_H - PAD_TOP
        left = row % Q * STRIDE_W - PAD_LEFT
        image = row // Q // P
        first = ((image * H + top) * W + left) * ALL_C
    if PADDED and R <= 15 and S <= 15:
        outside = taps_outside(top, left, H, W, R, S, DILATION_H, DILATION_W)

    ALL_TAPS: tl.constexpr = R * S * C
    column = tl.minimum(offs_n, K - 1)
    if INT64:
        column = column.to(tl.int64)
    x_ptr += group * C
    weight_ptr += group * K * ALL_TAPS
    weight_ptrs = weight_ptr + column[None, :] * ALL_TAPS + offs_k[:, None]

    row_distance = W * (DILATION_H * ALL_C)
    if INT64:
        row_distance = tl.cast(W, tl.int64) * (DILATION_H * ALL_C)

    STEPS: tl.constexpr = (ALL_TAPS + BLOCK_SIZE_K - 1) // BLOCK_SIZE_K
    STEPS_PER_SPLIT: tl.constexpr = (STEPS + SPLIT_K - 1) // SPLIT_K
    if SPLIT_K == 1:
        begin = 0
        end = STEPS
    else:
        begin = split.to(tl.int32) * STEPS_PER_SPLIT
        end = tl.minimum(begin + STEPS_PER_SPLIT, STEPS)
    return (
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
    )


@triton.jit
def conv2d_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    partial_ptr,
    counter_ptr,
    M,
    H,
    W,
    P,
    Q,
    C: tl.constexpr,
    K: tl.constexpr,
    TOGETHER: tl.constexpr,
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
    PRE_ACTIVATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
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
    """One tile of ``out``, or with SPLIT_K > 1 of one of its partial sums [SPLIT_K, M, ALL_K].

    Partial sums are stored in ``partial``, or in ``out`` if another launch adds them. FUSED_SUM:
    the last program of a tile adds them here, by a counter for each tile and super-group.

    C and K count one super-group's channels and filters, which TOGETHER groups share; ALL_C and
    ALL_K are the tensors' own.
    Program axis 0 is tile and super-group, axis 1 the split. PADDED: whether some window reaches
    into the padding.
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
    GROUP_C: tl.constexpr = C // TOGETHER
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
        0.0,
        H,
        W,
        C,
        GROUP_C,
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
    filters = group * K + offs_n
    stored_ptr = out_ptr
    if FUSED_SUM:
        stored_ptr = partial_ptr
    if SPLIT_K > 1:
        stored_ptr += split * M * ALL_K  # M is 64 bits wide wherever M * ALL_K needs it
    bad = False
    if TOGETHER > 1:
        # Another group's weights are zeros in here, and zero times NaN or infinity is NaN. A tile
        # with NaN in it is computed group by group.
        bad = tl.max(tl.max((acc != acc).to(tl.int32), axis=1), axis=0) > 0
    if bad:
        for only in range(TOGETHER):
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
                only,
                0.0,
                H,
                W,
                C,
                GROUP_C,
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
                True,
            )
            own = (offs_n < K) & (offs_n // (K // TOGETHER) == only)
            store_tile(
                acc,
                bias_ptr,
                residual_ptr,
                stored_ptr,
                offs_m,
                offs_m < M,
                filters,
                own,
                ALL_K,
                PRE_ACTIVATION,
                ACTIVATION,
                HAS_BIAS,
                HAS_RESIDUAL,
                SPLIT_K,
            )
    else:
        store_tile(
            acc,
            bias_ptr,
            residual_ptr,
            stored_ptr,
            offs_m,
            offs_m < M,
            filters,
            offs_n < K,
            ALL_K,
            PRE_ACTIVATION,
            ACTIVATION,
            HAS_BIAS,
            HAS_RESIDUAL,
            SPLIT_K,
        )
    if FUSED_SUM:
        size = M * ALL_K
        if INT64:
            size = tl.cast(M, tl.int64) * ALL_K
        add_splits_if_last(
            partial_ptr,
            counter_ptr + tl.program_id(0),
            bias_ptr,
            residual_ptr,
            out_ptr,
            size,
            filters,
            offs_n < K,
            offs_m,
            offs_m < M,
            ALL_K,
            PRE_ACTIVATION,
            ACTIVATION,
            HAS_BIAS,
            HAS_RESIDUAL,
            SPLIT_K,
        )


@triton.jit
def sum_of_splits_kernel(
    partial_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    SIZE,
    ALL_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    PRE_ACTIVATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    INT64: tl.constexpr,
    CHAINED: tl.constexpr = False,
):
    """Add the partial sums [SPLIT_K, SIZE] in their order, always the same, and finish."""
    pid = tl.program_id(0)
    if INT64:
        pid = pid.to(tl.int64)
    offs = pid * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    stored = offs < SIZE
    await_inputs(CHAINED)
    acc = tl.load(partial_ptr + offs, mask=stored, other=0.0)
    for _ in tl.static_range(1, SPLIT_K):
        partial_ptr += SIZE
        acc += tl.load(partial_ptr + offs, mask=stored, other=0.0)
    let_next_start(CHAINED)
    bias = 0.0
    if HAS_BIAS:
        bias = tl.load(bias_ptr + offs % ALL_K, mask=stored, other=0.0)
    residual = acc
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptr + offs, mask=stored, other=0.0)
    acc = finish(acc, bias, residual, PRE_ACTIVATION, ACTIVATION, HAS_BIAS, HAS_RESIDUAL)
    tl.store(out_ptr + offs, acc.to(out_ptr.dtype.element_ty), mask=stored)
