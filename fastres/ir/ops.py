"""The operators ``fastres::*``: schema, fake implementation, eager implementation, decomposition.

Their meaning is :mod:`fastres.kernels.reference`; this file makes them operators of torch's
dispatcher, so that they can stand in an ``fx.Graph``, be exported and be compiled. They are for
inference and have no gradient. They are registered once, when this module is imported.

=================  ======================================================================
operator           meaning
=================  ======================================================================
conv2d             ``activation(pre_activation(conv(x) + bias) + residual)``
scale_shift        ``activation(x * scale + shift)`` per channel
layer_norm2d       each pixel's channels less their mean and by their standard deviation
add_relu           ``relu(x + y)``
max_pool2d         largest value under each window
global_avg_pool    mean over height and width
linear             ``activation(x @ weight.T + bias)``
pool_linear        ``linear(global_avg_pool(x))``, for engines with such a kernel
bottleneck         3x3 -> ReLU -> 1x1 -> + residual -> ReLU (-> 1x1 -> ReLU), for engines with
                   such a kernel
conv2d_max_pool2d  ``max_pool2d(activation(conv(x) + bias))``, likewise; also of an image as it is
                   decoded, which it normalises
resize_crop        the middle of an image resized by its shorter side
=================  ======================================================================

Those of quantised numbers mean what :mod:`fastres.kernels.quantized` says: ``quantize``,
``dequantize``, ``quantized_conv2d``, ``quantized_linear``, ``quantized_global_avg_pool``,
``quantized_add``; and for engines with such kernels ``quantized_bottleneck`` and
``quantized_conv2d_max_pool2d``. ``max_pool2d`` takes quantised numbers as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastres.kernels import quantized, reference

_SCHEMAS: dict[Callable[..., torch.Tensor | list[torch.Tensor]], str] = {
    reference.conv2d: "(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, int[2] stride, "
    "int[4] padding, int[2] dilation, int groups, str pre_activation, str activation) -> Tensor",
    reference.scale_shift: "(Tensor x, Tensor scale, Tensor shift, str activation) -> Tensor",
    reference.layer_norm2d: "(Tensor x, Tensor? weight, Tensor? bias, float eps) -> Tensor",
    reference.add_relu: "(Tensor x, Tensor y) -> Tensor",
    reference.max_pool2d: "(Tensor x, int[2] kernel, int[2] stride, int[2] padding, "
    "int[2] dilation, bool ceil_mode) -> Tensor",
    reference.global_avg_pool: "(Tensor x, bool keepdim) -> Tensor",
    reference.linear: "(Tensor x, Tensor weight, Tensor? bias, str activation) -> Tensor",
    reference.pool_linear: "(Tensor x, Tensor weight, Tensor? bias, str activation) -> Tensor",
    reference.bottleneck: "(Tensor x, Tensor weight, Tensor? bias, Tensor expand_weight, "
    "Tensor? expand_bias, Tensor residual, Tensor? shortcut_weight, int[2] shortcut_stride, "
    "Tensor? next_weight, Tensor? next_bias, int[2] stride, int[4] padding, int[2] dilation, "
    "int groups) -> Tensor[]",
    reference.conv2d_max_pool2d: "(Tensor x, Tensor weight, Tensor? bias, int[2] stride, "
    "int[4] padding, str activation, int[2] pool_kernel, int[2] pool_stride, "
    "int[2] pool_padding, Tensor? scale, Tensor? shift) -> Tensor",
    reference.resize_crop: "(Tensor image, int resize, int crop, str interpolation, "
    "bool antialias) -> Tensor",
    quantized.quantize: "(Tensor x, float scale, int zero_point) -> Tensor",
    quantized.dequantize: "(Tensor q, float scale, int zero_point) -> Tensor",
    quantized.quantized_conv2d: "(Tensor x, Tensor weight, Tensor weight_scale, Tensor bias, "
    "Tensor? residual, int[2] stride, int[4] padding, int[2] dilation, int groups, "
    "str pre_activation, str activation, float x_scale, int x_zero_point, float residual_scale, "
    "int residual_zero_point, float scale, int zero_point) -> Tensor",
    quantized.quantized_bottleneck: "(Tensor x, Tensor weight, Tensor weight_scale, Tensor bias, "
    "Tensor expand_weight, Tensor expand_weight_scale, Tensor expand_bias, Tensor residual, "
    "Tensor? shortcut_weight, Tensor? shortcut_weight_scale, Tensor? shortcut_bias, "
    "int[2] shortcut_stride, Tensor? next_weight, Tensor? next_weight_scale, Tensor? next_bias, "
    "int[2] stride, int[4] padding, int[2] dilation, int groups, float[6] scales, "
    "int[6] zero_points) -> Tensor[]",
    quantized.quantized_conv2d_max_pool2d: "(Tensor x, Tensor weight, Tensor weight_scale, "
    "Tensor bias, int[2] stride, int[4] padding, str activation, int[2] pool_kernel, "
    "int[2] pool_stride, int[2] pool_padding, float x_scale, int x_zero_point, float scale, "
    "int zero_point) -> Tensor",
    quantized.quantized_linear: "(Tensor x, Tensor weight, Tensor weight_scale, Tensor bias, "
    "str activation, float x_scale, int x_zero_point, float? scale, int zero_point) -> Tensor",
    quantized.quantized_global_avg_pool: "(Tensor x, bool keepdim, float x_scale, "
    "int x_zero_point, float scale, int zero_point) -> Tensor",
    quantized.quantized_add: "(Tensor x, Tensor y, str activation, float x_scale, "
    "int x_zero_point, float y_scale, int y_zero_point, float scale, int zero_point) -> Tensor",
}

_library = torch.library.Library("fastres", "DEF")
for _function, _schema in _SCHEMAS.items():
    _library.define(_function.__name__ + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(_function.__name__, _function, "CompositeExplicitAutograd")
    # The reference is made of torch operators, so on fake tensors it is its own shape function,
    # and shape, dtype and memory format cannot drift from what the eager implementation gives.
    torch.library.register_fake(f"fastres::{_function.__name__}", _function, lib=_library)

conv2d = torch.ops.fastres.conv2d.default
scale_shift = torch.ops.fastres.scale_shift.default
layer_norm2d = torch.ops.fastres.layer_norm2d.default
add_relu = torch.ops.fastres.add_relu.default
max_pool2d = torch.ops.fastres.max_pool2d.default
global_avg_pool = torch.ops.fastres.global_avg_pool.default
linear = torch.ops.fastres.linear.default
pool_linear = torch.ops.fastres.pool_linear.default
bottleneck = torch.ops.fastres.bottleneck.default
conv2d_max_pool2d = torch.ops.fastres.conv2d_max_pool2d.default
resize_crop = torch.ops.fastres.resize_crop.default
quantize = torch.ops.fastres.quantize.default
dequantize = torch.ops.fastres.dequantize.default
quantized_conv2d = torch.ops.fastres.quantized_conv2d.default
quantized_bottleneck = torch.ops.fastres.quantized_bottleneck.default
quantized_conv2d_max_pool2d = torch.ops.fastres.quantized_conv2d_max_pool2d.default
quantized_linear = torch.ops.fastres.quantized_linear.default
quantized_global_avg_pool = torch.ops.fastres.quantized_global_avg_pool.default
quantized_add = torch.ops.fastres.quantized_add.default

REFERENCE: dict[Any, Callable[..., torch.Tensor | list[torch.Tensor]]] = {
    getattr(torch.ops.fastres, function.__name__).default: function for function in _SCHEMAS
}
"""Each operator with its plain-PyTorch meaning: the oracle, and the decomposition for export.

For example ``exported_program.run_decompositions({**table, **fastres.ir.ops.REFERENCE})``.
"""
