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
from fastres.export.rules.units import through
from fastres.ir import ops
from fastres.ir.graph import arguments, constant
from fastres.ir.views import (
    AddRelu,
    Bottleneck,
    Conv2d,
    GlobalAvgPool,
    Linear,
    MaxPool2d,
    PoolLinear,
    ScaleShift,
    Stem,
)


def _named(b: Builder, node: fx.Node, index: int, role: str) -> str:
    """A weight, called ``layer1.0.conv2.weight`` where it is a constant; "" for None."""
    argument = arguments(node)[index]
    if argument is None:
        return ""
    hint = f"{node.meta.get('module') or node.name}.{role}"
    held = constant(argument)
    if held is not None and held.dtype == torch.bfloat16:
        return b.constant(held.float(), hint)
    return b.tensor(argument, hint=hint)


def _finished(b: Builder, node: fx.Node, y: str) -> str:
    """A result as the next operator reads it: of a bfloat16 layer, rounded."""
    return b.as_bfloat16(y) if b.fact(node).dtype == torch.bfloat16 else y


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
    kernel: Sequence[int] | None = None,
) -> str:
    """One two-dimensional Conv; padding is (top, left, bottom, right), as ONNX has it."""
    if kernel is None and weight in b.initializers:
        kernel = b.initializers[weight].dims[2:]
    shape: dict[str, Any] = {} if kernel is None else {"kernel_shape": list(kernel)}
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
    conv = Conv2d.of(node)
    y = convolve(
        b,
        b.tensor(conv.x),
        _named(b, node, 1, "weight"),
        _named(b, node, 2, "bias"),
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
    )
    y = activate(b, y, conv.pre_activation)
    if conv.residual is not None:
        y = b.emit("Add", y, b.tensor(conv.residual))
    return _finished(b, node, activate(b, y, conv.activation))


def _scale_shift(b: Builder, node: fx.Node) -> str:
    """Computed in the dtype of its constants, as its definition does."""
    view = ScaleShift.of(node)
    given = b.tensor(view.x)
    over = [1, -1] + [1] * (b.rank(view.x) - 2)
    module = node.meta.get("module") or node.name
    factors = b.constant(b.weight_of(view.scale).reshape(over), f"{module}.scale")
    offsets = b.constant(b.weight_of(view.shift).reshape(over), f"{module}.shift")
    wide = b.cast(given, b.dtype(factors))
    y = b.emit("Add", b.emit("Mul", wide, factors, part=""), offsets)
    return b.cast(activate(b, y, view.activation), b.dtype(given))


def _add_relu(b: Builder, node: fx.Node) -> str:
    x, y = (b.tensor(argument) for argument in AddRelu.of(node).args)
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
    pool = MaxPool2d.of(node)
    window = (pool.kernel, pool.stride, pool.padding, pool.dilation)
    ends = overhang(b, node, pool.x, *window) if pool.ceil_mode else (0, 0)
    ceil = pool.ceil_mode and ends is None
    return through(b, node, lambda x: _pool(b, x, *window, ends or (0, 0), ceil))


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
    pool = GlobalAvgPool.of(node)
    return _mean(b, b.tensor(pool.x), pool.keepdim)


def _mean(b: Builder, x: str, keepdim: bool) -> str:
    y = b.emit("GlobalAveragePool", x, part="")
    return y if keepdim else b.emit("Flatten", y, axis=1)


def _classify(b: Builder, view: Linear | PoolLinear, x: str, rank: int) -> str:
    node = view.node
    if rank == 2:
        gemm_inputs = (x, _named(b, node, 1, "weight"), _named(b, node, 2, "bias"))
        y = b.emit("Gemm", *gemm_inputs, part="", transB=1)
    else:
        module = node.meta.get("module") or node.name
        transposed = b.constant(b.weight_of(view.weight).t().contiguous(), f"{module}.weight")
        y = b.emit("MatMul", x, transposed, part="")
        if view.bias is not None:
            y = b.emit("Add", y, _named(b, node, 2, "bias"))
    return activate(b, y, view.activation)


def _linear(b: Builder, node: fx.Node) -> str:
    linear = Linear.of(node)
    return _finished(b, node, _classify(b, linear, b.tensor(linear.x), b.rank(linear.x)))


def _pool_linear(b: Builder, node: fx.Node) -> str:
    view = PoolLinear.of(node)
    return _classify(b, view, _mean(b, b.tensor(view.x), keepdim=False), 2)


def _bottleneck(b: Builder, node: fx.Node) -> list[str]:
    block = Bottleneck.of(node)
    none, once = (0, 0, 0, 0), (1, 1)
    weight, bias = _named(b, node, 1, "weight"), _named(b, node, 2, "bias")
    narrow = convolve(
        b,
        b.tensor(block.x),
        weight,
        bias,
        block.stride,
        block.padding,
        block.dilation,
        block.groups,
    )
    narrow = b.emit("Relu", narrow)
    weight, bias = _named(b, node, 3, "expand.weight"), _named(b, node, 4, "expand.bias")
    wide = convolve(b, narrow, weight, bias, once, none, once, 1, "expand")
    identity = b.tensor(block.residual)
    if block.shortcut_weight is not None:
        weight = _named(b, node, 6, "shortcut.weight")
        identity = convolve(
            b, identity, weight, "", block.shortcut_stride, none, once, 1, "shortcut"
        )
    wide = b.emit("Relu", b.emit("Add", wide, identity))
    if block.next_weight is None:
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
    stem = Stem.of(node)
    weight, bias = _named(b, node, 1, "weight"), _named(b, node, 2, "bias")
    image = b.tensor(stem.x)
    if stem.takes_bytes:
        image = _normalised(b, node, image, stem.scale, stem.shift, b.dtype(weight))
    y = convolve(b, image, weight, bias, stem.stride, stem.padding, (1, 1), 1)
    y = activate(b, y, stem.activation)
    top, left = stem.pool_padding
    return b.emit(
        "MaxPool",
        y,
        kernel_shape=list(stem.pool_kernel),
        strides=list(stem.pool_stride),
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
