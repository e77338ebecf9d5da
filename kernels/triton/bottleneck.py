"""Device code of the bottleneck's tail: two or three products over one tile of pixels.

A program owns BLOCK_SIZE_M output pixels of the convolution, and all filters of all products::

    narrow = relu(conv(x) + bias)                               stays on the chip
    wide   = relu(narrow @ expand.T + expand_bias + identity)   BLOCK_SIZE_N filters at a time
    next   = relu(wide @ next_weight.T + next_bias)             summed up over these

``identity`` is the residual, or ``pixels @ shortcut.T`` with the block's input at those pixels.
``narrow`` and ``wide`` are rounded to the activations' dtype before they are multiplied again.

The filters of ``narrow`` can be made CHUNK at a time, each chunk by a loop of its own: that is how
the sums of a width of 512 fit into registers, and how groups read few channels but their own.
Letters as in :mod:`fastres.kernels.spec`; images are channels-last, weights have the reduction
innermost.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastres.kernels.triton.activations import activate
from fastres.kernels.triton.chain import await_inputs, let_next_start
from fastres.kernels.triton.dot import dot


@triton.jit
def taps_inside(first, size, STEP: tl.constexpr, COUNT: tl.constexpr):
    """Bit i of the result: ``0 <= first + i * STEP < size``. COUNT is at most 32."""
    bits = tl.zeros(first.shape, tl.int32)
    for i in tl.static_range(COUNT):
        at = first + i * STEP
        bits |= ((at >= 0) & (at < size)).to(tl.int32) << i
    return bits


@triton.jit
def load(pointers, mask, WHOLE: tl.constexpr):
    """The block, zero where it is masked; WHOLE: nowhere, so that the mask costs nothing."""
    if WHOLE:
        return tl.load(pointers)
    return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def add_products(
    acc,
    step,
    x_ptrs,
    fill,
    weight_ptrs,
    rows_inside,
    columns_inside,
    offs_k,
    in_chunk,
    only,
    W,
    C: tl.constexpr,
    CHUNK_C: tl.constexpr,
    GROUP_C: tl.constexpr,
    CHUNK: tl.constexpr,
    S: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_SIZE_K: tl.constexpr,
    BLOCK_CHUNK: tl.constexpr,
    INT64: tl.constexpr,
    ONLY_ONE: tl.constexpr,
):
    """``acc`` and one step of the convolution: a tap's block of channels times a chunk's weights.

    ``fill`` is what pixels of the padding hold.
    ONLY_ONE: of the groups of GROUP_C channels, ``only`` counts, and the others' are read as zero.
    """
    BLOCKS_PER_TAP: tl.constexpr = (CHUNK_C + BLOCK_SIZE_K - 1) // BLOCK_SIZE_K
    TAPS_ARE_WHOLE: tl.constexpr = CHUNK_C % BLOCK_SIZE_K == 0
    tap = step // BLOCKS_PER_TAP
    c = step % BLOCKS_PER_TAP * BLOCK_SIZE_K
    r = tap // S
    s = tap % S
    distance = r * (DILATION_H * W) + s * DILATION_W
    if INT64:
        distance = distance.to(tl.int64)
    inside = (((rows_inside >> r) & (columns_inside >> s) & 1) != 0)[:, None]
    in_c = c + offs_k < CHUNK_C
    if not TAPS_ARE_WHOLE:
        inside = inside & in_c[None, :]
    if ONLY_ONE:
        inside = inside & ((c + offs_k) // GROUP_C == only)[None, :]
    a = tl.load(x_ptrs + (distance * C + c), mask=inside, other=fill)
    b = load(
        weight_ptrs + (tap * CHUNK_C + c),
        in_c[:, None] & in_chunk[None, :],
        WHOLE=TAPS_ARE_WHOLE and CHUNK == BLOCK_CHUNK,
    )
    return dot(a, b, acc, INPUT_PRECISION)


@triton.jit
def bottleneck_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    expand_ptr,
    expand_bias_ptr,
    residual_ptr,
    shortcut_ptr,
    next_weight_ptr,
    next_bias_ptr,
    out_ptr,
    next_out_ptr,
    M,
    H,
    W,
    P,
    Q,
    RESIDUAL_H,
    RESIDUAL_W,
    C: tl.constexpr,
    CHUNK_C: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    TOGETHER: tl.constexpr,
    K: tl.constexpr,
    SHORTCUT_C: tl.constexpr,
    NEXT_K: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_TOP: tl.constexpr,
    PAD_LEFT: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    SHORTCUT_STRIDE_H: tl.constexpr,
    SHORTCUT_STRIDE_W: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_EXPAND_BIAS: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr,
    HAS_NEXT: tl.constexpr,
    HAS_NEXT_BIAS: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_SIZE_M: tl.constexpr,
    BLOCK_SIZE_K: tl.constexpr,
    BLOCK_SIZE_N: tl.constexpr,
    BLOCK_CHUNK: tl.constexpr,
    BLOCK_SHORTCUT: tl.constexpr,
    BLOCK_NEXT: tl.constexpr,
    TAIL_STAGES: tl.constexpr,
    INT64: tl.constexpr,
    CHAINED: tl.constexpr = False,
):
    """One tile of ``out`` [M, K], and of ``next_out`` [M, NEXT_K].

    WIDTH = CHUNK * CHUNKS filters of the convolution, each on CHUNK_C of the C channels: on all of
    them, or with groups on the chunk's own, which TOGETHER groups share. BLOCK_CHUNK,
    BLOCK_SHORTCUT and BLOCK_NEXT are powers of two; the first and the last cover CHUNK and NEXT_K.
    """
    pid_m = tl.program_id(0)
    if INT64:
        pid_m = pid_m.to(tl.int64)
    dtype = x_ptr.dtype.element_ty
    offs_m = pid_m * BLOCK_SIZE_M + tl.arange(0, BLOCK_SIZE_M)
    in_m = offs_m < M
    image = offs_m // (P * Q)
    p = offs_m % (P * Q) // Q
    q = offs_m % Q
    top = p * STRIDE_H - PAD_TOP
    left = q * STRIDE_W - PAD_LEFT
    rows_inside = tl.where(in_m, taps_inside(top, H, DILATION_H, R), 0)
    columns_inside = taps_inside(left, W, DILATION_W, S)
    corner = ((image * H + top) * W + left) * C

    offs_k = tl.arange(0, BLOCK_SIZE_K)
    offs_chunk = tl.arange(0, BLOCK_CHUNK)
    in_chunk = offs_chunk < CHUNK
    GROUP_C: tl.constexpr = CHUNK_C // TOGETHER
    STEPS: tl.constexpr = R * S * ((CHUNK_C + BLOCK_SIZE_K - 1) // BLOCK_SIZE_K)
    narrows = ()
    await_inputs(CHAINED)
    for chunk in tl.static_range(CHUNKS):
        first_c = chunk * CHUNK_C if CHUNK_C < C else 0
        x_ptrs = x_ptr + (corner[:, None] + (first_c + offs_k)[None, :])
        narrow_filters = chunk * CHUNK + offs_chunk
        weight_rows = narrow_filters
        if INT64:
            weight_rows = weight_rows.to(tl.int64)
        weight_ptrs = weight_ptr + (weight_rows[None, :] * (R * S * CHUNK_C) + offs_k[:, None])
        acc = tl.zeros((BLOCK_SIZE_M, BLOCK_CHUNK), tl.float32)
        for step in range(STEPS):
            acc = add_products(
                acc,
                step,
                x_ptrs,
                0.0,
                weight_ptrs,
                rows_inside,
                columns_inside,
                offs_k,
                in_chunk,
                0,
                W,
                C,
                CHUNK_C,
                GROUP_C,
                CHUNK,
                S,
                DILATION_H,
                DILATION_W,
                INPUT_PRECISION,
                BLOCK_SIZE_K,
                BLOCK_CHUNK,
                INT64,
                False,
            )
        if TOGETHER > 1:
            # Another group's weights are zeros in here, and zero times NaN or infinity is NaN. A
            # tile with NaN in it is computed again, group by group; for all others the loop has no
            # step. It is one loop, of a length known at run time, for the sake of registers: the
            # compiler would unroll others, and move work before them.
            bad = tl.max(tl.max((acc != acc).to(tl.int32), axis=1), axis=0)
            for again in tl.range(0, bad * (TOGETHER * STEPS), num_stages=1, disable_licm=True):
                only = again // STEPS
                own = (offs_chunk // (CHUNK // TOGETHER) == only)[None, :]
                before = tl.where(own & (again % STEPS == 0), 0.0, acc)
                added = add_products(
                    before,
                    again % STEPS,
                    x_ptrs,
                    0.0,
                    weight_ptrs,
                    rows_inside,
                    columns_inside,
                    offs_k,
                    in_chunk,
                    only,
                    W,
                    C,
                    CHUNK_C,
                    GROUP_C,
                    CHUNK,
                    S,
                    DILATION_H,
                    DILATION_W,
                    INPUT_PRECISION,
                    BLOCK_SIZE_K,
                    BLOCK_CHUNK,
                    INT64,
                    True,
                )
                acc = tl.where(own, added, before)
        if HAS_BIAS:
            acc += tl.load(bias_ptr + narrow_filters, mask=in_chunk, other=0.0)[None, :]
        acc = activate(acc, "relu")
        if CHUNK != BLOCK_CHUNK:  # infinity times the zeros that fill the block up would be NaN
            acc = tl.where(in_chunk[None, :], acc, 0.0)
        narrows += (acc.to(dtype),)  # type: ignore[assignment]

    offs_n = tl.arange(0, BLOCK_SIZE_N)
    offs_next = tl.arange(0, BLOCK_NEXT)
    in_next = offs_next < NEXT_K
    K_IS_WHOLE: tl.constexpr = K % BLOCK_SIZE_N == 0
    SHORTCUT_IS_WHOLE: tl.constexpr = SHORTCUT_C % BLOCK_SHORTCUT == 0
    HOLD_PIXELS: tl.constexpr = SHORTCUT_C <= BLOCK_SHORTCUT
    if HAS_SHORTCUT:
        offs_s = tl.arange(0, BLOCK_SHORTCUT)
        in_s = offs_s < SHORTCUT_C
        if TOGETHER > 1:
            # Divided again rather than held in registers through the loops. ``bad`` is 0 or 1, so
            # that this adds nothing; it keeps the compiler from noticing that it has them already.
            at = offs_m + (bad >> 1)
            image = at // (P * Q)
            p = at % (P * Q) // Q
            q = at % Q
        row = (image * RESIDUAL_H + p * SHORTCUT_STRIDE_H) * RESIDUAL_W + q * SHORTCUT_STRIDE_W
        pixel_ptrs = residual_ptr + ((row * SHORTCUT_C)[:, None] + offs_s[None, :])
        if HOLD_PIXELS:
            held = tl.load(pixel_ptrs, mask=in_m[:, None] & in_s[None, :], other=0.0)
    if HAS_NEXT:
        next_acc = tl.zeros((BLOCK_SIZE_M, BLOCK_NEXT), tl.float32)
    # Flattened with the loop over the shortcut's channels, where there is one, so that its copies
    # run ahead from one block of filters into the next.
    for n in tl.range(
        0, K, BLOCK_SIZE_N, num_stages=TAIL_STAGES, flatten=HAS_SHORTCUT and not HOLD_PIXELS
    ):
        filters = n + offs_n
        in_n = filters < K
        if INT64:
            filters = filters.to(tl.int64)
        wide = tl.zeros((BLOCK_SIZE_M, BLOCK_SIZE_N), tl.float32)
        for chunk in tl.static_range(CHUNKS):
            expand = load(
                expand_ptr + filters[None, :] * WIDTH + (chunk * CHUNK + offs_chunk)[:, None],
                in_chunk[:, None] & in_n[None, :],
                WHOLE=K_IS_WHOLE and CHUNK == BLOCK_CHUNK,
            )
            wide = dot(narrows[chunk], expand, wide, INPUT_PRECISION)
        if HAS_SHORTCUT:
            shortcut_ptrs = shortcut_ptr + filters[None, :] * SHORTCUT_C + offs_s[:, None]
            if HOLD_PIXELS:
                shortcut = load(
                    shortcut_ptrs,
                    in_s[:, None] & in_n[None, :],
                    WHOLE=K_IS_WHOLE and SHORTCUT_IS_WHOLE,
                )
                wide = dot(held, shortcut, wide, INPUT_PRECISION)
            else:
                for first_s in range(0, SHORTCUT_C, BLOCK_SHORTCUT):
                    in_block = first_s + offs_s < SHORTCUT_C
                    in_pixels = in_m[:, None]
                    if not SHORTCUT_IS_WHOLE:
                        in_pixels = in_pixels & in_block[None, :]
                    pixels = tl.load(pixel_ptrs + first_s, mask=in_pixels, other=0.0)
                    part = load(
                        shortcut_ptrs + first_s,
                        in_block[:, None] & in_n[None, :],
                        WHOLE=K_IS_WHOLE and SHORTCUT_IS_WHOLE,
                    )
                    wide = dot(pixels, part, wide, INPUT_PRECISION)
        if HAS_EXPAND_BIAS:
            wide += tl.load(expand_bias_ptr + filters, mask=in_n, other=0.0)[None, :]
        out_offsets = (offs_m * K)[:, None] + filters[None, :]
        stored = in_m[:, None]
        if not K_IS_WHOLE:
            stored = stored & in_n[None, :]
        if not HAS_SHORTCUT:
            wide += tl.load(residual_ptr + out_offsets, mask=stored, other=0.0).to(tl.float32)
        wide = activate(wide, "relu")
        if HAS_NEXT and not K_IS_WHOLE:  # as for narrow
            wide = tl.where(in_n[None, :], wide, 0.0)
        rounded = wide.to(dtype)
        tl.store(out_ptr + out_offsets, rounded, mask=stored)
        if HAS_NEXT:
            next_weight = load(
                next_weight_ptr + (offs_next * K)[None, :] + filters[:, None],
                in_n[:, None] & in_next[None, :],
                WHOLE=K_IS_WHOLE and NEXT_K == BLOCK_NEXT,
            )
            next_acc = dot(rounded, next_weight, next_acc, INPUT_PRECISION)

    let_next_start(CHAINED)
    if HAS_NEXT:
        if HAS_NEXT_BIAS:
            next_acc += tl.load(next_bias_ptr + offs_next, mask=in_next, other=0.0)[None, :]
        next_acc = activate(next_acc, "relu")
        next_offsets = (offs_m * NEXT_K)[:, None] + offs_next[None, :]
        next_stored = in_m[:, None] & in_next[None, :]
        tl.store(next_out_ptr + next_offsets, next_acc.to(dtype), mask=next_stored)
