"""Zero padding moves into the convolution after it: ``conv(pad(x, p)) -> conv(x, +p)``.

Exact, since a convolution pads with zeros too. TensorFlow's SAME padding at stride 2 (one pixel
more at bottom and right) arrives in PyTorch models as ``F.pad`` and disappears here.

Checks: the padding is constant and zero, on height and width only, not a cropping; the convolution
is its only reader.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fastres.ir import ops
from fastres.ir.graph import argument_of, arguments, is_call
from fastres.passes.context import Context

aten = torch.ops.aten


def run(module: fx.GraphModule, context: Context) -> None:
    """Rewrite every padded convolution that passes the checks."""
    for conv in list(module.graph.nodes):
        if not is_call(conv, ops.conv2d):
            continue
        while _absorb(conv):  # there may be several in a row
            pass


def _absorb(conv: fx.Node) -> bool:
    """Take over the padding right before ``conv``, if there is one that it may."""
    pad, padding = arguments(conv)[0], arguments(conv)[5]
    sides = _zero_sides(pad)
    if sides is None or len(pad.users) != 1:
        return False
    conv.update_arg(0, pad.args[0])
    conv.update_arg(5, [a + b for a, b in zip(padding, sides, strict=True)])
    conv.graph.erase_node(pad)
    return True


def _zero_sides(node: Any) -> list[int] | None:
    """(top, left, bottom, right) of a zero padding of an image; None for anything else."""
    if is_call(node, aten.constant_pad_nd.default):
        value = node.args[2] if len(node.args) > 2 else 0
    elif is_call(node, aten.pad.default):
        mode = argument_of(node, 2, "mode", "constant")
        if mode != "constant":
            return None
        value = argument_of(node, 3, "value", None)
    else:
        return None
    sides = list(node.args[1])
    non_negative = all(isinstance(side, int) and side >= 0 for side in sides)
    if value not in (None, 0, 0.0) or not non_negative or len(sides) > 4:
        return None
    left, right, top, bottom = sides + [0] * (4 - len(sides))
    return [top, left, bottom, right]
