"""The last pass: choose precision, own the weights, list what is left.

Weights and activations get the final dtype; a float input is cast on entry and each output back to
the dtype that the model gives. Scale-and-shift constants stay float32 beside 16-bit activations.
Constants are copied, so that the optimised model and the user's share no memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fastres.ir import ops
from fastres.ir.graph import (
    KERNELS_OF_SOME,
    MOVES_DATA,
    add_constant,
    arguments,
    call,
    constant,
    drop_unused_constants,
    is_call,
    label,
    module_of,
    replace,
    value_of,
)
from fastres.ir.precision import retype_node
from fastres.passes.context import Context

aten = torch.ops.aten


def run(module: fx.GraphModule, context: Context, own: torch.dtype) -> None:
    """Finish the graph; ``own`` is the dtype of the user's model.

    Afterwards the graph is linted and compiled, and every buffer is read by a node.
    """
    graph = module.graph
    graph.eliminate_dead_code(is_impure_node=_is_boundary)
    for node in graph.find_nodes(op="call_function", target=ops.scale_shift):
        _centre(node)
    graph.eliminate_dead_code()
    _cast_constants(module, own, context.dtype)
    if context.dtype != own:
        for node in graph.nodes:
            if not _stays_wide(node):
                retype_node(node, own, context.dtype)
        _cast_boundary(graph, own, context.dtype)
    _place_constants(graph)
    drop_unused_constants(module)
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(value_of(node), (Tensor, tuple, list)):
            _list(node, context)
    _rename(module)
    module.graph.lint()
    module.recompile()


def _rename(module: fx.GraphModule) -> None:
    """Give every operator the plain name of its module: a graph never reuses a name it once had."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        if node.target in ops.REFERENCE:
            args = fx.node.map_arg(node.args, values.__getitem__)
            values[node] = call(graph, node.target, args, label(node))
            values[node].meta = dict(node.meta)
        else:
            values[node] = graph.node_copy(node, values.__getitem__)
    module.graph = graph


def _stays_wide(node: fx.Node) -> bool:
    """Whether a node is the softmax that ``optimize`` adds: probabilities are float32 or more."""
    return bool(node.meta.get("added")) and node.target is aten.softmax.int


def _is_boundary(node: fx.Node) -> bool:
    return node.op in ("placeholder", "output")


def _cast_constants(module: fx.GraphModule, own: torch.dtype, dtype: torch.dtype) -> None:
    wide = {
        str(argument.target)
        for node in module.graph.nodes
        if is_call(node, ops.scale_shift)
        for argument in arguments(node)[1:3]
        if isinstance(argument, fx.Node)
    }
    folded = module.meta.get("folded", set())
    lower = {
        str(argument.target): value_of(node).dtype
        for node in module.graph.nodes
        if is_call(node, ops.conv2d, ops.linear) and value_of(node).dtype != own
        for argument in arguments(node)[1:3]
        if isinstance(argument, fx.Node)
    }  # inside torch.autocast
    for name, value in list(module.named_buffers(recurse=False)):
        target = value.dtype
        if name in folded:
            target = lower.get(name, dtype)
        elif target == own:
            target = dtype
        if name in wide and target.itemsize < 4:
            target = torch.float32
        module.register_buffer(name, value.detach().to(target, copy=True).contiguous())


CANCELS = 32.0
"""Ratio of mean to standard deviation beyond which a stand-alone BatchNorm subtracts first."""


def _centre(node: fx.Node) -> None:
    """Where the mean is far larger than the deviation, ``x - mean`` first, and then the scale.

    A channel that is nearly constant (the one before it died in training) has next to no variance
    and a scale in the hundreds; ``x * scale`` and ``mean * scale`` would cancel, and leave their
    rounding errors.
    """
    statistics = node.meta.pop("statistics", None)
    if statistics is None:
        return
    _, beta, mean, variance = statistics
    if not bool((mean.square() > CANCELS**2 * variance).any()):
        return
    x, scale, _, activation = arguments(node)
    graph = node.graph
    with graph.inserting_before(node):
        ones = add_constant(graph, f"{label(node)}_one", torch.ones_like(mean), folded=True)
        minus = add_constant(graph, f"{label(node)}_centre", -mean, folded=True)
        shift = torch.zeros_like(mean) if beta is None else beta
        bias = add_constant(graph, f"{label(node)}_bias", shift, folded=True)
        centred = call(graph, ops.scale_shift, (x, ones, minus, "none"), f"{label(node)}_centred")
        scaled = call(graph, ops.scale_shift, (centred, scale, bias, activation), label(node))
    for key in ("val", "module"):
        centred.meta[key] = node.meta.get(key)
    replace(node, scaled)


def _cast_boundary(graph: fx.Graph, own: torch.dtype, dtype: torch.dtype) -> None:
    last = graph.find_nodes(op="placeholder")[-1]  # a call between inputs could take their names
    for node in list(graph.nodes):
        if node.op == "placeholder" and node.users and _is_float(node, own):
            with graph.inserting_after(last):
                cast = graph.call_function(aten.to.dtype, (node, dtype))
            # An input that the model hands back is handed back as it came.
            node.replace_all_uses_with(
                cast, lambda user: user.target not in (aten.to.dtype, "output")
            )
            cast.meta["module"] = ""
        elif node.op == "output":
            results = [_cast_back(graph, node, result, own) for result in arguments(node)[0]]
            node.args = (tuple(results),)


def _cast_back(graph: fx.Graph, output: fx.Node, result: Any, own: torch.dtype) -> Any:
    if not isinstance(result, fx.Node) or not _is_float(result, own):
        return result
    if result.op == "placeholder":
        return result
    with graph.inserting_before(output):
        cast = graph.call_function(aten.to.dtype, (result, own))
    for key in ("val", "module"):
        cast.meta[key] = result.meta.get(key)
    return cast


def _is_float(node: fx.Node, dtype: torch.dtype) -> bool:
    value = value_of(node)
    return isinstance(value, Tensor) and value.dtype == dtype


def _place_constants(graph: fx.Graph) -> None:
    """Read each constant right before its first reader, so that the code can be read in order."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.op == "get_attr" and node.users:
            min(node.users, key=order.__getitem__).prepend(node)


def _list(node: fx.Node, context: Context) -> None:
    report = context.report
    if node.target in ops.REFERENCE:
        names = [f"{a.target}" for a in arguments(node) if constant(a) is not None]
        report.layers.append(
            (module_of(node), str(node.target), str(context.dtype) if names else "")
        )
    elif node.target not in (*MOVES_DATA, *KERNELS_OF_SOME) and not node.meta.get("added"):
        report.leave(module_of(node), str(node.target), "no operator of fastres covers it")
