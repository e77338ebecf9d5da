"""BatchNorm into the convolution after it, where padding permits.

::

    w * (scale * x + shift) + b = (w * scale) * x + (b + sum over (C, R, S) of w * shift)

The sums run over the input channels of each filter's group. With padding it would be wrong at the
border: the convolution pads the *normalised* image with zeros, which is not the image padded with
zeros and then normalised, unless the shift is zero.

Checks: a convolution is the only reader; its weight is constant; it does not pad, or the shift is
zero; the folded weight fits the final dtype. What is left after this pass stays a scale and shift,
and its BatchNorms go on the receipt with the reasons of both passes.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from fastres.ir import ops
from fastres.ir.graph import (
    add_constant,
    arguments,
    constant,
    erase_unused,
    is_call,
    label,
    module_of,
)
from fastres.passes.context import Context


def run(module: fx.GraphModule, context: Context) -> None:
    """Fold each scale-and-shift that passes the checks; refuse the other BatchNorms."""
    for node in list(module.graph.nodes):
        if not is_call(node, ops.scale_shift) or node.meta.get("added"):
            continue
        refusal = refusal_of(node) or fold(node, context)
        if not node.meta.get("batch_norm"):
            continue
        if refusal is None:
            context.report.done["batch_norm"] += 1
        else:
            context.report.refuse(
                module_of(node),
                "BatchNorm",
                f"not folded backwards: {node.meta.get('refused')}; nor forwards: {refusal}; "
                "it runs as one scale-and-shift",
            )
    module.graph.eliminate_dead_code()


def refusal_of(node: fx.Node) -> str | None:
    """Why a scale-and-shift cannot be folded into what reads it, or None when it can."""
    readers = list(node.users)
    if len(readers) != 1:
        return f"{len(readers)} operations read it"
    conv: Any = readers[0]
    if not is_call(conv, ops.conv2d) or conv.args[0] is not node:
        return f"it is read by {conv.target}, not by a convolution"
    if constant(conv.args[1]) is None:
        return f"the weight of {label(conv)} is computed from the input"
    if conv.args[2] is not None and constant(conv.args[2]) is None:
        return f"the bias of {label(conv)} is computed from the input"
    if conv.args[3] is node:
        return f"{label(conv)} adds it as a residual too"
    shift = constant(arguments(node)[2])
    assert shift is not None
    if any(conv.args[5]) and bool((shift != 0).any()):
        return f"{label(conv)} pads, and folding the shift would change the border pixels"
    return None


def fold(node: fx.Node, context: Context) -> str | None:
    """Fold a scale-and-shift that :func:`refusal_of` let pass; why not, where it does not fit."""
    conv: Any = next(iter(node.users))
    weight, scale, shift = (
        constant(a) for a in (conv.args[1], arguments(node)[1], arguments(node)[2])
    )
    assert weight is not None and scale is not None and shift is not None
    filters, per_group = weight.shape[:2]
    groups = conv.args[7]
    # Row k of these holds the scales (shifts) of the input channels that filter k sees.
    rows = scale.view(groups, per_group).repeat_interleave(filters // groups, dim=0)
    shifts = shift.view(groups, per_group).repeat_interleave(filters // groups, dim=0)
    folded_weight = weight.double() * rows[:, :, None, None]
    folded_bias = (weight.double().sum((2, 3)) * shifts).sum(1)
    bias = constant(conv.args[2])
    if bias is not None:
        folded_bias = folded_bias + bias.double()
    if not (context.fits(folded_weight) and context.fits(folded_bias)):
        return f"the folded weight of {label(conv)} would overflow or underflow {context.dtype}"
    stem = conv.meta.get("module") or conv.name
    old = [*conv.args[1:3], *arguments(node)[1:3]]
    with conv.graph.inserting_before(conv):
        conv.update_arg(
            1, add_constant(conv.graph, f"{stem}_weight_folded", folded_weight, folded=True)
        )
        conv.update_arg(
            2, add_constant(conv.graph, f"{stem}_bias_folded", folded_bias, folded=True)
        )
    conv.update_arg(0, arguments(node)[0])
    conv.graph.erase_node(node)
    erase_unused(old)
    return None
