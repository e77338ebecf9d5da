"""Faults in the pooling and classifier kernels."""

from __future__ import annotations

import math
from functools import partial

import test_kernel_bounds as bounds
import test_pool_linear_kernel as classifier
import test_pooling_kernel as pooling
from faults import Fault, Replacements

CPU = "cpu"


def max_pool(name: str) -> partial[None]:
    return partial(pooling.test_max_pool2d, name, "fp32", CPU)


def avg_pool(name: str) -> partial[None]:
    return partial(pooling.test_divisors, name, False, None, CPU)


def means(name: str) -> partial[None]:
    return partial(pooling.test_global_avg_pool, name, "fp32", CPU)


def classes(name: str) -> partial[None]:
    return partial(classifier.test_pool_linear, name, "fp32", CPU)


nan = partial(pooling.check_special_numbers, math.nan, "fp32", CPU)

MAX_LOOP = (
    'tl.full((BLOCK_SIZE_M, BLOCK_SIZE_C), float("-inf"), tl.float32)\n    for tap in tl.range(0, '
)
BEST = "best.to(out_ptr.dtype.element_ty),\n        mask=(offs_m < M)[:, None] & "
AVG_LOOP = "tl.zeros((BLOCK_SIZE_M, BLOCK_SIZE_C), tl.float32)\n    for tap in tl.range(0, "
TOP = "top = p * STRIDE_H - PAD_H\n    left = q * STRIDE_W - PAD_W\n    "

POOLING: Replacements = [
    (
        "NaN rule missing",
        "(value > best) | (value != value)",
        "value > best",
        nan,
    ),
    (
        "a maximum instead of the select",
        "tl.where((value > best) | (value != value), value, best)",
        "tl.maximum(value, best)",
        nan,
    ),
    (
        "padded with zero",
        'other=float("-inf"),',
        "other=0.0,",
        partial(pooling.test_negative_images_are_not_padded_with_zero, CPU),
    ),
    (
        "a masked load without other",
        '            other=float("-inf"),\n',
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

FAULTS = [Fault("pooling", *fault) for fault in POOLING]
