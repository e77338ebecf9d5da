"""BatchNorm into the convolution (or linear layer) before it.

::

    scale * (w * x + b) + shift = (scale * w) * x + (scale * b + shift)

The arithmetic is float64; the cast to the model's precision comes last. Jacob et al.,
"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
(2018), section 3.2, equation 14.

Checks, each with its sentence: there is a convolution before; its weight is constant; nobody else
reads its output; the folded weight fits the final dtype. Every convolution node gets weights of
its own, so a module that is called twice, each time with another BatchNorm, is folded twice right.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fastres.ir import ops
from fastres.ir.graph import (
    add_constant,
    arguments,
    constant,
    erase_unused,
    is_call,
    label,
    value_of,
)
from fastres.passes.context import Context


def run(module: fx.GraphModule, context: Context) -> None:
    """Fold each scale-and-shift that passes the checks; note on the others why they do not."""
    for node in list(module.graph.nodes):
        if not is_call(node, ops.scale_shift):
            continue
        refusal = _check(node) or _fold(node, context)
        if refusal is not None:
            node.meta["refused"] = refusal
        elif node.meta.get("batch_norm"):
            context.report.done["batch_norm"] += 1
        if refusal is None:
            _remove(node)


def _check(node: fx.Node) -> str | None:
    producer: Any = arguments(node)[0]
    if not is_call(producer, ops.conv2d, ops.linear):
        before = getattr(producer, "target", "a value")
        return f"there is no convolution right before it but {before}"
    if is_call(producer, ops.linear) and value_of(producer).dim() != 2:
        return f"its channels are not the outputs of {label(producer)} before it"
    if is_call(producer, ops.conv2d) and (producer.args[3] or producer.args[8] != "none"):
        return f"{label(producer)} before it already adds a residual"
    if producer.args[-1] != "none":
        return f"{label(producer)} before it already has an activation"
    if len(producer.users) != 1:
        others = [label(user) for user in producer.users if user is not node]
        return f"the output of {label(producer)} is also read by {', '.join(others)}"
    if constant(producer.args[1]) is None:
        return f"the weight of {label(producer)} is computed from the input"
    if producer.args[2] is not None and constant(producer.args[2]) is None:
        return f"the bias of {label(producer)} is computed from the input"
    return None


def _fold(node: fx.Node, context: Context) -> str | None:
    producer: Any = arguments(node)[0]
    weight, scale, shift = (
        constant(a) for a in (producer.args[1], arguments(node)[1], arguments(node)[2])
    )
    assert weight is not None and scale is not None and shift is not None
    bias = constant(producer.args[2])
    folded_weight = weight.to(torch.float64, copy=True).mul_(
        scale.view(-1, *[1] * (weight.dim() - 1))
    )
    folded_bias = shift.clone() if bias is None else bias.double() * scale + shift
    if not (context.fits(folded_weight) and context.fits(folded_bias)):
        return f"the folded weight of {label(producer)} would overflow or underflow {context.dtype}"
    stem = producer.meta.get("module") or producer.name
    old = producer.args[1:3]
    with node.graph.inserting_before(producer):
        new_weight = add_constant(node.graph, f"{stem}_weight_folded", folded_weight, folded=True)
        new_bias = add_constant(node.graph, f"{stem}_bias_folded", folded_bias, folded=True)
    producer.update_arg(1, new_weight)
    producer.update_arg(2, new_bias)
    erase_unused(old)
    return None


def _remove(node: fx.Node) -> None:
    producer: Any = arguments(node)[0]
    for key in ("val", "source"):
        producer.meta[key] = node.meta.get(key)
    constants = arguments(node)[1:3]
    node.replace_all_uses_with(producer)
    node.graph.erase_node(node)
    erase_unused(constants)
