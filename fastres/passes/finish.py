"""The last pass: cast to the final precision, copy the weights, report every operator that is left.

Weights and activations get the final dtype; a float input is cast on entry and each output back to
the dtype that the model gives. Scale-and-shift constants stay float32 beside 16-bit activations,
and so does what :mod:`fastres.passes.wide_head` names.
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
    is_added_softmax,
    is_call,
    label,
    module_of,
    replace,
    value_of,
)
from fastres.ir.precision import retype_node
from fastres.passes import wide_head
from fastres.passes.context import Context

aten = torch.ops.aten


def run(module: fx.GraphModule, context: Context, model_dtype: torch.dtype) -> None:
    """Finish the graph; ``model_dtype`` is the dtype of the user's model.

    Afterwards the graph is linted and compiled, and every buffer is read by a node.
    """
    graph = module.graph
    graph.eliminate_dead_code(is_impure_node=_is_boundary)
    for node in graph.find_nodes(op="call_function", target=ops.scale_shift):
        _centre(node)
    graph.eliminate_dead_code()
    drop_unused_constants(module)  # or what was folded would be copied, only to be dropped
    wide = wide_head.head(graph) if context.has_wide_head else set()
    _cast_constants(module, model_dtype, context.dtype, wide_head.constants(wide))
    for node in graph.nodes:
        dtype = torch.float32 if node in wide else context.dtype
        if dtype != model_dtype and not is_added_softmax(node):
            retype_node(node, model_dtype, dtype)
    if context.dtype != model_dtype:
        _cast_inputs(graph, model_dtype, context.dtype)
    wide_head.cast_into(graph, wide)
    _cast_results(graph, model_dtype, context.dtype, wide)
    _move_constants_to_readers(graph)
    drop_unused_constants(module)
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(value_of(node), (Tensor, tuple, list)):
            _report_layer(node, context, wide)
    _rename(module)
    module.graph.lint()
    module.recompile()


def _rename(module: fx.GraphModule) -> None:
    """Copy the graph so that every operator has the name of its module, without a suffix.

    A graph never reuses a name it once had, so that replaced nodes leave ``conv1_1`` behind.
    """
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


def _is_boundary(node: fx.Node) -> bool:
    return node.op in ("placeholder", "output")


def _cast_constants(
    module: fx.GraphModule, model_dtype: torch.dtype, dtype: torch.dtype, wide: set[str]
) -> None:
    float32_names = wide | {
        str(argument.target)
        for node in module.graph.nodes
        if is_call(node, ops.scale_shift)
        for argument in arguments(node)[1:3]
        if isinstance(argument, fx.Node)
    }
    folded = module.meta.get("folded", set())
    autocast_dtypes = {
        str(argument.target): value_of(node).dtype
        for node in module.graph.nodes
        if is_call(node, ops.conv2d, ops.linear) and value_of(node).dtype != model_dtype
        for argument in arguments(node)[1:3]
        if isinstance(argument, fx.Node)
    }  # inside torch.autocast
    names = [name for name, _ in module.named_buffers(recurse=False)]
    for name in names:  # one by one: a folded weight in float64 is gone before the next is cast
        value = module.get_buffer(name)
        target = value.dtype
        if name in folded:
            target = autocast_dtypes.get(name, dtype)
        elif target == model_dtype:
            target = dtype
        if name in float32_names and target.is_floating_point and target.itemsize < 4:
            target = torch.float32
        module.register_buffer(name, value.detach().to(target, copy=True).contiguous())


CANCELS = 32.0
"""Ratio of mean to standard deviation beyond which a stand-alone BatchNorm subtracts first."""


def _centre(node: fx.Node) -> None:
    """Subtract the mean before scaling where it is far larger than the standard deviation.

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


_READS_AS_IT_CAME = (aten.to.dtype, aten.sym_size.int, "output")


def _cast_inputs(graph: fx.Graph, model_dtype: torch.dtype, dtype: torch.dtype) -> None:
    last = graph.find_nodes(op="placeholder")[-1]  # a call between inputs could take their names
    for node in list(graph.nodes):
        if node.op == "placeholder" and node.users and _is_float(node, model_dtype):
            with graph.inserting_after(last):
                cast = graph.call_function(aten.to.dtype, (node, dtype))
            # An input that the model hands back is handed back as it came; its sizes stay its own.
            node.replace_all_uses_with(cast, lambda user: user.target not in _READS_AS_IT_CAME)
            cast.meta["module"] = ""


def _cast_results(
    graph: fx.Graph, model_dtype: torch.dtype, dtype: torch.dtype, wide: set[fx.Node]
) -> None:
    output = graph.output_node()
    results = []
    for result in arguments(output)[0]:
        made = torch.float32 if result in wide else dtype
        if made != model_dtype:
            result = _cast_back(graph, output, result, model_dtype)
        results.append(result)
    output.args = (tuple(results),)


def _cast_back(graph: fx.Graph, output: fx.Node, result: Any, model_dtype: torch.dtype) -> Any:
    if not isinstance(result, fx.Node) or not _is_float(result, model_dtype):
        return result
    if result.op == "placeholder":
        return result
    with graph.inserting_before(output):
        cast = graph.call_function(aten.to.dtype, (result, model_dtype))
    for key in ("val", "module"):
        cast.meta[key] = result.meta.get(key)
    return cast


def _is_float(node: fx.Node, dtype: torch.dtype) -> bool:
    value = value_of(node)
    return isinstance(value, Tensor) and value.dtype == dtype


def _move_constants_to_readers(graph: fx.Graph) -> None:
    """Read each constant right before its first reader, so that the code can be read in order."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.op == "get_attr" and node.users:
            min(node.users, key=order.__getitem__).prepend(node)


def _report_layer(node: fx.Node, context: Context, wide: set[fx.Node]) -> None:
    report = context.report
    if node.target in ops.REFERENCE:
        names = [f"{a.target}" for a in arguments(node) if constant(a) is not None]
        made = torch.float32 if node in wide else context.dtype
        report.layers.append((module_of(node), str(node.target), str(made) if names else ""))
    elif node.target not in (*MOVES_DATA, *KERNELS_OF_SOME) and not node.meta.get("added"):
        report.leave(module_of(node), str(node.target), "no operator of fastres covers it")
