"""ATen convolutions other than the two-dimensional one: 1-d, 3-d, transposed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from fastres.export.builder import Builder
from fastres.ir.graph import arguments

aten = torch.ops.aten


def _spread(value: int | Sequence[int], count: int) -> list[int]:
    """torch reads ``3`` and ``[3]`` as that number for each dimension."""
    parts = [value] if isinstance(value, int) else list(value)
    return parts * count if len(parts) == 1 else parts


def _named(b: Builder, node: fx.Node, index: int, role: str) -> str:
    argument = b.argument(index)
    if argument is None:
        return ""
    return b.tensor(argument, hint=f"{node.meta.get('module') or node.name}.{role}")


def _plain_convolution(b: Builder, node: fx.Node, padding: Any, settings: dict[str, Any]) -> str:
    x = arguments(node)[0]
    count = b.rank(node) - 2
    if b.rank(x) != b.rank(b.argument(1)):
        raise b.refusal("its image has no batch dimension")
    dilation = _spread(settings["dilation"], count)
    if padding == "valid":
        before = after = [0] * count
    elif padding == "same":
        kernel = [b.size(b.argument(1), axis + 2) for axis in range(count)]
        if None in kernel:
            raise b.refusal("its padding depends on a filter of unknown size")
        total = [d * (int(k or 0) - 1) for d, k in zip(dilation, kernel, strict=True)]
        before = [part // 2 for part in total]
        after = [part - part // 2 for part in total]
    else:
        before = after = _spread(padding, count)
    return b.emit(
        "Conv",
        b.tensor(x),
        _named(b, node, 1, "weight"),
        _named(b, node, 2, "bias"),
        part="",
        strides=_spread(settings["stride"], count),
        pads=[*before, *after],
        dilations=dilation,
        group=settings["groups"],
    )


def _transposed(
    b: Builder, node: fx.Node, settings: dict[str, Any], padding: Any, beyond: Any
) -> str:
    count = b.rank(node) - 2
    sides = _spread(padding, count)
    return b.emit(
        "ConvTranspose",
        b.tensor(arguments(node)[0]),
        _named(b, node, 1, "weight"),
        _named(b, node, 2, "bias"),
        part="",
        strides=_spread(settings["stride"], count),
        pads=[*sides, *sides],
        output_padding=_spread(beyond, count),
        dilations=_spread(settings["dilation"], count),
        group=settings["groups"],
    )


def _conv(b: Builder, node: fx.Node) -> str:
    settings = {
        "stride": b.argument(3, "stride", 1),
        "dilation": b.argument(5, "dilation", 1),
        "groups": b.argument(6, "groups", 1),
    }
    return _plain_convolution(b, node, b.argument(4, "padding", 0), settings)


def _conv_transpose(b: Builder, node: fx.Node) -> str:
    settings = {
        "stride": b.argument(3, "stride", 1),
        "groups": b.argument(6, "groups", 1),
        "dilation": b.argument(7, "dilation", 1),
    }
    beyond = b.argument(5, "output_padding", 0)
    return _transposed(b, node, settings, b.argument(4, "padding", 0), beyond)


def _convolution(b: Builder, node: fx.Node) -> str:
    _, _, _, stride, padding, dilation, transposed, beyond, groups = arguments(node)
    settings = {"stride": stride, "dilation": dilation, "groups": groups}
    if transposed:
        return _transposed(b, node, settings, padding, beyond)
    return _plain_convolution(b, node, padding, settings)


_Rule = Callable[[Builder, fx.Node], str]
RULES: dict[Any, _Rule] = {
    aten.convolution.default: _convolution,
    **{
        getattr(getattr(aten, name), overload): _conv
        for name in ("conv1d", "conv2d", "conv3d")
        for overload in ("default", "padding")
    },
    aten.conv_transpose1d.default: _conv_transpose,
    aten.conv_transpose2d.input: _conv_transpose,
    aten.conv_transpose3d.input: _conv_transpose,
}
"""Operator -> translation."""
