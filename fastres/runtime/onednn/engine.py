"""The engine for CPUs: oneDNN's fused convolutions, called through ``torch.ops.mkldnn``.

Activations are channels-last from the first convolution to the last; weights are packed once;
bias, residual and ReLU happen inside the kernel; the residual is overwritten by the sum where
nobody reads it later. What oneDNN's operator in torch cannot do in one call (an activation before
the addition, padding with four different sides) takes a second call, and the receipt says so.

oneDNN's ReLU turns NaN into 0. The program therefore looks at its inputs, and behind whatever may
make NaN, and gives up on what is not finite: the eager engine runs that call, and NaN stays NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from fastres.ir import ops
from fastres.ir.graph import arguments, module_of
from fastres.ir.views import Conv2d, Linear
from fastres.kernels import reference
from fastres.kernels.activations import ACTIVATIONS
from fastres.kernels.spec import is_symmetric
from fastres.runtime import contiguous, float16
from fastres.runtime.executable import Executable
from fastres.runtime.lowering import Lowering, Rule, keep
from fastres.runtime.nonfinite import checked_finite, may_break
from fastres.runtime.onednn import image_rows, integers
from fastres.runtime.onednn.packed_weights import PackedWeights
from fastres.system.target import onednn_supports

aten = torch.ops.aten


class OneDnnEngine:
    """Runs graphs of all precisions on the CPU; see :class:`fastres.runtime.engine.Engine`."""

    name = "onednn"
    plans_threads = False
    reads_in_place = True

    def __init__(self) -> None:
        self._packed = PackedWeights()
        self._widened = float16.Widened()

    def unpacked(self) -> OneDnnEngine:
        """The same engine, with nothing packed."""
        return OneDnnEngine()

    def refusal(self, module: fx.GraphModule) -> str | None:
        """Why oneDNN cannot run a graph here, or None."""
        for name, value in module.named_buffers():
            if value.device.type != "cpu":
                return f"oneDNN runs on the CPU, and the model is on {value.device}"
            computed = value.is_floating_point() and value.dtype != torch.float16
            if computed and not onednn_supports(value.dtype):
                return f"oneDNN has no {value.dtype} kernels on this machine"
            if value.is_floating_point() and value.numel() and not _is_finite(value):
                return f"{name} holds NaN or infinity, which oneDNN's ReLU would hide"
        return None

    def build(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Executable:
        """An executable for inputs of these shapes; packs the weights that no other one has."""
        given = module
        if not onednn_supports(torch.float16):
            module = self._widened(module, inputs)
        executable = Lowering(module, inputs).run(self.name, self.rules(), keep_and_check)
        if module is not given:
            executable.notes.append(float16.NOTE)
        return executable

    def rules(self) -> dict[Any, Rule]:
        """How each operator becomes oneDNN's; :func:`keep_and_check` is for the others."""
        return {
            "placeholder": placeholder,
            aten.to.dtype: _to_dtype,
            ops.conv2d: self._conv2d,
            ops.linear: self._linear,
            ops.scale_shift: image_rows.scale_shift,
            ops.quantized_conv2d: partial(integers.conv2d, weights=self._packed),
            ops.quantized_linear: partial(integers.linear, weights=self._packed),
        }

    def _conv2d(self, lowering: Lowering, node: fx.Node) -> fx.Node:
        conv = Conv2d.of(node)
        residual, padding, tensor = conv.residual, conv.padding, conv.filters
        reason = "its weight is computed from the input" if tensor is None else None
        if residual is not None and lowering.facts[residual].shape != lowering.facts[node].shape:
            reason = "its residual is broadcast at this size"
        if tensor is None or reason is not None:
            lowering.remark(node, "convolution", str(reason))
            return lowering.call(reference.conv2d, lowering.value(arguments(node)), node)
        image = lowering.value(conv.x)
        size = list(lowering.facts[conv.x].shape)
        if not is_symmetric(padding):
            top, left, bottom, right = padding
            image = lowering.call(
                aten.constant_pad_nd.default, (image, [left, right, top, bottom]), node
            )
            size = [size[0], size[1], size[2] + top + bottom, size[3] + left + right]
            sides = [0, 0]
            lowering.notes.append(
                f"{module_of(node)}: padding {list(padding)} differs between sides, so torch pads "
                "first"
            )
        else:
            sides = list(padding[:2])
        packed = self._packed.convolution(
            str(conv.weight.target),
            tensor,
            sides,
            conv.stride,
            conv.dilation,
            conv.groups,
            size,
        )
        rest = (lowering.constant(f"{node.name}_packed", packed), lowering.value(conv.bias))
        shape = (sides, list(conv.stride), list(conv.dilation), conv.groups)
        before, after = conv.activations
        if residual is None:
            return _convolution(lowering, node, image, rest, shape, after)
        if before == "none" and ACTIVATIONS[after].onednn_sum:
            return _convolution_sum(lowering, node, image, residual, rest, shape, after)
        first = _convolution(lowering, node, image, rest, shape, before)
        lowering.notes.append(
            f"{module_of(node)}: the residual comes after {before} and before {after}; "
            "oneDNN's operator in torch adds before a ReLU only, so a second call adds"
        )
        return lowering.call(_add_to, (first, lowering.value(residual), after), node)

    def _linear(self, lowering: Lowering, node: fx.Node) -> fx.Node:
        linear = Linear.of(node)
        tensor, activation = linear.filters, linear.activation
        fact = lowering.facts[linear.x]
        # In float32 oneDNN adds up all products in one chain, with twice the error of torch's BLAS.
        packs = tensor is not None and tensor.dtype == torch.bfloat16
        if tensor is None or not packs or fact.dim() != 2 or not ACTIVATIONS[activation].onednn_sum:
            return lowering.call(reference.linear, lowering.value(arguments(node)), node)
        packed = self._packed.linear(str(linear.weight.target), tensor, fact.shape[0])
        attribute, scalars = _attribute(activation)
        bound = (
            lowering.value(linear.x),
            lowering.constant(f"{node.name}_packed", packed),
            lowering.value(linear.bias),
            attribute,
            scalars,
            "",
        )
        return lowering.call(torch.ops.mkldnn._linear_pointwise.default, bound, node)


