"""int8's convolutions and classifiers by oneDNN's kernels, whose sums are exact.

oneDNN's own way from sums to bytes rounds elsewhere than int8's definition does
(:mod:`fastres.kernels.quantized`): it adds the bias behind the scale. So its kernels give the sums,
as float32 at a scale of 1, and the definition's steps follow in torch. Sums are of either kind:

- of bytes, in 32-bit integers that are cast to float32 at the end
  (``torch.ops.onednn.qconv2d_pointwise``), where oneDNN has exact products of bytes: on processors
  with VNNI.
- of ``x - zero_point`` and the weights as float32, everywhere else. Every product and every partial
  sum is an integer, and exact below 2^24, in whatever order they are added.

A cast to float32 is exact below 2^24 too. What a filter's sums may reach is known from its weights;
where that is more, the input's channels are taken in several parts, each of which stays below, and
the parts are added up as integers. That keeps kernels of float32 at hand for what would need
float64, whose convolutions torch computes without oneDNN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fastres.ir.views import QuantizedConv2d, QuantizedLinear
from fastres.kernels.activations import ACTIVATIONS
from fastres.kernels.quantized import multipliers, output_unit, ratio
from fastres.kernels.spec import is_symmetric
from fastres.runtime.lowering import Lowering, keep
from fastres.runtime.onednn.packed_weights import PackedWeights
from fastres.system.target import onednn_multiplies_bytes

aten = torch.ops.aten

EXACT = 2**24 - 2**8
"""Below 2^24 every integer is a float32; 2^8 is room for what a bias leaves when it is rounded."""


def channel_parts(weight: Tensor, largest: int) -> list[tuple[int, int]] | None:
    """How a group's input channels are taken together, so that no sum reaches :data:`EXACT`.

    Args:
        weight: [K, C / groups, R, S] int8.
        largest: magnitude of ``x - zero_point``, at most.

    Returns:
        ``(first, behind the last)`` of each part; None where one channel alone is too much.
    """
    # [C / groups, K]: what a channel adds to a filter's sums, at most.
    reach = weight.to(torch.int32).abs().sum(dim=(2, 3)).t() * largest
    if reach.numel() and int(reach.max()) >= EXACT:
        return None
    parts: list[tuple[int, int]] = []
    first, total = 0, torch.zeros_like(reach[0])
    for channel, each in enumerate(reach):
        if int((total + each).max()) >= EXACT:
            parts.append((first, channel))
            first, total = channel, torch.zeros_like(each)
        total = total + each
    return [*parts, (first, len(reach))]


def conv2d(lowering: Lowering, node: fx.Node, weights: PackedWeights) -> fx.Node:
    """The rule for ``fastres::quantized_conv2d``."""
    conv = QuantizedConv2d.of(node)
    filters = conv.filters
    assert filters is not None
    x = lowering.value(conv.x)
    padding, size = list(conv.padding[:2]), [int(n) for n in lowering.facts[conv.x].shape]
    if not is_symmetric(conv.padding):
        top, left, bottom, right = conv.padding
        sides = ([left, right, top, bottom], conv.x_zero_point)
        x = lowering.call(aten.constant_pad_nd.default, (x, *sides), node)
        padding = [0, 0]
        size = [*size[:2], size[2] + top + bottom, size[3] + left + right]
    shape = (list(conv.stride), padding, list(conv.dilation), conv.groups)
    sums = _sums(lowering, node, conv, x, size, filters, shape, weights)
    if sums is None:
        return keep(lowering, node)
    unit = output_unit(conv.activations, conv.scale)
    residual = None if conv.residual is None else lowering.value(conv.residual)
    rest = (
        _multiplier(lowering, node, conv, unit), residual, ratio(conv.residual_scale, unit),
        conv.residual_zero_point, *conv.activations, ratio(unit, conv.scale), conv.zero_point,
    )  # fmt: skip
    return lowering.call(finished, (sums, *rest), node)


def linear(lowering: Lowering, node: fx.Node, weights: PackedWeights) -> fx.Node:
    """The rule for ``fastres::quantized_linear``: a convolution of one pixel."""
    view = QuantizedLinear.of(node)
    filters = view.filters
    assert filters is not None
    x = lowering.call(_as_pixels, (lowering.value(view.x),), node)
    size = [*(int(n) for n in lowering.facts[view.x].shape), 1, 1]
    shape = ([1, 1], [0, 0], [1, 1], 1)
    sums = _sums(lowering, node, view, x, size, filters[:, :, None, None], shape, weights)
    if sums is None:
        return keep(lowering, node)
    unit = 1.0 if view.scale is None else output_unit((view.activation,), view.scale)
    multiplier = _multiplier(lowering, node, view, unit)
    step = None if view.scale is None else ratio(unit, view.scale)
    args = (sums, multiplier, None, 1.0, 0, view.activation, "none", step, view.zero_point)
    pixels = lowering.call(finished, args, node)
    return lowering.call(aten.flatten.using_ints, (pixels, 1), node)


def _multiplier(
    lowering: Lowering, node: fx.Node, view: QuantizedConv2d | QuantizedLinear, unit: float
) -> fx.Node:
    scale = getattr(lowering.source, str(view.weight_scale.target))
    value = multipliers(view.x_scale, scale, unit).view(-1, 1, 1)
    return lowering.constant(f"{node.name}_multiplier", value)


def _sums(
    lowering: Lowering,
    node: fx.Node,
    view: QuantizedConv2d | QuantizedLinear,
    x: Any,
    size: list[int],
    filters: Tensor,
    shape: tuple[list[int], list[int], list[int], int],
    weights: PackedWeights,
) -> fx.Node | None:
    """Sums and bias as float32, rounded once; None where no part of the channels is exact."""
    zero_point, name = view.x_zero_point, str(view.weight.target)
    largest = max(zero_point, 255 - zero_point)
    parts = channel_parts(filters, largest)
    if parts is None:
        lowering.remark(node, "int8 product", "sums of one channel alone are not exact in float32")
        return None
    of_bytes = onednn_multiplies_bytes()
    if not of_bytes:
        x = lowering.call(_centred, (x, zero_point), node)
    arguments: tuple[Any, ...] = shape
    if of_bytes:  # scales of 1 and no zero points, made once
        k = len(filters)
        ones = torch.ones(k, dtype=torch.float32, device="cpu")
        zeros = torch.zeros(k, dtype=torch.int32, device="cpu")
        arguments = (
            zero_point,
            lowering.constant(f"{node.name}_scales", ones),
            lowering.constant(f"{node.name}_zeros", zeros),
            *shape,
        )
    sums = []
    for number, (first, behind) in enumerate(parts):
        part, some = filters, x
        if len(parts) > 1:
            part = filters[:, first:behind].contiguous()
            some = lowering.call(_channels, (x, shape[-1], first, behind), node)
        part_size = [size[0], part.shape[1] * shape[-1], *size[2:]]
        pack = _packed_bytes if of_bytes else _packed_floats
        packed = pack(part, part_size, *shape)
        kept = lowering.constant(
            f"{node.name}_packed_{number}", weights.shared(f"{name}:{first}", packed)
        )
        multiply = _of_bytes if of_bytes else _of_floats
        sums.append(lowering.call(multiply, (some, kept, *arguments), node))
    bias = getattr(lowering.source, str(view.bias.target)).view(-1, 1, 1)
    if len(parts) > 1:
        value = lowering.constant(f"{node.name}_bias", bias)
        return lowering.call(_added_up, (sums, value), node)
    # A bias beyond 2^24 may be no float32: it is one and a rest of a few units.
    rounded = bias.to(torch.float32)
    rest = (bias.double() - rounded.double()).to(torch.float32)
    total = sums[0]
    for name, part in (("rest", rest), ("bias", rounded)):
        if name == "bias" or bool(part.any()):
            value = lowering.constant(f"{node.name}_{name}", part)
            total = lowering.call(_plus_bias, (total, value), node)
    return total


def _packed_bytes(
    weight: Tensor, size: list[int], stride: list[int], padding: list[int], dilation: list[int],
    groups: int,
) -> Tensor:  # fmt: skip
    ones = torch.ones(len(weight), dtype=torch.float32, device="cpu")
    packed: Tensor = torch.ops.onednn.qconv_prepack(
        weight, ones, 1.0, 0, stride, padding, dilation, groups, size
    )
    return packed


def _of_bytes(
    x: Tensor, packed: Tensor, zero_point: int, scales: Tensor, zeros: Tensor, stride: list[int],
    padding: list[int], dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """[N, C, H, W] uint8 and packed int8 filters: [N, K, P, Q] float32."""
    sums: Tensor = torch.ops.onednn.qconv2d_pointwise.default(
        x, 1.0, zero_point, packed, scales, zeros, None, stride, padding, dilation, groups,
        1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip
    return sums


def _packed_floats(
    weight: Tensor, size: list[int], stride: list[int], padding: list[int], dilation: list[int],
    groups: int,
) -> Tensor:  # fmt: skip
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
        weight.to(torch.float32), padding, stride, dilation, groups, size
    )
    return packed


def _of_floats(
    x: Tensor, packed: Tensor, stride: list[int], padding: list[int], dilation: list[int],
    groups: int,
) -> Tensor:  # fmt: skip
    """[N, C, H, W] and packed filters, whole numbers as float32: [N, K, P, Q] float32."""
    sums: Tensor = torch.ops.mkldnn._convolution_pointwise.default(
        x, packed, None, padding, stride, dilation, groups, "none", [], ""
    )
    return sums


def _centred(x: Tensor, zero_point: int) -> Tensor:
    """``x - zero_point`` as float32."""
    y = x.to(torch.float32)
    return y.sub_(zero_point) if zero_point else y


def _channels(x: Tensor, groups: int, first: int, behind: int) -> Tensor:
    """Some channels of each group, channels-last."""
    some: Tensor = x.unflatten(1, (groups, -1))[:, :, first:behind].flatten(1, 2)
    return some.contiguous(memory_format=torch.channels_last)


def _as_pixels(x: Tensor) -> Tensor:
    """[N, C] as [N, C, 1, 1], dense as channels-last."""
    return x.contiguous()[:, :, None, None]


def _plus_bias(sums: Tensor, bias: Tensor) -> Tensor:
    """Rounded once, as both are exact; in the memory of ``sums``."""
    sums.add_(bias)
    return sums


def _added_up(parts: Sequence[Tensor], bias: Tensor) -> Tensor:
    """Integers of any size as float32, half to even."""
    total = parts[0].to(torch.int32)
    for part in parts[1:]:
        total += part.to(torch.int32)
    return total.add_(bias).to(torch.float32)


def finished(
    sums: Tensor, multiplier: Tensor, residual: Tensor | None, factor: float, residual_zero: int,
    before: str, after: str, step: float | None, zero_point: int,
) -> Tensor:  # fmt: skip
    """From sums with bias to what int8's definition makes of them, in the memory of ``sums``.

    Args:
        sums: [N, K, P, Q] float32, of which nobody else holds the memory.
        multiplier: [K, 1, 1] float32.
        residual, factor, residual_zero: uint8 of the same shape, and its scale and zero point.
        before, after: activations in front of the residual and behind it.
        step: by what to multiply to count the result's scale; None leaves float32.
        zero_point: of the result.
    """
    y = ACTIVATIONS[before].in_place(sums.mul_(multiplier))
    if residual is not None:
        # Two roundings: torch's add_ with alpha may multiply and add in one.
        y.add_(_centred(residual, residual_zero).mul_(factor))
    y = ACTIVATIONS[after].in_place(y)
    if step is None:
        return y
    if step != 1.0:
        y.mul_(step)
    y.round_()
    if zero_point:
        y.add_(zero_point)
    return y.clamp_(0, 255).to(torch.uint8)
