"""Device code of the bottleneck's tail of int8: :mod:`~fastres.kernels.triton.bottleneck` in bytes.

::

    narrow   = relu(conv(x))                       stays on the chip, as bytes
    identity = residual, or pixels @ shortcut.T    the latter rounded to bytes too
    wide     = relu(narrow @ expand.T + identity)  BLOCK_SIZE_N filters at a time
    next     = relu(wide @ next_weight.T)          summed up over these

Each sum is finished as the definition finishes that of a convolution by itself, so that fusing
changes no integer. Products are as in :mod:`~fastres.kernels.triton.quantized_conv2d`, and biases
hold what zero points take away. Zeros fill weights up, and whatever is multiplied by them is 0:
unlike floats, integers need no second path for groups that share a chunk.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastres.kernels.triton.bottleneck import add_products, load, taps_inside
from fastres.kernels.triton.chain import await_inputs, let_next_start
from fastres.kernels.triton.dot import dot
from fastres.kernels.triton.quantized import finish_sums, rounded


@triton.jit
def finished(
    acc,
    bias_ptr,
    multiplier_ptr,
    filters,
    in_n,
    zero_point,
    residual,
    residual_zero_point,
    residual_ratio,
    ACTIVATION: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    """int32 sums [pixels, filters] as uint8.

    The numbers count the result's scale, as no activation here is but ReLU.
    """
    bias = tl.load(bias_ptr + filters, mask=in_n, other=0)[None, :]
    multiplier = tl.load(multiplier_ptr + filters, mask=in_n, other=0.0)[None, :]
    y = finish_sums(
        acc,
        bias,
        multiplier,
        residual,
        residual_zero_point,
        residual_ratio,
        "none",
        ACTIVATION,
        HAS_RESIDUAL,
    )
    return rounded(y, zero_point)


@triton.jit
def quantized_bottleneck_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    multiplier_ptr,
    expand_ptr,
    expand_bias_ptr,
    expand_multiplier_ptr,
    residual_ptr,
    shortcut_ptr,
    shortcut_bias_ptr,
    shortcut_multiplier_ptr,
    next_weight_ptr,
    next_bias_ptr,
    next_multiplier_ptr,
    out_ptr,
    next_out_ptr,
    M,
    H,
    W,
    P,
    Q,
    RESIDUAL_H,
    RESIDUAL_W,
    x_zero_point,
    narrow_zero_point,
    identity_zero_point,
    identity_ratio,
    zero_point,
    next_zero_point,
    C: tl.constexpr,
    CHUNK_C: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
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
    PADDING_IS_0: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr,
    HAS_NEXT: tl.constexpr,
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
    """One tile of ``out`` [M, K], and of ``next_out`` [M, NEXT_K]; constants as there.

    PADDING_IS_0: ``x_zero_point`` is 0, which a masked load gives for nothing.
    """
    pid_m = tl.program_id(0)
    if INT64:
        pid_m = pid_m.to(tl.int64)
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
    fill = 0
    if not PADDING_IS_0:
        fill = tl.cast(x_zero_point, tl.uint8)

    offs_k = tl.arange(0, BLOCK_SIZE_K)
    offs_chunk = tl.arange(0, BLOCK_CHUNK)
    in_chunk = offs_chunk < CHUNK
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
        acc = tl.zeros((BLOCK_SIZE_M, BLOCK_CHUNK), tl.int32)
        for step in range(STEPS):
            acc = add_products(
                acc,
                step,
                x_ptrs,
                fill,
                weight_ptrs,
                rows_inside,
                columns_inside,
                offs_k,
                in_chunk,
                0,
                W,
                C,
                CHUNK_C,
                CHUNK_C,
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
        narrow = finished(
            acc,
            bias_ptr,
            multiplier_ptr,
            narrow_filters,
            in_chunk,
            narrow_zero_point,
            acc,
            identity_zero_point,
            identity_ratio,
            "relu",
            False,
        )
        narrows += (narrow,)  # type: ignore[assignment]

    offs_n = tl.arange(0, BLOCK_SIZE_N)
    offs_next = tl.arange(0, BLOCK_NEXT)
    in_next = offs_next < NEXT_K
    K_IS_WHOLE: tl.constexpr = K % BLOCK_SIZE_N == 0
    SHORTCUT_IS_WHOLE: tl.constexpr = SHORTCUT_C % BLOCK_SHORTCUT == 0
    HOLD_PIXELS: tl.constexpr = SHORTCUT_C <= BLOCK_SHORTCUT
    if HAS_SHORTCUT:
        offs_s = tl.arange(0, BLOCK_SHORTCUT)
        in_s = offs_s < SHORTCUT_C
        row = (image * RESIDUAL_H + p * SHORTCUT_STRIDE_H) * RESIDUAL_W + q * SHORTCUT_STRIDE_W
        pixel_ptrs = residual_ptr + ((row * SHORTCUT_C)[:, None] + offs_s[None, :])
        if HOLD_PIXELS:
            held = tl.load(pixel_ptrs, mask=in_m[:, None] & in_s[None, :], other=0)
    if HAS_NEXT:
        next_acc = tl.zeros((BLOCK_SIZE_M, BLOCK_NEXT), tl.int32)
    # Flattened with the loop over the shortcut's channels, where there is one, so that its copies
    # run ahead from one block of filters into the next.
    for n in tl.range(
        0, K, BLOCK_SIZE_N, num_stages=TAIL_STAGES, flatten=HAS_SHORTCUT and not HOLD_PIXELS
    ):
        filters = n + offs_n
        in_n = filters < K
        if INT64:
            filters = filters.to(tl.int64)
        out_offsets = (offs_m * K)[:, None] + filters[None, :]
        stored = in_m[:, None]
        if not K_IS_WHOLE:
            stored = stored & in_n[None, :]
        if HAS_SHORTCUT:
            beside = tl.zeros((BLOCK_SIZE_M, BLOCK_SIZE_N), tl.int32)
            shortcut_ptrs = shortcut_ptr + filters[None, :] * SHORTCUT_C + offs_s[:, None]
            if HOLD_PIXELS:
                shortcut = load(
                    shortcut_ptrs,
                    in_s[:, None] & in_n[None, :],
                    WHOLE=K_IS_WHOLE and SHORTCUT_IS_WHOLE,
                )
                beside = dot(held, shortcut, beside, INPUT_PRECISION)
            else:
                for first_s in range(0, SHORTCUT_C, BLOCK_SHORTCUT):
                    in_block = first_s + offs_s < SHORTCUT_C
                    in_pixels = in_m[:, None]
                    if not SHORTCUT_IS_WHOLE:
                        in_pixels = in_pixels & in_block[None, :]
                    pixels = tl.load(pixel_ptrs + first_s, mask=in_pixels, other=0)
                    part = load(
                        shortcut_ptrs + first_s,
                        in_block[:, None] & in_n[None, :],
                        WHOLE=K_IS_WHOLE and SHORTCUT_IS_WHOLE,
                    )
                    beside = dot(pixels, part, beside, INPUT_PRECISION)
            identity = finished(
                beside,
                shortcut_bias_ptr,
                shortcut_multiplier_ptr,
                filters,
                in_n,
                identity_zero_point,
                beside,
                identity_zero_point,
                identity_ratio,
                "none",
                False,
            )
        else:
            identity = tl.load(residual_ptr + out_offsets, mask=stored, other=0)
        sums = tl.zeros((BLOCK_SIZE_M, BLOCK_SIZE_N), tl.int32)
        for chunk in tl.static_range(CHUNKS):
            expand = load(
                expand_ptr + filters[None, :] * WIDTH + (chunk * CHUNK + offs_chunk)[:, None],
                in_chunk[:, None] & in_n[None, :],
                WHOLE=K_IS_WHOLE and CHUNK == BLOCK_CHUNK,
            )
            sums = dot(narrows[chunk], expand, sums, INPUT_PRECISION)
        wide = finished(
            sums,
            expand_bias_ptr,
            expand_multiplier_ptr,
            filters,
            in_n,
            zero_point,
            identity,
            identity_zero_point,
            identity_ratio,
            "relu",
            True,
        )
        tl.store(out_ptr + out_offsets, wide, mask=stored)
        if HAS_NEXT:
            next_weight = load(
                next_weight_ptr + (offs_next * K)[None, :] + filters[:, None],
                in_n[:, None] & in_next[None, :],
                WHOLE=K_IS_WHOLE and NEXT_K == BLOCK_NEXT,
            )
            next_acc = dot(wide, next_weight, next_acc, INPUT_PRECISION)

    let_next_start(CHAINED)
    if HAS_NEXT:
        head = finished(
            next_acc,
            next_bias_ptr,
            next_multiplier_ptr,
            offs_next,
            in_next,
            next_zero_point,
            next_acc,
            identity_zero_point,
            identity_ratio,
            "relu",
            False,
        )
        next_offsets = (offs_m * NEXT_K)[:, None] + offs_next[None, :]
        next_stored = in_m[:, None] & in_next[None, :]
        tl.store(next_out_ptr + next_offsets, head, mask=next_stored)