def _convolution(
    lowering: Lowering, node: fx.Node, image: Any, rest: Any, shape: Any, activation: str
) -> fx.Node:
    """``activation(conv(x))`` in one call, or in two where oneDNN's has no such activation."""
    row = ACTIVATIONS[activation]
    attribute, scalars = _attribute(activation)
    bound = (image, *rest, *shape, attribute, scalars, "")
    result = lowering.call(torch.ops.mkldnn._convolution_pointwise.default, bound, node)
    if not isinstance(row.onednn, str):
        return result
    lowering.notes.append(f"{module_of(node)}: {row.onednn}")
    return lowering.call(row.in_place, (result,), node)


def _attribute(activation: str) -> tuple[str, list[float]]:
    """oneDNN's attribute for an activation, and its scalars; ``none`` where it has none."""
    column = ACTIVATIONS[activation].onednn
    return ("none", []) if isinstance(column, str) else (column[0], list(column[1]))


def _convolution_sum(
    lowering: Lowering,
    node: fx.Node,
    image: Any,
    residual: Any,
    rest: Any,
    shape: Any,
    activation: str,
) -> fx.Node:
    """``activation(conv(x) + residual)`` in one call, in the residual's memory where allowed."""
    attribute, scalars = _attribute(activation)
    after = None if activation == "none" else attribute
    tail = (*rest, *shape, "add", 1.0, after, scalars, "")
    addend = lowering.value(residual)
    if residual.target not in ops.REFERENCE:  # a slice, for one, need not be dense
        fact = lowering.facts[residual]
        addend = lowering.call(channels_last, (addend, fact.dtype, _strides(fact)), residual)
    if lowering.may_overwrite(residual, node):
        target = torch.ops.mkldnn._convolution_pointwise_.binary
        return lowering.call(target, (addend, image, *tail), node)
    target = torch.ops.mkldnn._convolution_pointwise.binary
    return lowering.call(target, (image, addend, *tail), node)


def _add_to(total: Tensor, residual: Tensor, activation: str) -> Tensor:
    """``activation(fresh + residual)`` where nobody else holds ``fresh``."""
    return reference.activate(total.add_(residual), activation)


def keep_and_check(lowering: Lowering, node: fx.Node) -> fx.Node:
    """torch's own operation, and a look at what may break in it."""
    fact = lowering.facts[node]
    looks = isinstance(fact, Tensor) and fact.is_floating_point()
    if node.target in contiguous.INEXACT:
        new_args = contiguous.arguments_of(lowering, node)
        new = keep(lowering, node)
        new.args = new_args
        if isinstance(fact, Tensor) and fact.dim() == 4:
            new = lowering.call(channels_last, (new, fact.dtype, _strides(fact)), node)
    else:
        new = keep(lowering, node)
    if looks and node.target not in ops.REFERENCE and may_break(node.target):
        return lowering.call(checked_finite, (new,), node, "look for NaN")
    return new


def placeholder(lowering: Lowering, node: fx.Node) -> fx.Node:
    """An input: looked at, and channels-last where it is an image."""
    fact = lowering.facts[node]
    new = lowering.placeholder(node)
    if isinstance(fact, Tensor) and fact.is_floating_point():
        new = lowering.call(checked_finite, (new,), node, "look for NaN")
    casts = all(user.target is aten.to.dtype for user in node.users)
    if not isinstance(fact, Tensor) or fact.dim() != 4 or not fact.is_floating_point() or casts:
        return new
    return lowering.call(channels_last, (new, fact.dtype, _strides(fact)), node, "to channels-last")


def _to_dtype(lowering: Lowering, node: fx.Node) -> fx.Node:
    fact, x = lowering.facts[node], arguments(node)[0]
    if isinstance(x, fx.Node) and x.op == "placeholder" and fact.dim() == 4:
        return lowering.call(
            channels_last, (lowering.value(x), fact.dtype, _strides(fact)), node, "to channels-last"
        )
    return lowering.call(aten.to.dtype, lowering.value(arguments(node)), node)


def _is_finite(value: Tensor) -> bool:
    """In one pass without memory: NaN is NaN's smallest and largest number."""
    low, high = torch.aminmax(value)
    return math.isfinite(low) and math.isfinite(high)


def _strides(fact: Tensor) -> tuple[int, ...]:
    _, c, h, w = fact.shape
    return (c * h * w, 1, c * w, c)


def channels_last(image: Tensor, dtype: torch.dtype, strides: tuple[int, ...]) -> Tensor:
    """``image`` in ``dtype``, with exactly the strides of a channels-last tensor.

    With one channel or one pixel, contiguous and channels-last are the same bytes; torch then goes
    by the strides, and NCHW ones would pull the whole network into NCHW.
    """
    if image.dtype != dtype:
        # Two copies are faster than torch's one that casts and transposes.
        image = image.to(dtype)
    if image.stride() == strides:
        return image
    out = torch.empty_strided(image.shape, strides, dtype=dtype, device=image.device)
    return out.copy_(image)
