"""An image's few channels filled up with zeros, so that kernels copy several numbers at once.

::

    conv2d(x, weight)    ->    conv2d(pad(x), pad(weight))

    quantized_conv2d(quantize(x), weight)    ->    quantized_conv2d(quantize(pad(x)), pad(weight))

of an argument x of the model whose channels are no multiple of four, where the caller's predicate
finds that it pays. Three channels of 16 bits are copied four bytes at a time, in which addresses
and masks take most of the time; four are copied eight at a time. Zeros times zeros add nothing, so
the answer is the same, and NaN and infinity of the image meet the weights that they met before.

Checks: the convolution is x's only reader (through a cast or what quantises it, perhaps), its
weight is a constant, and it has no groups.

Like :mod:`fastres.runtime.triton.fuse_blocks` it is run by the GPU engine, for one set of input
shapes, on a graph of its own. The padding of x is part of copying the argument in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fastres.ir import ops
from fastres.ir.graph import add_constant, call, erase_unused, module_of
from fastres.ir.views import Conv2d, QuantizedConv2d
from fastres.kernels.spec import ConvSpec

aten = torch.ops.aten

MULTIPLE = 4
"""Channels are filled up to a multiple of so many."""

Pays: TypeAlias = "Callable[[ConvSpec, ConvSpec], bool]"
"""Whether the second convolution, with channels filled up, is faster than the first."""


def run(module: fx.GraphModule, facts: Mapping[fx.Node, Any], pays: Pays) -> bool:
    """Rewrite; whether anything was.

    Args:
        facts: what every node of the graph is: fake tensors of known shape.
        pays: decides about each convolution that it would be right for.
    """
    found = [node for node in module.graph.find_nodes(op="placeholder") if _fill(node, facts, pays)]
    if found:
        module.graph.lint()
        module.recompile()
    return bool(found)


def filled(channels: int) -> int:
    """Channels after filling up; one or two stay: they would be read two or four times over."""
    return channels if channels < MULTIPLE - 1 else -(-channels // MULTIPLE) * MULTIPLE


def added_channels(node: fx.Node) -> int:
    """How many channels of zeros a node adds behind its argument's; 0 if it does something else."""
    if node.target is not aten.constant_pad_nd.default:
        return 0
    sides: Any = node.args[1]
    if len(node.args) != 2 or len(sides) != 6 or not all(type(side) is int for side in sides):
        return 0  # another number than zero, other axes, or sizes that are computed
    return max(int(sides[5]), 0) if not any(sides[:5]) else 0  # less than zero cuts off


def _fill(argument: fx.Node, facts: Mapping[fx.Node, Any], pays: Pays) -> bool:
    source, reader = argument, _only_reader(argument)
    if reader is not None and reader.target is aten.to.dtype:
        source, reader = reader, _only_reader(reader)
    quantized = None
    if reader is not None and reader.target is ops.quantize:
        quantized, reader = reader, _only_reader(reader)
    read = source if quantized is None else quantized
    target = ops.conv2d if quantized is None else ops.quantized_conv2d
    if reader is None or reader.target is not target:
        return False
    conv = Conv2d.of(reader) if quantized is None else QuantizedConv2d.of(reader)
    image, filters = facts[source], conv.filters
    if conv.x is not read or conv.residual is read or filters is None or conv.groups != 1:
        return False
    if not isinstance(image, Tensor) or image.dim() != 4:
        return False
    if quantized is None and image.dtype != filters.dtype:
        return False
    spec = conv.spec({conv.x: image, conv.weight: filters})
    more = filled(spec.c) - spec.c
    if more == 0 or not pays(spec, replace(spec, c=spec.c + more)):
        return False
    graph = argument.graph
    with graph.inserting_before(quantized or reader):
        padded = call(
            graph, aten.constant_pad_nd.default, (source, [0, 0, 0, 0, 0, more]), "filled"
        )
        padded.meta["module"] = module_of(reader)
    with graph.inserting_before(reader):
        wide = F.pad(filters, (0, 0, 0, 0, 0, more))
        wider = add_constant(graph, f"{conv.weight.target}_filled", wide)
    if quantized is None:
        reader.args = replace(conv, x=padded, weight=wider).args
    else:
        quantized.args = (padded, *quantized.args[1:])
        reader.args = replace(conv, weight=wider).args
    erase_unused([conv.weight])
    return True


def _only_reader(node: fx.Node) -> fx.Node | None:
    """The one operator that reads this value; None for several, or where it is a result."""
    if len(node.users) != 1:
        return None
    (reader,) = node.users
    return reader if reader.op == "call_function" else None
