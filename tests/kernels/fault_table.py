"""The table of seeded faults: for each mistake in device code, the ordinary test that notices it.

In the order of the modules of ``fastres.kernels.triton``: what every kernel shares, pooling and the
classifier, convolutions by pointers and by descriptors, and whole blocks.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch

from fastres.kernels.spec import ConvSpec
from tests.kernels import test_bottleneck_kernel as bottleneck
from tests.kernels import test_conv2d_int64 as far
from tests.kernels import test_conv2d_kernel as conv2d
from tests.kernels import test_elementwise_kernel as elementwise
from tests.kernels import test_kernel_bounds as bounds
from tests.kernels import test_layout_kernel as layout
from tests.kernels import test_layouts_engine as layouts_engine
from tests.kernels import test_pixels_engine as pixels_engine
from tests.kernels import test_pointwise_kernel as pointwise
from tests.kernels import test_pool_linear_kernel as classifier
from tests.kernels import test_pooling_kernel as pooling
from tests.kernels import test_quantized_bottleneck_kernel as int8_block
from tests.kernels import test_quantized_conv2d_kernel as int8
from tests.kernels import test_quantized_simple_kernel as int8_simple
from tests.kernels import test_quantized_stem_kernel as int8_stem
from tests.kernels import test_stem_kernel as stem
from tests.kernels import test_tiled_kernel as tiled
from tests.kernels.faults import Fault, Replacements, in_network, with_patch

CPU = "cpu"


def special(activation: str) -> partial[None]:
    return partial(elementwise.test_scale_shift_of_special_numbers, "fp32", activation, CPU)


def activated(activation: str) -> partial[None]:
    return partial(elementwise.test_scale_shift_with_activation, activation, CPU)


convert = partial(layout.check_convert, (2, 37, 7, 9), torch.float32, torch.float32, CPU)
add = partial(elementwise.test_add_relu, "odd sizes", "fp32", CPU)
scale = partial(elementwise.test_scale_shift, "odd sizes", "fp32", CPU)

ELEMENTWISE: Replacements = [
    ("mask one too far", "offs < vectors * VECTOR", "offs < vectors * VECTOR + 1", add),
    ("mask one short", "offs < vectors * VECTOR", "offs < vectors * VECTOR - 1", add),
    (
        "64 bits of the program's number",
        "        pid = pid.to(tl.int64)\n        vectors",
        "        vectors",
        partial(elementwise.check_offsets, 2**33 + 3, True),
    ),
    (
        "64 bits of the size",
        "vectors = vectors.to(tl.int64)",
        "vectors = vectors",
        partial(elementwise.check_offsets, 2**31, True),
    ),
    ("ReLU left out", 'activate(x + y, "relu")', 'activate(x + y, "none")', add),
    ("first operand twice", 'activate(x + y, "relu")', 'activate(x + x, "relu")', add),
    (
        "a maximum instead of the activation",
        'activate(x + y, "relu")',
        "tl.maximum(x + y, 0.0)",
        partial(elementwise.test_add_relu_of_special_numbers, "fp32", CPU),
    ),
    ("the next channel", "offs % C", "(offs + 1) % C", scale),
    ("no shift", "activate(x * scale + shift", "activate(x * scale", scale),
    (
        "scale in the dtype of x",
        "scale = tl.load(scale_ptr + channel, mask=exists, other=0.0)",
        "scale = tl.load(scale_ptr + channel, mask=exists, other=0.0).to(tl.bfloat16)",
        partial(elementwise.test_scale_shift_computes_in_float32, CPU),
    ),
    (
        "activation left out",
        "activate(x * scale + shift, ACTIVATION)",
        "x * scale + shift",
        activated("relu"),
    ),
    (
        "a cast without a mask",
        "tl.store(out_ptr + offs, x.to(out_ptr.dtype.element_ty), mask=exists)",
        "tl.store(out_ptr + offs, x.to(out_ptr.dtype.element_ty))",
        convert,
    ),
    ("rows for columns", "offs_c[None, :] * rows", "offs_c[None, :] * columns", convert),
    (
        "always the first image, in a network",
        "first = image * rows * columns",
        "first = 0",
        partial(in_network, layouts_engine.check_shuffled, "fp16"),
    ),
    ("one row too many", "(offs_r < rows)", "(offs_r <= rows)", convert),
    ("one column too many", "(offs_c < columns)", "(offs_c <= columns)", convert),
    ("always the first image", "first = image * rows * columns", "first = 0", convert),
    (
        "64 bits of the image",
        "image = image.to(tl.int64)",
        "image = image",
        layout.check_large_transposition,
    ),
]

ACTIVATIONS: Replacements = [
    (
        "ReLU by a maximum",
        'if ACTIVATION == "relu":\n        x = tl.where(x < 0.0, 0.0, x)',
        'if ACTIVATION == "relu":\n        x = tl.maximum(x, 0.0)',
        special("relu"),
    ),
    (
        "ReLU that keeps NaN only by sign",
        'if ACTIVATION == "relu":\n        x = tl.where(x < 0.0, 0.0, x)',
        'if ACTIVATION == "relu":\n        x = tl.where(x > 0.0, x, 0.0)',
        special("relu"),
    ),
    ("ReLU6 by a minimum", "tl.where(x > 6.0, 6.0, x)", "tl.minimum(x, 6.0)", special("relu6")),
    ("ReLU6 without its upper end", "tl.where(x > 6.0, 6.0, x)", "x", special("relu6")),
    ("SiLU of the other sign", "tl.exp(-x)", "tl.exp(x)", activated("silu")),
    ("hardswish without the sixth", "x * gate / 6.0", "x * gate", activated("hardswish")),
    (
        "hardswish without its upper end",
        "gate = tl.where(gate > 6.0, 6.0, gate)",
        "gate = gate",
        special("hardswish"),
    ),
]


def max_pool(name: str) -> partial[None]:
    return partial(pooling.test_max_pool2d, name, "fp32", CPU)


def avg_pool(name: str) -> partial[None]:
    return partial(pooling.test_divisors, name, False, None, CPU)


def means(name: str) -> partial[None]:
    return partial(pooling.test_global_avg_pool, name, "fp32", CPU)


def classes(name: str) -> partial[None]:
    return partial(classifier.test_pool_linear, name, "fp32", CPU)


pool_of_nan = partial(pooling.check_special_numbers, math.nan, "fp32", CPU)

MAX_LOOP = "tl.full((BLOCK_SIZE_M, BLOCK_SIZE_C), LEAST, COMPARED)\n    for tap in tl.range(0, "
BEST = "best.to(out_ptr.dtype.element_ty),\n        mask=(offs_m < M)[:, None] & "
AVG_LOOP = "tl.zeros((BLOCK_SIZE_M, BLOCK_SIZE_C), tl.float32)\n    for tap in tl.range(0, "
TOP = "top = p * STRIDE_H - PAD_H\n    left = q * STRIDE_W - PAD_W\n    "

POOLING: Replacements = [
    (
        "NaN rule missing",
        "(value > best) | (value != value)",
        "value > best",
        pool_of_nan,
    ),
    (
        "a maximum instead of the select",
        "tl.where((value > best) | (value != value), value, best)",
        "tl.maximum(value, best)",
        pool_of_nan,
    ),
    (
        "padded with zero",
        "other=LEAST,",
        "other=0.0,",
        partial(pooling.test_negative_images_are_not_padded_with_zero, CPU),
    ),
    (
        "a masked load without other",
        "            other=LEAST,\n",
        "",
        max_pool("3x3, stride 2"),
    ),
    ("the first tap dropped", MAX_LOOP, MAX_LOOP[:-3] + "1, ", max_pool("3x3, stride 2")),
    ("the mean's first tap dropped", AVG_LOOP, AVG_LOOP[:-3] + "1, ", avg_pool("3x3, stride 2")),
    (
        "padding off by one",
        TOP + "best",
        TOP.replace("- PAD_H", "- PAD_H + 1") + "best",
        max_pool("3x3, stride 2"),
    ),
    (
        "the mean's padding off by one",
        TOP + "total",
        TOP.replace("- PAD_W", "- PAD_W - 1") + "total",
        avg_pool("3x3, stride 2"),
    ),
    (
        "the other axis's stride",
        TOP + "best",
        TOP.replace("STRIDE_W", "STRIDE_H") + "best",
        max_pool("stride beyond the window"),
    ),
    ("vertical dilation ignored", "tap // S * DILATION_H", "tap // S", max_pool("dilated")),
    ("horizontal dilation ignored", "tap % S * DILATION_W", "tap % S", max_pool("dilated")),
    (
        "window's width for its height",
        "x = left + tap % S\n",
        "x = left + tap % R\n",
        avg_pool("oblong"),
    ),
    ("rows of images mixed up", "offs_m // Q % P", "offs_m // Q", max_pool("3x3, stride 2")),
    (
        "one channel too many",
        BEST + "(offs_c < C)",
        BEST + "(offs_c <= C)",
        max_pool("oblong"),
    ),
    (
        "one pixel too many",
        "total.to(out_ptr.dtype.element_ty),\n        mask=(offs_m < M)",
        "total.to(out_ptr.dtype.element_ty),\n        mask=(offs_m <= M)",
        avg_pool("3x3, stride 2"),
    ),
    (
        "a window beyond the padding counted",
        "tl.minimum(top + R, H + PAD_H)",
        "top + R",
        partial(pooling.test_avg_pool2d, "beyond the padding", "fp32", CPU),
    ),
    ("padding counted", "            top = tl.maximum(top, 0)\n", "", avg_pool("3x3, stride 2")),
    (
        "divisor ignored",
        "total = total / DIVISOR",
        "total = total",
        partial(pooling.test_divisors, "oblong", True, 5, CPU),
    ),
    (
        "64 bits of the tile",
        "pid_m = pid_m.to(tl.int64)",
        "pid_m = pid_m",
        pooling.check_large_images,
    ),
    (
        "64 bits of the pooled image",
        "image = image.to(tl.int64)\n    offs_c",
        "image = image\n    offs_c",
        pooling.check_large_images,
    ),
    (
        "pixels of the next image",
        "(offs_p < PIXELS)[:, None] & ",
        "",
        means("more pixels than a step"),
    ),
    (
        "the last step of pixels dropped",
        "range(0, PIXELS, BLOCK_SIZE_P)",
        "range(0, PIXELS - BLOCK_SIZE_P, BLOCK_SIZE_P)",
        means("more pixels than a step"),
    ),
    (
        "a sum instead of a mean",
        "tl.sum(total, axis=0) / PIXELS",
        "tl.sum(total, axis=0)",
        means("7x7"),
    ),
    (
        "sums in float16",
        "tl.sum(total, axis=0)",
        "tl.sum(total.to(tl.float16), axis=0)",
        partial(pooling.test_sums_are_kept_in_float32, CPU),
    ),
    (
        "means of channels that do not exist",
        "mask=(offs_p < PIXELS)[:, None] & (offs_c < C)[None, :]",
        "mask=(offs_p < PIXELS)[:, None]",
        partial(bounds.test_global_pooling_and_classifier, (2, 40, 3, 5)),
    ),
    (
        "64 bits of the classified image",
        "        image = image.to(tl.int64)\n        offs_n",
        "        offs_n",
        classifier.check_large_images,
    ),
    (
        "means not rounded",
        "        mean = mean.to(x_ptr.dtype.element_ty).to(tl.float32)\n",
        "",
        partial(classifier.test_means_are_rounded_before_the_product, CPU),
    ),
    (
        "bias missing",
        "y += tl.load(bias_ptr + offs_n, mask=offs_n < K, other=0.0)",
        "y += 0.0",
        classes("partial tiles"),
    ),
    (
        "bias of the first classes",
        "bias_ptr + offs_n,",
        "bias_ptr + offs_n % BLOCK_SIZE_N,",
        classes("partial tiles"),
    ),
    (
        "weights of the next class",
        "(offs_n < K)[:, None] & (offs_k < C)[None, :]",
        "(offs_n < K)[:, None]",
        classes("partial tiles"),
    ),
    (
        "the activation left out",
        "activate(y, ACTIVATION)",
        "y",
        partial(classifier.test_activations, "relu", CPU),
    ),
    ("one class too many", "mask=offs_n < K)", "mask=offs_n <= K)", classes("partial tiles")),
    (
        "the last channels dropped",
        "range(0, C, BLOCK_SIZE_K)",
        "range(0, C - BLOCK_SIZE_K, BLOCK_SIZE_K)",
        classes("partial tiles"),
    ),
]


def conv(name: str) -> partial[None]:
    return partial(conv2d.test_answers, conv2d.SHAPES[name], "fp32", CPU)


def split(name: str) -> partial[None]:
    return partial(conv2d.test_answers_with_split_sums, conv2d.SHAPES[name], CPU)


def tma(name: str) -> partial[None]:
    return partial(pointwise.test_answers, pointwise.SHAPES[name], "fp32", True, CPU)


def box(name: str) -> partial[None]:
    return partial(tiled.test_answers, tiled.SHAPES[name], "fp32", CPU)


ROWS_APART = ConvSpec(1, 16, 2, 2**27 + 1, 16, 2, 1, stride=(1, 2**27))

partial_tiles = conv("several tiles, all partial")
four_sides = conv("padding of four sizes")
groups = conv("groups wider than a tile")
split_sums = split("several tiles, all partial")
counted = partial(conv2d.test_counters_of_splits_are_zero_again_and_checked, "fp32", CPU)
conv_guarded = partial(conv2d.test_nothing_is_written_around_the_output, 1, "fp32", CPU)
conv_guarded_split = partial(conv2d.test_nothing_is_written_around_the_output, 4, "fp32", CPU)
rounding = partial(conv2d.test_tf32_rounds_to_the_nearest, False, CPU)
plain_relu = partial(conv2d.test_activations, "relu", "none", 1, CPU)

CONV2D: Replacements = [
    ("bias missing", "acc += bias", "acc += 0.0", partial_tiles),
    ("first activation left out", "acc = activate(acc, PRE_ACTIVATION)", "acc = acc", plain_relu),
    ("last activation left out", "return activate(acc, ACTIVATION)", "return acc", partial_tiles),
    (
        "residual left out",
        "acc += residual.to(tl.float32)",
        "acc += 0.0",
        partial_tiles,
    ),
    (
        "residual of the next row",
        "residual_ptr + out_offsets",
        "residual_ptr + out_offsets + ALL_K",
        partial_tiles,
    ),
    (
        "tiles of a lower group",
        "tl.minimum(tiles_m - group * GROUP_M, GROUP_M)",
        "GROUP_M",
        partial_tiles,
    ),
    ("a row below the image", "(y < 0) | (y >= H)", "(y < 0) | (y > H)", four_sides),
    ("a column left of the image", "(x < 0) | (x >= W), 1", "(x < -1) | (x >= W), 1", four_sides),
    ("columns' padding not masked", "((1 << r) | (65536 << s))", "(1 << r)", four_sides),
    ("rows' padding not masked", "((1 << r) | (65536 << s))", "(65536 << s)", four_sides),
    (
        "long filters' padding",
        "inside = (y >= 0) & (y < H) & (x >= 0) & (x < W)",
        "inside = (y >= 0) & (y < H) & (x >= 0) & (x <= W)",
        conv("flat filter longer than bit masks"),
    ),
    ("the last step dropped", "end = STEPS\n", "end = STEPS - 1\n", partial_tiles),
    ("top padding off by one", "P * STRIDE_H - PAD_TOP", "P * STRIDE_H - PAD_TOP + 1", four_sides),
    ("left padding off by one", "STRIDE_W - PAD_LEFT", "STRIDE_W - PAD_LEFT - 1", four_sides),
    (
        "the other axis's stride",
        "row % Q * STRIDE_W",
        "row % Q * STRIDE_H",
        conv("stride larger than filter"),
    ),
    ("image's number", "image = row // Q // P", "image = row // Q", partial_tiles),
    ("masks ignore dilation", "y = top + r * DILATION_H\n", "y = top + r\n", conv("dilation")),
    (
        "rows ignore dilation",
        "W * (DILATION_H * ALL_C)\n    if",
        "W * ALL_C\n    if",
        conv("dilation"),
    ),
    ("columns ignore dilation", "s * (DILATION_W * ALL_C)", "s * ALL_C", conv("dilation")),
    ("filter's height for its width", "r = tap // S", "r = tap // R", conv("even filter")),
    ("channels of the first group", "x_ptr += group * C\n", "x_ptr += 0\n", groups),
    ("weights of the first group", "weight_ptr += group * K * ALL_TAPS", "weight_ptr += 0", groups),
    ("filters of the first group", "filters = group * K + offs_n", "filters = offs_n", groups),
    (
        "a masked load without other",
        "a = tl.load(x_ptrs, mask=there, other=fill)",
        "a = tl.load(x_ptrs, mask=there)",
        partial_tiles,
    ),
    (
        "an unmasked load without other",
        "a = tl.load(x_ptrs, mask=inside, other=fill)",
        "a = tl.load(x_ptrs, mask=inside)",
        conv("whole tiles"),
    ),
    (
        "weights of the next filter",
        "b = tl.load(weight_ptrs + step * BLOCK_SIZE_K, mask=offs_k[:, None] < rest, other=0.0)",
        "b = tl.load(weight_ptrs + step * BLOCK_SIZE_K)",
        partial(bounds.check_conv2d, conv2d.SHAPES["several tiles, all partial"], 1),
    ),
    (
        "channels that do not exist",
        "there = offs_k[None, :] < rest",
        "there = offs_k[None, :] < BLOCK_SIZE_K",
        partial(bounds.check_conv2d, conv2d.SHAPES["pointwise"], 1),
    ),
    (
        "pixels beyond the last",
        "row = tl.minimum(offs_m, M - 1)",
        "row = offs_m",
        partial(bounds.check_conv2d, conv2d.SHAPES["pointwise"], 1),
    ),
    (
        "filters beyond the last",
        "column = tl.minimum(offs_n, K - 1)",
        "column = offs_n",
        partial(bounds.check_conv2d, conv2d.SHAPES["pointwise"], 1),
    ),
    (
        "one pixel too many",
        "            offs_m < M,\n            filters,\n            offs_n < K,\n",
        "            offs_m <= M,\n            filters,\n            offs_n < K,\n",
        conv_guarded,
    ),
    (
        "one filter too many",
        "            offs_m < M,\n            filters,\n            offs_n < K,\n",
        "            offs_m < M,\n            filters,\n            offs_n <= K,\n",
        conv_guarded,
    ),
    (
        "NaN of other groups let in",
        "axis=0) > 0",
        "axis=0) > 1",
        partial(conv2d.test_nan_and_infinity_stay_in_their_group, math.nan, 1, "cpu"),
    ),
    (
        "NaN of the group's neighbour let in",
        "own == only, a, 0.0",
        "own >= only, a, 0.0",
        partial(conv2d.test_nan_and_infinity_stay_in_their_group, math.nan, 1, "cpu"),
    ),
    (
        "a split's first step skipped",
        "begin = split.to(tl.int32) * STEPS_PER_SPLIT",
        "begin = split.to(tl.int32) * STEPS_PER_SPLIT + 1",
        split_sums,
    ),
    (
        "a split's last step skipped",
        "tl.minimum(begin + STEPS_PER_SPLIT, STEPS)",
        "tl.minimum(begin + STEPS_PER_SPLIT - 1, STEPS)",
        split_sums,
    ),
    (
        "a split left out of the sum",
        "static_range(1, SPLIT_K)",
        "static_range(2, SPLIT_K)",
        split_sums,
    ),
    (
        "splits on top of each other",
        "stored_ptr += split * M * ALL_K",
        "stored_ptr += 0",
        split_sums,
    ),
    ("added before the last", "arrived == SPLIT_K - 1", "arrived == SPLIT_K - 2", counted),
    ("a split left out where the last adds", "range(SPLIT_K - 1)", "range(SPLIT_K - 2)", counted),
    ("counters left as they are", "tl.store(counter_ptr, 0)", "pass", counted),
    ("a split's counter", "counter_ptr + tl.program_id(0)", "counter_ptr + split", counted),
    ("the last adds the next split's", "partial_ptr += size", "partial_ptr += size + 1", counted),
    ("bias of another filter", "offs % ALL_K", "(offs + 1) % ALL_K", split_sums),
    ("sum's residual of the next", "residual_ptr + offs,", "residual_ptr + offs + 1,", split_sums),
    ("sum beyond the output", "stored = offs < SIZE", "stored = offs <= SIZE", conv_guarded_split),
    (
        "64 bits of the tile's rows",
        "pid_m = pid_m.to(tl.int64)",
        "pid_m = pid_m",
        with_patch(far.test_reading_and_writing_past_two_to_the_31, True),
    ),
    (
        "64 bits of the split",
        "split = split.to(tl.int64)",
        "split = split",
        with_patch(far.test_partial_sums_past_two_to_the_31, True),
    ),
    (
        "64 bits of the next image row",
        "tl.cast(W, tl.int64) * (DILATION_H * ALL_C)",
        "W * (DILATION_H * ALL_C)",
        with_patch(far.test_reading_past_two_to_the_31, ROWS_APART, True),
    ),
    (
        "64 bits of the weights",
        "column = column.to(tl.int64)",
        "column = column",
        partial(bounds.check_large_weights, 1),
    ),
    (
        "64 bits of the group",
        "group = group.to(tl.int64)",
        "group = group",
        partial(bounds.check_large_weights, 4),
    ),
]

DOT: Replacements = [
    (
        "the sum started anew",
        "tl.dot(a, b, acc,",
        "tl.dot(a, b, acc * 0.0,",
        partial_tiles,
    ),
    (
        "bfloat16 as integers",
        "a.dtype == tl.bfloat16",
        "a.dtype == tl.float16",
        partial(conv2d.test_answers, conv2d.SHAPES["whole tiles"], "bf16", CPU),
    ),
    ("tf32 cut off", "bits + 0x1000", "bits + 0", rounding),
    (
        "NaN rounded up to zero",
        "tl.where(x == x, bits + 0x1000, bits)",
        "(bits + 0x1000)",
        rounding,
    ),
]

POINTWISE: Replacements = [
    (
        "the first step dropped",
        "range(0, tl.cdiv(C, BLOCK_SIZE_K))",
        "range(1, tl.cdiv(C, BLOCK_SIZE_K))",
        tma("several tiles, all partial"),
    ),
    (
        "always the first channels",
        "x_desc.load([first_m, step * BLOCK_SIZE_K])",
        "x_desc.load([first_m, 0])",
        tma("whole tiles"),
    ),
    (
        "weights of the first filters",
        "weight_desc.load([first_n, step",
        "weight_desc.load([0, step",
        tma("whole tiles"),
    ),
    (
        "bias of the first filters",
        "offs_n = first_n + tl.arange",
        "offs_n = tl.arange",
        tma("whole tiles"),
    ),
    (
        "residual of the first filters",
        "residual_desc.load([first_m, first_n])",
        "residual_desc.load([first_m, 0])",
        tma("whole tiles"),
    ),
    (
        "residual left out",
        "HAS_BIAS, HAS_RESIDUAL)\n    out_desc",
        "HAS_BIAS, False)\n    out_desc",
        tma("one pixel"),
    ),
    (
        "stored one tile to the left",
        "out_desc.store([first_m, first_n]",
        "out_desc.store([first_m, 0]",
        tma("whole tiles"),
    ),
    (
        "the activation left out",
        "finish(acc, bias, residual, PRE_ACTIVATION, ACTIVATION,",
        'finish(acc, bias, residual, PRE_ACTIVATION, "none",',
        tma("one row of pixels"),
    ),
]

several_boxes = box("several boxes, all partial")
two_images = partial(tiled.test_answers_of_other_boxes, tiled.boxes(2, 4, 2), CPU)

TILED: Replacements = [
    ("the last step dropped", "range(0, R * S", "range(1, R * S", several_boxes),
    ("a row of boxes missing", "boxes_h = tl.cdiv(P, BOX_H)", "boxes_h = P // BOX_H", box("7x7")),
    (
        "a column of boxes missing",
        "boxes_w = tl.cdiv(Q, BOX_W)",
        "boxes_w = Q // BOX_W",
        box("7x7"),
    ),
    ("images of a box missing", "tl.cdiv(N, BOX_N)", "(N // BOX_N)", two_images),
    ("image's number", "(boxes_h * boxes_w) * BOX_N", "(boxes_h * boxes_w)", two_images),
    ("box's row", "top = box // boxes_w", "top = box // boxes_h", box("13x29")),
    ("box's column", "left = box % boxes_w", "left = box % boxes_h", box("13x29")),
    ("top padding left out", "y = top - PAD_TOP", "y = top", several_boxes),
    (
        "left padding left out",
        "    x = left - PAD_LEFT\n    tap",
        "    x = left\n    tap",
        several_boxes,
    ),
    (
        "the next row begins in the padding's place",
        "tl.where(next_row, left - PAD_LEFT, x)",
        "tl.where(next_row, left, x)",
        several_boxes,
    ),
    ("always the first tap", "first_n, tap * C + channel", "first_n, channel", several_boxes),
    (
        "the next tap's weights let in",
        "[None, :] < C, a, 0.0)",
        "[None, :] < 2 * C, a, 0.0)",
        partial(tiled.test_weights_that_are_not_finite_stay_in_their_tap_and_filter, math.inf, CPU),
    ),
    ("always the first channels", "[image, y, x, channel]", "[image, y, x, 0]", several_boxes),
    (
        "weights of the first filters",
        "[first_n, tap * C",
        "[0, tap * C",
        several_boxes,
    ),
    ("a tap's last channels missing", "channel >= C", "channel + 8 >= C", several_boxes),
    ("rows ignore dilation", "(next_row, DILATION_H, 0)", "(next_row, 1, 0)", box("dilation")),
    ("columns ignore dilation", "(next_tap, DILATION_W, 0)", "(next_tap, 1, 0)", box("dilation")),
    ("filter's height for its width", "S * DILATION_W", "R * DILATION_W", box("even filter")),
    (
        "bias of the first filters",
        "offs_n = first_n + tl.arange",
        "offs_n = tl.arange",
        several_boxes,
    ),
    (
        "residual of the first filters",
        "residual_desc.load([image, top, left, first_n])",
        "residual_desc.load([image, top, left, 0])",
        several_boxes,
    ),
    (
        "residual of the first box",
        "residual_desc.load([image, top, left, first_n])",
        "residual_desc.load([image, 0, 0, first_n])",
        several_boxes,
    ),
    (
        "residual left out",
        "HAS_BIAS, HAS_RESIDUAL)\n    tile",
        "HAS_BIAS, False)\n    tile",
        box("one pixel"),
    ),
    (
        "stored over the first filters",
        "out_desc.store([image, top, left, first_n]",
        "out_desc.store([image, top, left, 0]",
        several_boxes,
    ),
    (
        "the activation left out",
        "finish(acc, bias, residual, PRE_ACTIVATION, ACTIVATION,",
        'finish(acc, bias, residual, PRE_ACTIVATION, "none",',
        box("one row"),
    ),
    (
        "tf32 cut off",
        'INPUT_PRECISION == "tf32" and',
        'INPUT_PRECISION == "none" and',
        partial(tiled.test_tf32_rounds_to_the_nearest, CPU),
    ),
]


def block(name: str) -> partial[None]:
    return partial(bottleneck.test_answers, bottleneck.BLOCKS[name], "fp32", CPU)


def block_guarded(name: str) -> partial[None]:
    return partial(bottleneck.test_nothing_else_is_read_or_written, name, CPU)


def block_inside(name: str) -> partial[None]:
    return partial(bounds.test_bottleneck, name)


block_of_infinity = partial(bottleneck.test_infinity_between_positive_weights, CPU)
own_group = partial(bottleneck.test_nan_and_infinity_stay_in_their_group, 24, None, math.inf, CPU)
block_far = bottleneck.test_offsets_of_more_than_32_bits

BOTTLENECK: Replacements = [
    ("a tap beyond the image", "(at < size)", "(at <= size)", block_inside("plain")),
    ("a tap before the image", "(at >= 0)", "(at >= -1)", block_inside("plain")),
    (
        "masked loads without other",
        "return tl.load(pointers, mask=mask, other=0.0)",
        "return tl.load(pointers, mask=mask)",
        block("plain"),
    ),
    (
        "pixels in the padding without other",
        "a = tl.load(x_ptrs + (distance * C + c), mask=inside, other=fill)",
        "a = tl.load(x_ptrs + (distance * C + c), mask=inside)",
        block("whole tiles"),
    ),
    (
        "pixels beyond the last",
        "tl.where(in_m, taps",
        "tl.where(in_m | True, taps",
        block_inside("plain"),
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
        "\n                CHUNK,\n                S,\n                DILATION_H,",
        "\n                CHUNK,\n                R,\n                DILATION_H,",
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
        block_inside("one channel"),
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
        block_of_infinity,
    ),
    (
        "infinity times zero in wide",
        "wide = tl.where(in_n[None, :], wide, 0.0)",
        "wide = wide",
        block_of_infinity,
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
        block_inside("shortcut on 72 channels"),
    ),
    (
        "held channels beyond the shortcut's",
        "in_m[:, None] & in_s[None, :]",
        "in_m[:, None]",
        block_inside("shortcut"),
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
        block_inside("plain"),
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
        block_guarded("next"),
    ),
    (
        "one filter too many",
        "in_n = filters < K",
        "in_n = filters <= K",
        block_guarded("next"),
    ),
    (
        "one filter of the head too many",
        "in_next = offs_next < NEXT_K",
        "in_next = offs_next <= NEXT_K",
        block_guarded("next"),
    ),
    ("64 bits of the tile", "pid_m = pid_m.to(tl.int64)", "pid_m = pid_m", block_far),
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


def stem_answers(name: str) -> partial[None]:
    return partial(stem.test_answers, stem.STEMS[name], "fp32", CPU)


def stem_special(name: str, value: float) -> partial[None]:
    return partial(stem.test_nan_and_infinity, name, "relu", value, CPU)


def stem_inside(name: str) -> partial[None]:
    return partial(bounds.test_stem, name, False)


resnet_stem = stem_answers("ResNet's")
stem_of_pixels = partial(stem.test_pixels_are_normalised, "ResNet's", "fp32", CPU)
far_below_zero = partial(
    stem.test_without_activation_padding_is_less_than_everything, stem.STEMS["ResNet's"], CPU
)

STEM: Replacements = [
    (
        "NaN rule missing",
        "tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)",
        "tl.maximum(x, y)",
        stem_special("ResNet's", math.nan),
    ),
    ("the third tap dropped", "best = larger(third, best)", "best = best", resnet_stem),
    (
        "the third tap of the same pair",
        "tl.minimum(tl.arange(0, A) + 1, A - 1)",
        "tl.arange(0, A)",
        resnet_stem,
    ),
    ("padded with zero", 'acc, -float("inf")', "acc, 0.0", far_below_zero),
    (
        "pooling of the convolution's padding",
        "& (q < Q)",
        "& (q <= Q)",
        resnet_stem,
    ),
    ("pooling's padding ignored", "(2 * WINDOWS_W) - POOL_PAD_W", "(2 * WINDOWS_W)", resnet_stem),
    ("top padding off by one", "p * STRIDE_H - PAD_TOP", "p * STRIDE_H - PAD_TOP + 1", resnet_stem),
    (
        "left padding off by one",
        "PAD_LEFT * C + LEAD",
        "(PAD_LEFT - 1) * C + LEAD",
        stem_answers("odd width"),
    ),
    (
        "the other axis's stride",
        "q * (STRIDE_W * C)",
        "q * (STRIDE_H * C)",
        stem_answers("oblong filter"),
    ),
    (
        "rows below the image",
        "taps_inside(top, H,",
        "taps_inside(top, H + 1,",
        stem_inside("ResNet's"),
    ),
    (
        "columns right of the image",
        "column < row_length",
        "column <= row_length",
        stem_answers("odd width"),
    ),
    ("columns left of the image", "column >= 0", "column >= -C", stem_answers("odd width")),
    (
        "infinity times a weight of zero",
        "a = tl.where(used[None, :], a, 0.0)",
        "a = a",
        stem_special("ResNet's", math.inf),
    ),
    (
        "numbers behind the filter's row",
        " & (j < ROW_END)[None, :]",
        "",
        stem_special("four channels", math.inf),
    ),
    (
        "border of the pixels normalised",
        "tl.where(inside & used[None, :], normal, 0.0)",
        "tl.where(used[None, :], normal, 0.0)",
        partial(stem.test_the_border_is_zero_after_normalisation, CPU),
    ),
    (
        "border of the pixels normalised, in a network",
        "tl.where(inside & used[None, :], normal, 0.0)",
        "tl.where(used[None, :], normal, 0.0)",
        partial(in_network, pixels_engine.check_border, "fp16", CPU),
    ),
    ("no shift of the pixels", " + shift[None, :]", "", stem_of_pixels),
    ("another channel's scale", "(j + (C - LEAD % C)) % C", "j % C", stem_of_pixels),
    (
        "a masked load without other",
        "mask=inside, other=0)",
        "mask=inside)",
        resnet_stem,
    ),
    (
        "the first row of the filter dropped",
        "for r in range(R)",
        "for r in range(1, R)",
        resnet_stem,
    ),
    (
        "weights beyond the last filter",
        "b = tl.load(weight_ptrs + r * ROW, mask=in_n[None, :], other=0.0)",
        "b = tl.load(weight_ptrs + r * ROW)",
        stem_inside("ResNet's"),
    ),
    (
        "bias missing",
        "acc += tl.load(bias_ptr + offs_n, mask=in_n, other=0.0)[None, :]",
        "acc += 0.0",
        resnet_stem,
    ),
    (
        "the activation left out",
        "activate(acc, ACTIVATION)",
        "acc",
        partial(stem.test_activations, "silu", CPU),
    ),
    (
        "image's number",
        "image = pid // TILES_W // TILES_H",
        "image = pid // TILES_W",
        stem_inside("ResNet's"),
    ),
    (
        "one window too many",
        "(pooled_q < POOLED_Q)",
        "(pooled_q <= POOLED_Q)",
        stem_inside("ResNet's"),
    ),
    ("windows of the next tile", "(row < WINDOWS_H) & ", "", stem_inside("ResNet's")),
    ("one filter too many", "in_n = offs_n < K", "in_n = offs_n <= K", stem_inside("ResNet's")),
    (
        "64 bits of the image",
        "image = image.to(tl.int64)",
        "image = image",
        partial(stem.test_offsets_of_more_than_32_bits, False),
    ),
]


def bytes_of(name: str, scales: tuple[object, ...] = int8.MIDDLE) -> partial[torch.Tensor]:
    return partial(int8.check, conv2d.SHAPES[name], CPU, scales=scales)


int8_tiles = bytes_of("several tiles, all partial")
int8_split = partial(
    int8.test_answers_with_split_sums, conv2d.SHAPES["several tiles, all partial"], False, CPU
)
int8_counted = partial(
    int8.test_answers_with_split_sums, conv2d.SHAPES["several tiles, all partial"], True, CPU
)
int8_ties = partial(int8.test_ties_go_to_the_even_one, "none", CPU)
int8_activated = partial(int8.test_activations, "hardswish", "relu6", 1, CPU)
int8_add = partial(
    int8_simple.check_add, (2, 37, 3, 5), "relu", int8_simple.ADDITIONS["plain"], CPU
)
int8_mean = partial(int8_simple.check_mean, (2, 37, 3, 5), 131, CPU)
int8_bytes = partial(int8_simple.test_quantize_and_back, (2, 37, 3, 5), torch.float32, 100, CPU)
int8_special = partial(int8_simple.check_special, CPU)

int8_recounted = partial(int8.test_into_the_residual_itself_and_counters_zero_again, CPU)

QUANTIZED: Replacements = [
    ("half away from zero", "y + WHOLE +", "tl.floor(y + 0.5) + WHOLE +", int8_ties),
    ("cut off", "y + WHOLE +", "y.to(tl.int32).to(tl.float32) + WHOLE +", int8_ties),
    (
        "rounded behind the zero point",
        "y + WHOLE + zero_point",
        "y + zero_point + WHOLE",
        int8_ties,
    ),
    ("no zero point", "y + WHOLE + zero_point", "y + WHOLE", int8_tiles),
    (
        "wrapped around below",
        "tl.maximum(y + WHOLE + zero_point, WHOLE)",
        "y + WHOLE",
        int8_special,
    ),
    ("256 let in", "WHOLE + 255.0", "WHOLE + 256.0", int8_special),
    ("residual not centred", "q.to(tl.float32) - zero_point", "q.to(tl.float32)", int8_tiles),
    ("residual of another scale", "* residual_ratio", "* 1.0", int8_tiles),
    ("residual left out", "if HAS_RESIDUAL:\n        y +=", "if False:\n        y +=", int8_tiles),
    ("bias left out", "(acc + bias)", "acc", int8_tiles),
    ("first activation left out", ", PRE_ACTIVATION)\n", ', "none")\n', int8_activated),
    (
        "last activation left out",
        "return activate_exactly(y, ACTIVATION)",
        "return y",
        int8_tiles,
    ),
    ("hardswish without the sixth", "tl.div_rn(y * gate, 6.0)", "y * gate", int8_activated),
    ("hardswish without its upper end", "gate > 6.0, 6.0", "gate > 9.0, 6.0", int8_activated),
]

DOT += [
    (
        "bytes taken as they are",
        "(q ^ 0x80).to(tl.int8, bitcast=True)",
        "q.to(tl.int8, bitcast=True)",
        int8_tiles,
    ),
    (
        "sums of bytes in float32",
        "== tl.uint8:\n        return",
        "== tl.int8:\n        return",
        partial(int8.test_sums_that_float32_would_round, CPU),
    ),
]

QUANTIZED_CONV2D: Replacements = [
    (
        "the wrong padding",
        "tl.cast(x_zero_point, tl.uint8)",
        "0",
        bytes_of("padding of four sizes"),
    ),
    (
        "zeros for any padding",
        "if not PADDING_IS_0:",
        "if False:",
        bytes_of("padding of four sizes"),
    ),
    (
        "one multiplier for all filters",
        "multiplier_ptr + filters",
        "multiplier_ptr + filters * 0",
        int8_tiles,
    ),
    ("bias of the next filter", "bias_ptr + filters", "bias_ptr + (filters + 1)", int8_tiles),
    ("residual of the next", "residual_ptr + offsets", "residual_ptr + offsets + 1", int8_tiles),
    ("not counted in the result's unit", "rounded(y * ratio,", "rounded(y,", int8_activated),
    ("filters of the first group", "(group * K + offs_n)", "(offs_n)", bytes_of("ResNeXt 32x4d")),
    (
        "one pixel too many",
        "(offs_m < M)[:, None]",
        "(offs_m <= M)[:, None]",
        partial(int8.test_nothing_is_written_around_the_output, 1, CPU),
    ),
    (
        "one filter too many",
        "(offs_n < K)[None, :]",
        "(offs_n <= K)[None, :]",
        partial(int8.test_nothing_is_written_around_the_output, 1, CPU),
    ),
    ("splits on top of each other", "split * M * ALL_K", "0", int8_split),
    ("counters left as they are", "tl.store(counter_ptr, 0)", "pass", int8_recounted),
    (
        "a split's counter",
        "counter_ptr += tl.program_id(0)",
        "counter_ptr += tl.program_id(1)",
        int8_counted,
    ),
    (
        "sum beyond the output",
        "stored = offs < SIZE",
        "stored = offs <= SIZE",
        partial(int8.test_nothing_is_written_around_the_output, 3, CPU),
    ),
    ("bias of another filter in the sum", "offs % ALL_K", "(offs + 1) % ALL_K", int8_split),
]

int8_pointwise = partial(int8.check_pointwise, "several tiles, all partial", int8.MIDDLE, True, CPU)

QUANTIZED_POINTWISE: Replacements = [
    (
        "tiles of the first channels",
        "a = x_desc.load([first_m, step * BLOCK_SIZE_K])",
        "a = x_desc.load([first_m, 0])",
        int8_pointwise,
    ),
    (
        "weights of the first filters",
        "weight_desc.load([first_n,",
        "weight_desc.load([0,",
        int8_pointwise,
    ),
    ("a step too few", "tl.cdiv(C, BLOCK_SIZE_K)", "C // BLOCK_SIZE_K", int8_pointwise),
    (
        "bias of the first filters",
        "bias_ptr + offs_n",
        "bias_ptr + offs_n - first_n",
        int8_pointwise,
    ),
    (
        "multiplier of the first filters",
        "multiplier_ptr + offs_n",
        "multiplier_ptr + offs_n - first_n",
        int8_pointwise,
    ),
    (
        "residual of other filters",
        "residual_desc.load([first_m, first_n])",
        "residual_desc.load([first_m, 0])",
        int8_pointwise,
    ),
    ("no zero point", "rounded(y * ratio, zero_point)", "rounded(y * ratio, 0.0)", int8_pointwise),
    (
        "not in the result's unit",
        "rounded(y * ratio,",
        "rounded(y,",
        partial(int8.check_pointwise, "whole tiles", int8.MIDDLE, True, CPU),
    ),
]


def bytes_of_block(name: str) -> partial[list[torch.Tensor]]:
    return partial(int8_block.check, int8_block.BLOCKS[name], CPU)


def bytes_inside(name: str) -> partial[None]:
    return partial(int8_block.check_inside, name, CPU)


QUANTIZED_BOTTLENECK: Replacements = [
    (
        "bias left out",
        "bias_ptr + filters, mask=in_n, other=0)[None, :]",
        "bias_ptr + filters, mask=in_n, other=0)[None, :] * 0",
        bytes_of_block("plain"),
    ),
    (
        "one multiplier for all filters",
        "multiplier_ptr + filters,",
        "multiplier_ptr + filters * 0,",
        bytes_of_block("plain"),
    ),
    (
        "not rounded to bytes of a zero point",
        "rounded(y, zero_point)",
        "rounded(y, 0.0)",
        bytes_of_block("plain"),
    ),
    (
        "zeros for any padding",
        "if not PADDING_IS_0:",
        "if False:",
        bytes_of_block("padding of four sizes"),
    ),
    (
        "another number for the padding",
        "tl.cast(x_zero_point, tl.uint8)",
        "tl.cast(x_zero_point + 1.0, tl.uint8)",
        bytes_of_block("padding of four sizes"),
    ),
    (
        "channels of the first group",
        "first_c = chunk * CHUNK_C if CHUNK_C < C else 0",
        "first_c = 0",
        bytes_of_block("groups in two chunks"),
    ),
    (
        "weights of the first chunk",
        "weight_rows = narrow_filters\n",
        "weight_rows = offs_chunk\n",
        bytes_of_block("groups in two chunks"),
    ),
    (
        "the first tap dropped",
        "range(STEPS)",
        "range(1, STEPS)",
        bytes_of_block("plain"),
    ),
    (
        "narrow of another zero point",
        "            narrow_zero_point,\n            acc,",
        "            zero_point,\n            acc,",
        bytes_of_block("plain"),
    ),
    (
        "no ReLU behind narrow",
        'identity_ratio,\n            "relu",\n            False,\n        )\n        narrows',
        'identity_ratio,\n            "none",\n            False,\n        )\n        narrows',
        bytes_of_block("plain"),
    ),
    (
        "chunks of narrow mixed up",
        "dot(narrows[chunk], expand",
        "dot(narrows[0], expand",
        bytes_of_block("groups in two chunks"),
    ),
    (
        "the shortcut's stride",
        "p * SHORTCUT_STRIDE_H) * RESIDUAL_W",
        "p) * RESIDUAL_W",
        bytes_of_block("stride 2"),
    ),
    (
        "the shortcut's first channels again",
        "tl.load(pixel_ptrs + first_s,",
        "tl.load(pixel_ptrs,",
        bytes_of_block("shortcut in steps"),
    ),
    (
        "a ReLU behind the shortcut",
        '                "none",\n                False,',
        '                "relu",\n                False,',
        bytes_of_block("shortcut"),
    ),
    (
        "the shortcut's bias for the expansion's",
        "            expand_bias_ptr,\n            expand_multiplier_ptr,",
        "            shortcut_bias_ptr,\n            expand_multiplier_ptr,",
        bytes_of_block("shortcut"),
    ),
    (
        "residual left out",
        '            identity_ratio,\n            "relu",\n            True,',
        '            identity_ratio,\n            "relu",\n            False,',
        bytes_of_block("plain"),
    ),
    (
        "residual of another zero point",
        "            identity,\n            identity_zero_point,",
        "            identity,\n            zero_point,",
        bytes_of_block("plain"),
    ),
    (
        "next head of the wrong zero point",
        "            next_zero_point,\n",
        "            zero_point,\n",
        bytes_of_block("next"),
    ),
    (
        "next head on another block's bytes",
        "dot(wide, next_weight, next_acc",
        "dot(identity, next_weight, next_acc",
        bytes_of_block("next"),
    ),
    ("one pixel too many", "in_m = offs_m < M", "in_m = offs_m <= M", bytes_inside("next")),
    ("one filter too many", "in_n = filters < K", "in_n = filters <= K", bytes_inside("next")),
    (
        "one filter of the head too many",
        "in_next = offs_next < NEXT_K",
        "in_next = offs_next <= NEXT_K",
        bytes_inside("next"),
    ),
    (
        "64 bits of the program's number",
        "        pid_m = pid_m.to(tl.int64)",
        "        pid_m = pid_m",
        int8_block.test_offsets_of_more_than_32_bits,
    ),
]


def bytes_of_stem(name: str, *units: Any) -> partial[torch.Tensor]:
    return partial(int8_stem.check, stem.STEMS[name], CPU, *units)


QUANTIZED_STEM: Replacements = [
    (
        "bias left out",
        "bias_ptr + offs_n, mask=in_n, other=0)[None, :]",
        "bias_ptr + offs_n, mask=in_n, other=0)[None, :] * 0",
        bytes_of_stem("ResNet's"),
    ),
    (
        "one multiplier for all filters",
        "multiplier_ptr + offs_n,",
        "multiplier_ptr + offs_n * 0,",
        bytes_of_stem("ResNet's"),
    ),
    ("padded with bytes of 0", "other=fill)", "other=0)", bytes_of_stem("ResNet's")),
    (
        "the first row of the filter dropped",
        "for r in range(R)",
        "for r in range(1, R)",
        bytes_of_stem("ResNet's"),
    ),
    (
        "rows above the image",
        "((rows_inside >> r) & 1) != 0",
        "rows_inside != 0",
        bytes_of_stem("ResNet's"),
    ),
    (
        "pixels that there are not",
        "tl.where(exists[:, None], rounded(y * ratio, zero_point), 0)",
        "rounded(y * ratio, zero_point)",
        bytes_of_stem("2x2 pool, padded"),
    ),
    (
        "the zero point left out",
        "rounded(y * ratio, zero_point)",
        "rounded(y * ratio, 0.0)",
        bytes_of_stem("ResNet's"),
    ),
    (
        "not in the result's unit",
        "rounded(y * ratio,",
        "rounded(y,",
        bytes_of_stem("ResNet's", int8_stem.ANY, "relu6"),
    ),
    (
        "one filter too many",
        "in_n = offs_n < K",
        "in_n = offs_n <= K",
        partial(int8_stem.check_inside, "ResNet's", CPU),
    ),
    (
        "weights beyond the last filter",
        "b = tl.load(weight_ptrs + r * ROW, mask=in_n[None, :], other=0)",
        "b = tl.load(weight_ptrs + r * ROW)",
        partial(int8_stem.test_no_address_is_outside, "ResNet's"),
    ),
]

QUANTIZED_SIMPLE: Replacements = [
    (
        "a multiplication by the inverse",
        "tl.div_rn(tl.load(x_ptr + offs, mask=exists, other=0.0).to(tl.float32), scale)",
        "tl.load(x_ptr + offs, mask=exists, other=0.0).to(tl.float32) * (1.0 / scale)",
        int8_special,
    ),
    ("NaN let in", "tl.where(y == y, y, 0.0)", "tl.where(y == y, y, 1.0)", int8_special),
    ("not scaled back", "centred(x, zero_point) * scale", "centred(x, zero_point)", int8_bytes),
    ("first summand twice", "centred(y, y_zero_point)", "centred(x, y_zero_point)", int8_add),
    ("summands of one scale", "* y_ratio", "* x_ratio", int8_add),
    ("sum not activated", "activate_exactly(total, ACTIVATION)", "total", int8_add),
    (
        "mean of the first pixels",
        "range(0, PIXELS, BLOCK",
        "range(0, BLOCK_SIZE_P, BLOCK",
        partial(int8_simple.check_mean, (2, 5, 13, 17), 131, CPU),
    ),
    (
        "zero point counted once",
        "tl.cast(x_zero_point, tl.int32) * PIXELS",
        "tl.cast(x_zero_point, tl.int32)",
        int8_mean,
    ),
    (
        "divided first",
        "sums.to(tl.float32) * ratio, tl.cast(PIXELS, tl.float32))",
        "sums.to(tl.float32), tl.cast(PIXELS, tl.float32)) * ratio",
        partial(int8_simple.test_mean_is_divided_last, CPU),
    ),
    ("one pixel too many", "(offs_p < PIXELS)", "(offs_p <= PIXELS)", int8_mean),
    ("one channel too many", "mask=offs_c < C)", "mask=offs_c <= C)", int8_mean),
]

TABLE = {
    "elementwise": ELEMENTWISE,
    "activations": ACTIVATIONS,
    "pooling": POOLING,
    "conv2d": CONV2D,
    "dot": DOT,
    "pointwise": POINTWISE,
    "tiled": TILED,
    "bottleneck": BOTTLENECK,
    "stem": STEM,
    "quantized": QUANTIZED,
    "quantized_bottleneck": QUANTIZED_BOTTLENECK,
    "quantized_conv2d": QUANTIZED_CONV2D,
    "quantized_pointwise": QUANTIZED_POINTWISE,
    "quantized_simple": QUANTIZED_SIMPLE,
    "quantized_stem": QUANTIZED_STEM,
}

FAULTS = [Fault(module, *fault) for module, faults in TABLE.items() for fault in faults]
