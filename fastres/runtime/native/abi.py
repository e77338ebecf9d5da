"""The structures of ``kernels/cpu/native.h`` in Python, field by field."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p
from typing import ClassVar

ABI = 11
"""``FR_ABI`` of the header that this file follows."""

KINDS = (
    "convolution", "winograd", "max_pool", "mean", "import", "export", "map", "avg_pool", "gather",
    "resize", "channel_convolution", "convert", "group_norm", "layer_norm",
)  # fmt: skip
FORMS = ("panels", "depthwise", "grouped")
"""``enum fr_form``."""
ACTIVATIONS = {
    name: code
    for code, name in enumerate((
        "none", "relu", "relu6", "hardswish", "silu", "sigmoid", "hardsigmoid", "gelu", "gelu_tanh",
        "tanh", "leaky_relu", "prelu", "elu", "mish", "clamp",
    ))
}  # fmt: skip
"""``enum fr_activation``."""
ISAS = (
    "avx2", "avx_vnni", "avx512", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8",
    "neon", "neon_bf16", "neon_i8mm",
)  # fmt: skip
"""``enum fr_isa``: those of x86-64, then those of AArch64."""
ARENA, INPUT, OUTPUT = range(3)


class CTensor(ctypes.Structure):
    """``fr_tensor``: where a tensor's first pixel inside the border lies; strides in bytes."""

    _fields_: ClassVar = [
        ("offset", c_int64),
        ("image", c_int64),
        ("plane", c_int64),
        ("row", c_int64),
        ("pixel", c_int64),
        ("space", c_int32),
        ("index", c_int32),
        ("whole", c_int32),
        ("channels", c_int32),
        ("height", c_int32),
        ("width", c_int32),
    ]


class CFunction(ctypes.Structure):
    """``fr_function``: an activation and its numbers."""

    _fields_: ClassVar = [("kind", c_int32), ("values", c_float * 2)]


class COp(ctypes.Structure):
    """``fr_op``; what its fields mean is said in the header."""

    _fields_: ClassVar = [
        ("kind", c_int32),
        ("isa", c_int32),
        ("dtype", c_int32),
        ("images", c_int32),
        ("input", CTensor),
        ("output", CTensor),
        ("residual", CTensor),
        ("before", CFunction),
        ("after", CFunction),
        ("slopes", c_void_p),
        ("has_residual", c_int32),
        ("rows", c_int32),
        ("input_px", c_void_p),
        ("output_px", c_void_p),
        ("residual_px", c_void_p),
        ("steps", c_void_p),
        ("panel_input", c_void_p),
        ("weights", c_void_p),
        ("bias", c_void_p),
        ("panel_bytes", c_int64),
        ("pixels", c_int32),
        ("step_count", c_int32),
        ("step_units", c_int32),
        ("panels", c_int32),
        ("tile", c_int32),
        ("group", c_int32),
        ("chunk_panels", c_int32),
        ("prefetch", c_int32),
        ("read_ahead", c_int32),
        ("row_step", c_int32),
        ("form", c_int32),
        ("reads", c_int32),
        ("scratch_offset", c_int64),
        ("scratch_bytes", c_int64),
        ("kernel", c_int32 * 2),
        ("stride", c_int32 * 2),
        ("padding", c_int32 * 2),
        ("dilation", c_int32 * 2),
        ("divisor", c_int32),
        ("counts_padding", c_int32),
        ("adaptive", c_int32),
        ("scale", c_void_p),
        ("shift", c_void_p),
        ("factor", CTensor),
        ("has_factor", c_int32),
        ("groups", c_int32),
        ("epsilon", c_float),
        ("copies", c_void_p),
        ("copy_count", c_int32),
        ("source_rows", c_void_p),
        ("source_columns", c_void_p),
        ("row_shares", c_void_p),
        ("column_shares", c_void_p),
        ("outside_dtype", c_int32),
        ("small", c_int32),
        ("multiplier", c_void_p),
        ("input_multiplier", c_float),
        ("residual_multiplier", c_float),
        ("output_multiplier", c_float),
        ("outside_scale", c_float),
        ("input_zero", c_int32),
        ("residual_zero", c_int32),
        ("output_zero", c_int32),
    ]


class COutside(ctypes.Structure):
    """``fr_outside``: a tensor of the caller's; strides in elements."""

    _fields_: ClassVar = [
        ("data", c_void_p),
        ("image_bytes", c_int64),
        ("strides", c_int64 * 4),
    ]


class CPhase(ctypes.Structure):
    """``fr_phase``: ops that run together for some images at a time."""

    _fields_: ClassVar = [("first", c_int32), ("count", c_int32), ("images", c_int32)]
