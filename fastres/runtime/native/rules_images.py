"""Windows and sizes of images: pooling, padding, resizing."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fastres.ir import ops
from fastres.ir.graph import argument_of, arguments, pair_of
from fastres.ir.views import GlobalAvgPool, MaxPool2d
from fastres.kernels.spec import pair
from fastres.runtime.native.operations import Axis, Window
from fastres.runtime.native.rules_maps import FLOATS
from fastres.runtime.native.subgraph_builder import Facts, Rule, SubgraphBuilder, is_batch

aten = torch.ops.aten

_NO_IMAGES = "its input is no batch of images"


def _is_images(x: Any, floats: bool = True) -> bool:
    return is_batch(x) and x.dim() == 4 and (not floats or x.dtype in FLOATS)


def _max_pool2d_refusal(node: fx.Node, facts: Facts) -> str | None:
    return None if _is_images(facts[MaxPool2d.of(node).x], floats=False) else _NO_IMAGES


def _max_pool2d(builder: SubgraphBuilder, node: fx.Node) -> None:
    pool = MaxPool2d.of(node)
    kernel, stride, padding, dilation = map(
        pair, (pool.kernel, pool.stride, pool.padding, pool.dilation)
    )
    window = Window(kernel, stride, padding, dilation)
    builder.append("max_pool", node, pool.x, window=window)


def _mean_refusal(node: fx.Node, facts: Facts) -> str | None:
    return None if _is_images(facts[GlobalAvgPool.of(node).x]) else _NO_IMAGES


def _mean(builder: SubgraphBuilder, node: fx.Node) -> None:
    builder.append("mean", node, GlobalAvgPool.of(node).x)


def _avg_pool2d_window(node: fx.Node) -> Window | None:
    """None where a size is computed from the image's."""
    kernel = argument_of(node, 1, "kernel_size", ())
    size = pair_of(kernel)
    stride = pair_of(argument_of(node, 2, "stride", ()) or kernel)
    padding = pair_of(argument_of(node, 3, "padding", 0))
    divisor = argument_of(node, 6, "divisor_override", None) or 0
    if size is None or stride is None or padding is None or not isinstance(divisor, int):
        return None
    return Window(
        size,
        stride,
        padding,
        divisor=divisor,
        counts_padding=bool(argument_of(node, 5, "count_include_pad", True)),
    )


def _avg_pool2d_refusal(node: fx.Node, facts: Facts) -> str | None:
    if _avg_pool2d_window(node) is None:
        return "its window is computed from the image's size"
    return None if _is_images(facts[arguments(node)[0]]) else _NO_IMAGES


def _avg_pool2d(builder: SubgraphBuilder, node: fx.Node) -> None:
    builder.append("avg_pool", node, arguments(node)[0], window=_avg_pool2d_window(node))


def _adaptive_refusal(node: fx.Node, facts: Facts) -> str | None:
    return None if _is_images(facts[arguments(node)[0]]) else _NO_IMAGES


def _adaptive(builder: SubgraphBuilder, node: fx.Node) -> None:
    builder.append("avg_pool", node, arguments(node)[0], window=Window(adaptive=True))


def _resize_refusal(node: fx.Node, facts: Facts) -> str | None:
    scales = argument_of(node, 3 if node.target in _ALIGNED else 2, "scale_factors", None)
    if scales is not None and not all(isinstance(scale, (int, float)) for scale in scales):
        return "its scale is computed from the input"
    return None if _is_images(facts[arguments(node)[0]]) else _NO_IMAGES


def _resize(builder: SubgraphBuilder, node: fx.Node) -> None:
    x = arguments(node)[0]
    is_bilinear = node.target in _ALIGNED
    aligned = is_bilinear and bool(argument_of(node, 2, "align_corners", False))
    scales = argument_of(node, 3 if is_bilinear else 2, "scale_factors", None) or (None, None)
    read, written = builder.facts[x].shape[2:], builder.facts[node].shape[2:]
    axes = [
        _bilinear(int(before), int(after), scale, aligned)
        if is_bilinear
        else _nearest(int(before), int(after), scale)
        for before, after, scale in zip(read, written, scales, strict=True)
    ]
    builder.append("resize", node, x, sources=(axes[0], axes[1]))


