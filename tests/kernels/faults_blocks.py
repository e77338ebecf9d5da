"""Faults in the kernels of whole blocks: the bottleneck's tail and the stem."""

from __future__ import annotations

import math
from functools import partial

import test_bottleneck_kernel as bottleneck
import test_kernel_bounds as bounds
from faults import Fault, Replacements, with_patch

CPU = "cpu"


def block(name: str) -> partial[None]:
    return partial(bottleneck.test_answers, bottleneck.BLOCKS[name], "fp32", CPU)


def guarded(name: str) -> partial[None]:
    return partial(bottleneck.test_nothing_else_is_read_or_written, name, CPU)


def inside(name: str) -> partial[None]:
    return partial(bounds.test_bottleneck, name)


infinity = partial(bottleneck.test_infinity_between_positive_weights, CPU)
own_group = partial(bottleneck.test_nan_and_infinity_stay_in_their_group, 24, None, math.inf, CPU)
far = bottleneck.test_offsets_of_more_than_32_bits

BOTTLENECK: Replacements = [
    ("a tap beyond the image", "(at < size)", "(at <= size)", inside("plain")),
    ("a tap before the image", "(at >= 0)", "(at >= -1)", inside("plain")),
    (
        "masked loads without other",
        "return tl.load(pointers, mask=mask, other=0.0)",
        "return tl.load(pointers, mask=mask)",
        block("plain"),
    ),
    (
        "pixels in the padding without other",
        "a = tl.load(x_ptrs + (distance * C + c), mask=inside, other=0.0)",
        "a = tl.load(x_ptrs + (distance * C + c), mask=inside)",
        block("whole tiles"),
    ),
    (
        "pixels beyond the last",
        "tl.where(in_m, taps",
        "tl.where(in_m | True, taps",
        inside("plain"),
    ),
    (
        "rows for columns",
        "taps_inside(left, W, DILATION_W, S)",
        "taps_inside(top, H, DILATION_W, S)",
        block("oblong filter"),
    ),
    ("rows of images mixed up", "p = offs_m % (P * Q) // Q", "p = offs_m // Q", block("plain")),
    ("top padding off by one", "STRIDE_H - PAD_TOP", "STRIDE_H - PAD_TOP + 1", block("plain")),
    ("left padding off by one", "STRIDE_W - PAD_LEFT", "STRIDE_W - PAD_LEFT - 1", block("plain")),
    (
        "the other axis's stride",
        "q * STRIDE_W - PAD",
        "q * STRIDE_H - PAD",
        block("stride larger than filter"),
    ),
    ("dilation ignored", "r * (DILATION_H * W)", "r * W", block("dilation")),
    ("the first tap dropped", "range(STEPS)", "range(1, STEPS)", block("plain")),
    (
        "filter's height for its width",
        "GROUP_C, CHUNK, S, DILATION_H, DILATION_W, INPUT",
        "GROUP_C, CHUNK, R, DILATION_H, DILATION_W, INPUT",
        block("oblong filter"),
    ),
    (
        "channels of the first group",
        "first_c = chunk * CHUNK_C if CHUNK_C < C else 0",
        "first_c = 0",
        block("groups in two chunks"),
    ),
    (
        "weights of the first chunk",
        "weight_rows = narrow_filters\n",
        "weight_rows = offs_chunk\n",
        block("groups in two chunks"),
    ),
    (
        "NaN of the groups before let in",
        "// GROUP_C == only",
        "// GROUP_C <= only",
        own_group,
    ),
    (
        "NaN of the groups behind let in",
        "// GROUP_C == only",
        "// GROUP_C >= only",
        own_group,
    ),
    (
        "only the first group computed again",
        "bad * (TOGETHER * STEPS)",
        "bad * STEPS",
        own_group,
    ),
    (
        "sums computed again on top of NaN",
        "tl.where(own & (again % STEPS == 0), 0.0, acc)",
        "acc",
        own_group,
    ),
    (
        "the last group's sums for all",
        "acc = tl.where(own, added, before)",
        "acc = added",
        own_group,
    ),
    (
        "a group's channels for its filters",
        "offs_chunk // (CHUNK // TOGETHER)",
        "offs_chunk // GROUP_C",
        own_group,
    ),
    (
        "rows for columns, of a shortcut beside groups",
        "q = at % Q",
        "q = at % P",
        partial(bottleneck.test_nan_and_infinity_stay_in_their_group, 24, (1, 2), math.inf, CPU),
    ),
    (
        "channels of the next tap",
        "inside = inside & in_c[None, :]",
        "inside = inside",
        inside("one channel"),
    ),
    (
        "narrow bias missing",
        "acc += tl.load(bias_ptr + narrow_filters, mask=in_chunk, other=0.0)[None, :]",
        "acc += 0.0",
        block("plain"),
    ),
    (
        "narrow bias of the first chunk",
        "bias_ptr + narrow_filters",
        "bias_ptr + offs_chunk",
        block("groups in two chunks"),
    ),
    ("narrow ReLU left out", '        acc = activate(acc, "relu")\n', "", block("plain")),
    (
        "infinity times zero in narrow",
        "acc = tl.where(in_chunk[None, :], acc, 0.0)",
        "acc = acc",
        infinity,
    ),
    (
        "infinity times zero in wide",
        "wide = tl.where(in_n[None, :], wide, 0.0)",
        "wide = wide",
        infinity,
    ),
    (
        "wide ReLU by a maximum",
        'wide = activate(wide, "relu")',
        "wide = tl.maximum(wide, 0.0)",
        partial(bottleneck.test_nan_and_infinity, "next", 5, math.nan, CPU),
    ),
    (
        "the first chunk of narrow twice",
        "dot(narrows[chunk], expand",
        "dot(narrows[0], expand",
        block("groups in two chunks"),
    ),
    (
        "expansion of the first chunk",
        "(chunk * CHUNK + offs_chunk)[:, None],",
        "offs_chunk[:, None],",
        block("groups in two chunks"),
    ),
    (
        "shortcut's stride of the other axis",
        "q * SHORTCUT_STRIDE_W",
        "q * SHORTCUT_STRIDE_H",
        block("shortcut and next"),
    ),
    (
        "the first image's shortcut",
        "(image * RESIDUAL_H + p",
        "(p",
        block("shortcut"),
    ),
    (
        "the first channels of the shortcut",
        "tl.load(pixel_ptrs + first_s, mask",
        "tl.load(pixel_ptrs, mask",
        block("shortcut"),
    ),
    (
        "channels beyond the shortcut's",
        "in_pixels = in_pixels & in_block[None, :]",
        "in_pixels = in_pixels",
        inside("shortcut on 72 channels"),
    ),
    (
        "held channels beyond the shortcut's",
        "in_m[:, None] & in_s[None, :]",
        "in_m[:, None]",
        inside("shortcut"),
    ),
    (
        "the shortcut forgets narrow",
        "dot(pixels, part, wide,",
        "dot(pixels, part, wide * 0.0,",
        block("shortcut"),
    ),
    (
        "expansion bias missing",
        "wide += tl.load(expand_bias_ptr + filters, mask=in_n, other=0.0)[None, :]",
        "wide += 0.0",
        block("plain"),
    ),
    (
        "expansion bias of the first filters",
        "expand_bias_ptr + filters",
        "expand_bias_ptr + offs_n",
        block("plain"),
    ),
    (
        "residual of the next pixel",
        "residual_ptr + out_offsets",
        "residual_ptr + out_offsets + K",
        block("plain"),
    ),
    (
        "residual of the next pixel, bounds",
        "residual_ptr + out_offsets",
        "residual_ptr + out_offsets + K",
        inside("plain"),
    ),
    (
        "the third product of the last filters alone",
        "dot(rounded, next_weight, next_acc,",
        "dot(rounded, next_weight, next_acc * 0.0,",
        block("next"),
    ),
    (
        "the third product without rounding",
        "rounded = wide.to(dtype)",
        "rounded = (wide * 1.01).to(dtype)",
        block("next"),
    ),
    (
        "the last filters of the expansion dropped",
        "0, K, BLOCK_SIZE_N, num_stages",
        "0, K - BLOCK_SIZE_N, BLOCK_SIZE_N, num_stages",
        block("plain"),
    ),
    (
        "next bias missing",
        "next_acc += tl.load(next_bias_ptr + offs_next, mask=in_next, other=0.0)[None, :]",
        "next_acc += 0.0",
        block("next"),
    ),
    (
        "next ReLU left out",
        'next_acc = activate(next_acc, "relu")',
        "next_acc = next_acc",
        block("next"),
    ),
    (
        "one pixel too many",
        "in_m = offs_m < M",
        "in_m = offs_m <= M",
        guarded("next"),
    ),
    (
        "one filter too many",
        "in_n = filters < K",
        "in_n = filters <= K",
        guarded("next"),
    ),
    (
        "one filter of the head too many",
        "in_next = offs_next < NEXT_K",
        "in_next = offs_next <= NEXT_K",
        guarded("next"),
    ),
    ("64 bits of the tile", "pid_m = pid_m.to(tl.int64)", "pid_m = pid_m", far),
    (
        "64 bits of a tap's distance",
        "distance = distance.to(tl.int64)",
        "distance = distance",
        bounds.check_bottleneck_rows_far_apart,
    ),
    (
        "a chunk left out",
        "for chunk in tl.static_range(CHUNKS):\n            expand",
        "for chunk in tl.static_range(1):\n            expand",
        with_patch(bottleneck.test_filters_in_several_chunks, 1, CPU),
    ),
]

FAULTS = [Fault("bottleneck", *fault) for fault in BOTTLENECK]
