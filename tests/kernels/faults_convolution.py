"""Faults in the convolution kernels: by pointers, by descriptors, and what they share."""

from __future__ import annotations

import math
from functools import partial

import test_conv2d_int64 as far
import test_conv2d_kernel as conv2d
import test_kernel_bounds as bounds
import test_pointwise_kernel as pointwise
import test_tiled_kernel as tiled
from faults import Fault, Replacements, with_patch

from fastres.kernels.spec import ConvSpec

CPU = "cpu"


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
guarded = partial(conv2d.test_nothing_is_written_around_the_output, 1, "fp32", CPU)
guarded_split = partial(conv2d.test_nothing_is_written_around_the_output, 4, "fp32", CPU)
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
        "a = tl.load(x_ptrs, mask=there, other=0.0)",
        "a = tl.load(x_ptrs, mask=there)",
        partial_tiles,
    ),
    (
        "an unmasked load without other",
        "a = tl.load(x_ptrs, mask=inside, other=0.0)",
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
        "offs_m < M, filters, offs_n < K)",
        "offs_m <= M, filters, offs_n < K)",
        guarded,
    ),
    (
        "one filter too many",
        "offs_m < M, filters, offs_n < K)",
        "offs_m < M, filters, offs_n <= K)",
        guarded,
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
    ("sum beyond the output", "stored = offs < SIZE", "stored = offs <= SIZE", guarded_split),
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

FAULTS = [
    *(Fault("conv2d", *fault) for fault in CONV2D),
    *(Fault("dot", *fault) for fault in DOT),
    *(Fault("pointwise", *fault) for fault in POINTWISE),
    *(Fault("tiled", *fault) for fault in TILED),
]
