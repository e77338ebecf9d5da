"""Bias, residual addition and activations into ``fastres::conv2d``; activations into the others.

::

    act(conv(x))              -> conv2d(..., activation=act)
    conv(x) + r               -> conv2d(..., residual=r)
    act(conv(x) + r)          -> conv2d(..., residual=r, activation=act)
    act(conv(x)) + r          -> conv2d(..., pre_activation=act, residual=r)
    act(scale_shift(x)), act(linear(x))  likewise
    relu(x + y)               -> add_relu(x, y)      where no convolution could take the addition
    flatten(global_avg_pool(x)) -> global_avg_pool(x, keepdim=False)

Checks: nobody else reads the value that disappears; both summands have one shape and dtype (no
broadcasting); the addition has no factor; a convolution takes one residual. Where either summand
is a convolution, the one without an activation is preferred, then the one on the main path (whose
input nobody else reads), then the later one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fastres.ir import ops
from fastres.ir.graph import (
    activation_of,
    arguments,
    call,
    is_call,
    label,
    module_of,
    replace,
    same_shape,
)
from fastres.passes.context import Context
from fastres.passes.normalise import is_residual_addition

aten = torch.ops.aten


def run(module: fx.GraphModule, context: Context) -> None:
    """Fuse in graph order, so that each step sees what the one before made."""
    for node in list(module.graph.nodes):
        if activation_of(node) != "none":
            _fuse_activation(node, context)
        elif is_residual_addition(node):
            _fuse_addition(node, context)
        elif is_call(node, aten.flatten.using_ints):
            _flatten_pool(node)
    for node in module.graph.nodes:
        if is_call(node, ops.conv2d):
            context.report.done["convolution"] += 1


def _fuse_activation(node: fx.Node, context: Context) -> None:
    producer: Any = arguments(node)[0]
    name = activation_of(node)
    if is_call(producer, ops.conv2d, ops.scale_shift, ops.linear):
        if producer.args[-1] != "none":
            reason = f"{module_of(producer)} already applies {producer.args[-1]}"
        elif len(producer.users) != 1:
            reason = f"the output of {module_of(producer)} is also read without it"
        else:
            # The fused operator stands where the activation stood, before all of its readers.
            args = (*producer.args[:-1], name)
            _move(producer, node, producer.target, args)
            context.report.done["activation"] += 1
            return
    elif name == "relu" and is_residual_addition(producer) and same_shape(*producer.args[:2]):
        if len(producer.users) == 1 and producer.kwargs.get("alpha", 1) == 1:
            _move(producer, node, ops.add_relu, producer.args[:2])
            for kind in ("activation", "addition"):
                context.report.done[kind] += 1
            context.report.refused = [
                remark for remark in context.report.refused if remark not in _remarks(producer)
            ]
            return
        reason = "the sum before it is also read without it"
    else:
        reason = f"it follows {getattr(producer, 'target', producer)}, which has no fused form"
    context.report.refuse(module_of(node), name, reason)


def _remarks(addition: fx.Node) -> list[Any]:
    return list(addition.meta.get("remarks", []))


def _fuse_addition(node: fx.Node, context: Context) -> None:
    candidates = [a for a in arguments(node)[:2] if is_call(a, ops.conv2d)]
    reason = "neither summand is a convolution"
    fusible: list[Any] = []
    for conv in candidates:
        assert isinstance(conv, fx.Node)
        refusal = _check(node, conv)
        if refusal is None:
            fusible.append(conv)
        else:
            reason = refusal
    if not fusible:
        before = len(context.report.refused)
        context.report.refuse(module_of(node), "residual addition", reason)
        node.meta["remarks"] = context.report.refused[before:]
        return
    order = {other: index for index, other in enumerate(node.graph.nodes)}
    conv = max(fusible, key=lambda c: (c.args[9] == "none", len(c.args[0].users) == 1, order[c]))
    (residual,) = (a for a in arguments(node)[:2] if a is not conv)
    x, weight, bias, _, stride, padding, dilation, groups, _, activation = conv.args
    fused = (x, weight, bias, residual, stride, padding, dilation, groups, activation, "none")
    _move(conv, node, ops.conv2d, fused)
    context.report.done["addition"] += 1


def _check(addition: fx.Node, conv: fx.Node) -> str | None:
    x, y = arguments(addition)[:2]
    if x is y:
        return f"it adds the output of {module_of(conv)} to itself"
    if len(conv.users) != 1:
        return f"the output of {module_of(conv)} is also read by something else"
    if addition.kwargs.get("alpha", 1) != 1:
        return f"it multiplies a summand by {addition.kwargs['alpha']}"
    if not same_shape(x, y):
        return "its summands have different shapes or dtypes"
    if conv.args[3] is not None:
        return f"{module_of(conv)} already takes a residual"
    return None


def _move(old: fx.Node, position: fx.Node, target: Any, args: Any) -> None:
    """Replace the node ``position`` by a call of ``target`` there, and erase the node ``old``."""
    with position.graph.inserting_before(position):
        new = call(position.graph, target, args, label(old))
    module = old.meta.get("module", "")
    replace(position, new)
    new.meta["module"] = module
    if "statistics" in old.meta:  # of a BatchNorm, for the pass `finish`
        new.meta["statistics"] = old.meta["statistics"]
    old.graph.erase_node(old)


def _flatten_pool(node: fx.Node) -> None:
    pool: Any = arguments(node)[0]
    flattens_all = list(arguments(node)[1:]) in ([1], [1, -1])
    if (
        flattens_all
        and is_call(pool, ops.global_avg_pool)
        and pool.args[1]
        and len(pool.users) == 1
    ):
        _move(pool, node, ops.global_avg_pool, (pool.args[0], False))
