"""Faults in the element-wise kernels and in the activations, which all kernels share."""

from __future__ import annotations

from functools import partial

import test_elementwise_kernel as elementwise
import test_layout_kernel as layout
import test_layouts_engine as layouts_engine
import torch
from faults import Fault, Replacements, in_network

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

FAULTS = [
    *(Fault("elementwise", *fault) for fault in ELEMENTWISE),
    *(Fault("activations", *fault) for fault in ACTIVATIONS),
]
