"""The operators ``fastres::*`` in ONNX's terms: each is what its definition says, spelt out.

The first node of a layer carries the plain name of the user's module; those that follow it add
what they are: ``layer1.0.conv2``, ``layer1.0.conv2/Add``, ``layer1.0.conv2/Relu``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from fastres.export.builder import Builder
from fastres.export.rules.activations import activate
from fastres.ir import ops
from fastres.ir.graph import arguments


def _named(b: Builder, node: fx.Node, index: int, role: str) -> str:
    """A weight, called ``layer1.0.conv2.weight`` where it is a constant; "" for None."""
    argument = arguments(node)[index]
    if argument is None:
        return ""
    return b.tensor(argument, hint=f"{node.meta.get('module') or node.name}.{role}")


def convolve(
    b: Builder,
    x: str,
    weight: str,
    bias: str,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    part: str | None = "",
) -> str:
    """One two-dimensional Conv; padding is (top, left, bottom, right), as ONNX has it."""
    kernel = list(b.initializers[weight].dims[2:]) if weight in b.initializers else None
    shape: dict[str, Any] = {} if kernel is None else {"kernel_shape": kernel}
    return b.emit(
        "Conv",
        x,
        weight,
        bias,
        part=part,
        **shape,
        strides=list(stride),
        pads=list(padding),
        dilations=list(dilation),
        group=groups,
    )


def _conv2d(b: Builder, node: fx.Node) -> str:
    x, _, _, residual, stride, padding, dilation, groups, pre_activation, activation = arguments(
        node
    )
    weight, bias = _named(b, node, 1, "weight"), _named(b, node, 2, "bias")
    y = convolve(b, b.tensor(x), weight, bias, stride, padding, dilation, groups)
    y = activate(b, y, pre_activation)
    if residual is not None:
        y = b.emit("Add", y, b.tensor(residual))
    return activate(b, y, activation)


def _scale_shift(b: Builder, node: fx.Node) -> str:
    """Computed in the dtype of its constants, as its definition does."""
    x, scale, shift, activation = arguments(node)
    x_name = b.tensor(x)
    over = [1, -1] + [1] * (b.rank(x) - 2)
    module = node.meta.get("module") or node.name
    factors = b.constant(b.weight_of(scale).reshape(over), f"{module}.scale")
    offsets = b.constant(b.weight_of(shift).reshape(over), f"{module}.shift")
    wide = b.cast(x_name, b.dtype(factors))
    y = b.emit("Add", b.emit("Mul", wide, factors, part=""), offsets)
    return b.cast(activate(b, y, activation), b.dtype(x_name))


def _add_relu(b: Builder, node: fx.Node) -> str:
    x, y = (b.tensor(argument) for argument in arguments(node))
    return b.emit("Relu", b.emit("Add", x, y))


def _pool(
    b: Builder, x: str, kernel: Any, stride: Any, padding: Any, dilation: Any, ends: Any, ceil: bool
) -> str:
    top, left = padding
    return b.emit(
        "MaxPool",
        x,
        part="",
        kernel_shape=list(kernel),
        strides=list(stride),
        pads=[top, left, top + ends[0], left + ends[1]],
        dilations=list(dilation),
        ceil_mode=int(ceil),
    )


def _max_pool2d(b: Builder, node: fx.Node) -> str:
    x, kernel, stride, padding, dilation, ceil = arguments(node)
    ends = overhang(b, node, x, kernel, stride, padding, dilation) if ceil else (0, 0)
    return _pool(
        b, b.tensor(x), kernel, stride, padding, dilation, ends or (0, 0), ceil and ends is None
    )


def overhang(
    b: Builder,
    node: fx.Node,
    x: fx.Node,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int] = (1, 1),
) -> tuple[int, int] | None:
    """Pixels by which the last window of ceil mode reaches beyond the padding; None if unknown.

    Runtimes disagree about ceil mode at the border. With a known size, padding says the same.
    """
    ends = []
    for axis in (0, 1):
        size, windows = b.size(x, axis + 2), b.size(node, axis + 2)
        if size is None or windows is None:
            return None
        covered = (windows - 1) * stride[axis] + dilation[axis] * (kernel[axis] - 1) + 1
        ends.append(max(0, covered - size - 2 * padding[axis]))
    return ends[0], ends[1]


def _global_avg_pool(b: Builder, node: fx.Node) -> str:
    x, keepdim = arguments(node)
    return _mean(b, b.tensor(x), keepdim)


def _mean(b: Builder, x: str, keepdim: bool) -> str:
    y = b.emit("GlobalAveragePool", x, part="")
    return y if keepdim else b.emit("Flatten", y, axis=1)


def _classify(b: Builder, node: fx.Node, x: str, rank: int) -> str:
    _, weight, bias, activation = arguments(node)
    if rank == 2:
        gemm_inputs = (x, _named(b, node, 1, "weight"), _named(b, node, 2, "bias"))
        y = b.emit("Gemm", *gemm_inputs, part="", transB=1)
    else:
        module = node.meta.get("module") or node.name
        transposed = b.constant(b.weight_of(weight).t().contiguous(), f"{module}.weight")
        y = b.emit("MatMul", x, transposed, part="")
        if bias is not None:
            y = b.emit("Add", y, _named(b, node, 2, "bias"))
    return activate(b, y, activation)


def _linear(b: Builder, node: fx.Node) -> str:
    x = arguments(node)[0]
    return _classify(b, node, b.tensor(x), b.rank(x))


def _pool_linear(b: Builder, node: fx.Node) -> str:
    return _classify(b, node, _mean(b, b.tensor(arguments(node)[0]), keepdim=False), 2)


def _bottleneck(b: Builder, node: fx.Node) -> list[str]:
    (
        x, _, _, _, _, residual, shortcut, shortcut_stride, further, _, stride, padding,
        dilation, groups,
    ) = arguments(node)  # fmt: skip
    none, once = (0, 0, 0, 0), (1, 1)
    weight, bias = _named(b, node, 1, "weight"), _named(b, node, 2, "bias")
    narrow = convolve(b, b.tensor(x), weight, bias, stride, padding, dilation, groups)
    narrow = b.emit("Relu", narrow)
    weight, bias = _named(b, node, 3, "expand.weight"), _named(b, node, 4, "expand.bias")
    wide = convolve(b, narrow, weight, bias, once, none, once, 1, "expand")
    identity = b.tensor(residual)
    if shortcut is not None:
        weight = _named(b, node, 6, "shortcut.weight")
        identity = convolve(b, identity, weight, "", shortcut_stride, none, once, 1, "shortcut")
    wide = b.emit("Relu", b.emit("Add", wide, identity))
    if further is None:
        return [wide]
    weight, bias = _named(b, node, 8, "next.weight"), _named(b, node, 9, "next.bias")
    return [wide, b.emit("Relu", convolve(b, wide, weight, bias, once, none, once, 1, "next"))]


def _normalised(
    b: Builder, node: fx.Node, pixels: str, scale: Any, shift: Any, dtype: torch.dtype
) -> str:
    """Of [N, H, W, C], computed in the dtype of its constants: [N, C, H, W] in ``dtype``."""
    module = node.meta.get("module") or node.name
    factors = b.constant(b.weight_of(scale), f"{module}.scale")
    offsets = b.constant(b.weight_of(shift), f"{module}.shift")
    y = b.emit("Add", b.emit("Mul", b.cast(pixels, b.dtype(factors)), factors), offsets)
    return b.cast(b.emit("Transpose", y, perm=[0, 3, 1, 2]), dtype)


def _conv2d_max_pool2d(b: Builder, node: fx.Node) -> str:
    x, _, _, stride, padding, activation, kernel, pool_stride, pool_padding, scale, shift = (
        arguments(node)
    )
    weight, bias = _named(b, node, 1, "weight"), _named(b, node, 2, "bias")
    image = b.tensor(x)
    if scale is not None:
        image = _normalised(b, node, image, scale, shift, b.dtype(weight))
    y = activate(b, convolve(b, image, weight, bias, stride, padding, (1, 1), 1), activation)
    top, left = pool_padding
    return b.emit(
        "MaxPool",
        y,
        kernel_shape=list(kernel),
        strides=list(pool_stride),
        pads=[top, left, top, left],
    )


RULES: dict[Any, Any] = {
    ops.conv2d: _conv2d,
    ops.scale_shift: _scale_shift,
    ops.add_relu: _add_relu,
    ops.max_pool2d: _max_pool2d,
    ops.global_avg_pool: _global_avg_pool,
    ops.linear: _linear,
    ops.pool_linear: _pool_linear,
    ops.bottleneck: _bottleneck,
    ops.conv2d_max_pool2d: _conv2d_max_pool2d,
}
"""Operator -> translation."""