def _ratio(before: int, after: int, scale: float | None) -> float:
    """Input pixels per output pixel in float32, as torch computes it."""
    if scale is not None and scale > 0:
        return float(_float32(1.0 / scale))
    return float(_float32(before) / _float32(after))


def _float32(number: float) -> torch.Tensor:
    return torch.tensor(number, dtype=torch.float32, device="cpu")


def _nearest(before: int, after: int, scale: float | None) -> Axis:
    ratio = _float32(_ratio(before, after, scale))
    positions = torch.arange(after, dtype=torch.float32, device="cpu") * ratio
    sources = positions.floor().long().clamp(max=before - 1).tolist()
    return Axis(tuple(sources), tuple(sources))


def _bilinear(before: int, after: int, scale: float | None, aligned: bool) -> Axis:
    steps = torch.arange(after, dtype=torch.float32, device="cpu")
    if aligned:
        ratio = _float32(before - 1) / _float32(after - 1) if after > 1 else _float32(0.0)
        positions = steps * ratio
    else:
        positions = (_float32(_ratio(before, after, scale)) * (steps + 0.5) - 0.5).clamp(min=0.0)
    first = positions.floor().long().clamp(max=before - 1)
    second = (first + 1).clamp(max=before - 1)
    share = (positions - first).clamp(0.0, 1.0)
    return Axis(tuple(first.tolist()), tuple(second.tolist()), tuple(share.tolist()))


_ALIGNED = (aten.upsample_bilinear2d.vec,)


def _pad_sizes(node: fx.Node) -> tuple[list[Any], str]:
    """Left, right, top, bottom, and the mode."""
    mode = "constant"
    if node.target is aten.pad.default:
        mode = argument_of(node, 2, "mode", "constant")
    value = argument_of(node, 3 if node.target is aten.pad.default else 2, "value", None)
    sizes = list(arguments(node)[1])
    sizes += [0] * (4 - len(sizes))
    return sizes, "value" if mode == "constant" and value else mode


def _pad_refusal(node: fx.Node, facts: Facts) -> str | None:
    sizes, mode = _pad_sizes(node)
    if len(sizes) != 4 or not all(isinstance(size, int) for size in sizes):
        return "its padding is computed from the image's size, or of other dimensions"
    if mode not in ("constant", "reflect", "replicate", "circular"):
        return "it pads with other numbers than zero"
    return None if _is_images(facts[arguments(node)[0]]) else _NO_IMAGES


def _pad(builder: SubgraphBuilder, node: fx.Node) -> None:
    x = arguments(node)[0]
    (left, right, top, bottom), mode = _pad_sizes(node)
    height, width = map(int, builder.facts[x].shape[2:])
    axes = (_padded(height, top, bottom, mode), _padded(width, left, right, mode))
    builder.append("resize", node, x, sources=axes)


def _padded(size: int, before: int, after: int, mode: str) -> Axis:
    positions = range(-before, size + after)
    if mode == "reflect":
        sources = [size - 1 - abs(size - 1 - abs(position)) for position in positions]
    elif mode == "replicate":
        sources = [min(max(position, 0), size - 1) for position in positions]
    elif mode == "circular":
        sources = [position % size for position in positions]
    else:
        sources = [position if 0 <= position < size else -1 for position in positions]
    return Axis(tuple(sources), tuple(sources))


_RESIZE = Rule(_resize_refusal, _resize)
_PAD = Rule(_pad_refusal, _pad)

RULES: dict[Any, Rule] = {
    ops.max_pool2d: Rule(_max_pool2d_refusal, _max_pool2d),
    ops.global_avg_pool: Rule(_mean_refusal, _mean),
    aten.avg_pool2d.default: Rule(_avg_pool2d_refusal, _avg_pool2d),
    aten.adaptive_avg_pool2d.default: Rule(_adaptive_refusal, _adaptive),
    aten.upsample_nearest2d.vec: _RESIZE,
    aten.upsample_bilinear2d.vec: _RESIZE,
    aten.pad.default: _PAD,
    aten.constant_pad_nd.default: _PAD,
}
