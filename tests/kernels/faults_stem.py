"""Faults in the stem's kernel."""

from __future__ import annotations

import math
from functools import partial

import test_kernel_bounds as bounds
import test_pixels_engine as pixels_engine
import test_stem_kernel as stem
from faults import Fault, Replacements, in_network

CPU = "cpu"


def answers(name: str) -> partial[None]:
    return partial(stem.test_answers, stem.STEMS[name], "fp32", CPU)


def special(name: str, value: float) -> partial[None]:
    return partial(stem.test_nan_and_infinity, name, "relu", value, CPU)


def inside(name: str) -> partial[None]:
    return partial(bounds.test_stem, name, False)


resnet = answers("ResNet's")
pixels = partial(stem.test_pixels_are_normalised, "ResNet's", "fp32", CPU)
far_below_zero = partial(
    stem.test_without_activation_padding_is_less_than_everything, stem.STEMS["ResNet's"], CPU
)

STEM: Replacements = [
    (
        "NaN rule missing",
        "tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)",
        "tl.maximum(x, y)",
        special("ResNet's", math.nan),
    ),
    ("the third tap dropped", "best = larger(third, best)", "best = best", resnet),
    (
        "the third tap of the same pair",
        "tl.minimum(tl.arange(0, A) + 1, A - 1)",
        "tl.arange(0, A)",
        resnet,
    ),
    ("padded with zero", 'acc, -float("inf")', "acc, 0.0", far_below_zero),
    (
        "pooling of the convolution's padding",
        "& (q < Q)",
        "& (q <= Q)",
        resnet,
    ),
    ("pooling's padding ignored", "(2 * WINDOWS_W) - POOL_PAD_W", "(2 * WINDOWS_W)", resnet),
    ("top padding off by one", "p * STRIDE_H - PAD_TOP", "p * STRIDE_H - PAD_TOP + 1", resnet),
    (
        "left padding off by one",
        "PAD_LEFT * C + LEAD",
        "(PAD_LEFT - 1) * C + LEAD",
        answers("odd width"),
    ),
    (
        "the other axis's stride",
        "q * (STRIDE_W * C)",
        "q * (STRIDE_H * C)",
        answers("oblong filter"),
    ),
    ("rows below the image", "taps_inside(top, H,", "taps_inside(top, H + 1,", inside("ResNet's")),
    (
        "columns right of the image",
        "column < row_length",
        "column <= row_length",
        answers("odd width"),
    ),
    ("columns left of the image", "column >= 0", "column >= -C", answers("odd width")),
    (
        "infinity times a weight of zero",
        "a = tl.where(used[None, :], a, 0.0)",
        "a = a",
        special("ResNet's", math.inf),
    ),
    (
        "numbers behind the filter's row",
        " & (j < ROW_END)[None, :]",
        "",
        special("four channels", math.inf),
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
    ("no shift of the pixels", " + shift[None, :]", "", pixels),
    ("another channel's scale", "(j + (C - LEAD % C)) % C", "j % C", pixels),
    (
        "a masked load without other",
        "mask=inside, other=0)",
        "mask=inside)",
        resnet,
    ),
    ("the first row of the filter dropped", "for r in range(R)", "for r in range(1, R)", resnet),
    (
        "weights beyond the last filter",
        "b = tl.load(weight_ptrs + r * ROW, mask=in_n[None, :], other=0.0)",
        "b = tl.load(weight_ptrs + r * ROW)",
        inside("ResNet's"),
    ),
    (
        "bias missing",
        "acc += tl.load(bias_ptr + offs_n, mask=in_n, other=0.0)[None, :]",
        "acc += 0.0",
        resnet,
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
        inside("ResNet's"),
    ),
    ("one window too many", "(pooled_q < POOLED_Q)", "(pooled_q <= POOLED_Q)", inside("ResNet's")),
    ("windows of the next tile", "(row < WINDOWS_H) & ", "", inside("ResNet's")),
    ("one filter too many", "in_n = offs_n < K", "in_n = offs_n <= K", inside("ResNet's")),
    (
        "64 bits of the image",
        "image = image.to(tl.int64)",
        "image = image",
        partial(stem.test_offsets_of_more_than_32_bits, False),
    ),
]

FAULTS = [Fault("stem", *fault) for fault in STEM]
