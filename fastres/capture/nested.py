"""Nested graphs become part of the graph around them, where that is the same computation.

A ``with`` block in forward that switches gradients or autocast is captured as a graph of its own,
called by a higher-order operator. Switching gradients changes no number. Autocast that is off, or
that is for another device than the model's, changes none either. Autocast that is on casts what its
operators read, by torch's own lists; these casts are written into the graph.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fastres.errors import CaptureError
from fastres.ir.graph import arguments, module_path

aten = torch.ops.aten


def inline(program: ExportedProgram) -> list[str]:
    """Inline every nested graph of a program that :func:`_region` knows, in place.

    Returns:
        Sentences about those that lower precision, for the receipt.

    Raises:
        CaptureError: there is another nested graph (control flow, say), or one that casts in a way
            that a single graph cannot hold; the message names the module.
    """
    notes: list[str] = []
    while calls := [node for node in program.graph.nodes if _graph_of(node) is not None]:
        for node in calls:
            _inline(program, node, notes)
    return notes


def _graph_of(node: fx.Node) -> fx.Node | None:
    """The ``get_attr`` node of the graph that a node calls, if it calls one."""
    if not isinstance(node.target, torch._ops.HigherOrderOperator):
        return None
    graphs = [n for n in node.all_input_nodes if isinstance(_attribute(n), fx.GraphModule)]
    return graphs[0] if graphs else None


def _attribute(node: fx.Node) -> Any:
    owner = node.graph.owning_module
    return getattr(owner, str(node.target), None) if node.op == "get_attr" else None


def _inline(program: ExportedProgram, node: fx.Node, notes: list[str]) -> None:
    name = getattr(node.target, "__name__", str(node.target))
    graph = _graph_of(node)
    assert graph is not None
    where = module_path(node) or "the model"
    if name == "wrap_with_set_grad_enabled":
        cast, inputs = None, arguments(node)[2:]
    elif name == "wrap_with_autocast":
        device, dtype, enabled, _ = arguments(node)[:4]
        inputs = arguments(node)[5:]
        used = {str(v.device.type) for v in _values(inputs) if isinstance(v, Tensor)}
        cast = torch.autocast(device, dtype, enabled) if enabled and device in used else None
    else:
        raise CaptureError(
            f"{where} uses {name}, a nested graph (control flow of torch or another higher-order "
            "operator), which fastres does not take; optimise the parts around it separately"
        )
    if cast is not None:
        notes.append(
            f"{where} computes in {str(dtype).removeprefix('torch.')} inside torch.autocast; the "
            "optimised model does the same there"
        )
    results = _copy(node, _attribute(graph), inputs, cast)
    for user in list(node.users):
        assert user.target is operator.getitem, f"{user} reads a nested graph's results as a whole"
        result = results[arguments(user)[1]]
        program.graph_signature.replace_all_uses(user.name, result.name)
        user.replace_all_uses_with(result)
        node.graph.erase_node(user)
    node.graph.erase_node(node)
    if not graph.users:
        node.graph.erase_node(graph)


def _values(nodes: Any) -> Iterator[Any]:
    return (node.meta.get("val") for node in nodes if isinstance(node, fx.Node))


def _copy(call: fx.Node, module: Any, inputs: Any, cast: Any) -> list[fx.Node]:
    """Copy the nested graph's nodes in front of ``call``; the copies of what it returns."""
    values: dict[fx.Node, Any] = {}
    remaining = iter(inputs)
    with call.graph.inserting_before(call):
        for node in module.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(remaining)
            elif node.op == "output":
                (returned,) = arguments(node)
                return [values.get(r, r) for r in returned]
            elif node.op == "get_attr":
                values[node] = _copy_attribute(call, module, node)
            else:
                values[node] = call.graph.node_copy(node, values.__getitem__)
                if cast is not None and node.op == "call_function":
                    _write_casts(values[node], cast)
    raise AssertionError("a graph ends with its output")


def _copy_attribute(call: fx.Node, module: fx.GraphModule, node: fx.Node) -> fx.Node:
    """A graph or tensor of the nested module, as an attribute of the enclosing module."""
    owner = call.graph.owning_module
    assert owner is not None
    number = 0
    while hasattr(owner, name := f"{str(node.target).replace('.', '_')}_inner{number}"):
        number += 1
    setattr(owner, name, getattr(module, str(node.target)))
    new = call.graph.create_node("get_attr", name)
    new.meta = dict(node.meta)
    return new


class _Casts(TorchDispatchMode):
    """Records the casts of an operator under autocast.

    Attributes:
        dtypes: for the index of an operand, the dtype that it was cast to.
        casts_inside: something other than an operand was cast, in the middle of the operator.
    """

    def __init__(self, operands: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._operands = operands
        self.dtypes: dict[int, torch.dtype] = {}
        self.casts_inside = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._to_copy.default and kwargs.get("dtype") is not None:
            known = [i for i, tensor in enumerate(self._operands) if tensor is args[0]]
            if known:
                self.dtypes[known[0]] = kwargs["dtype"]
            else:
                self.casts_inside = True
        return func(*args, **kwargs)


def _write_casts(node: fx.Node, cast: Any) -> None:
    """Write autocast's casts in front of a copied node; running it on fake tensors shows them."""
    parents = [parent for parent in node.all_input_nodes if isinstance(_value(parent), Tensor)]
    operands = [_value(parent) for parent in parents]
    floating = [tensor for tensor in operands if tensor.is_floating_point()]
    if not floating or not isinstance(node.target, torch._ops.OpOverload):
        return
    if node.target in (
        aten.to.dtype,
        aten.to.dtype_layout,
        aten._to_copy.default,
        aten.type_as.default,
    ):
        return  # a cast of the model's own
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), _value)
    mode: Any = next(tensor.fake_mode for tensor in operands if isinstance(tensor, FakeTensor))
    with mode, _no_guards(mode), torch.no_grad():
        with _Casts(operands) as casts, cast:
            node.target(*args, **kwargs)
        cast_operands = {
            id(operands[i]): operands[i].to(dtype) for i, dtype in casts.dtypes.items()
        }
        cast_args, cast_kwargs = pytree.tree_map(
            lambda leaf: cast_operands.get(id(leaf), leaf), (args, kwargs)
        )
        result = node.target(*cast_args, **cast_kwargs)
    if casts.casts_inside or _dtypes(result) != _dtypes(_value(node)):
        raise CaptureError(
            f"{module_path(node) or 'the model'} calls {node.target} inside torch.autocast, which "
            "casts in the middle of it; turn autocast off around it, or write the casts out"
        )
    for index, dtype in casts.dtypes.items():
        parent = parents[index]
        with node.graph.inserting_before(node):
            new = node.graph.call_function(aten.to.dtype, (parent, dtype))
        new.meta = {**node.meta, "val": cast_operands[id(operands[index])], "lowered": True}
        node.replace_input_with(parent, new)


def _no_guards(mode: Any) -> Any:
    """A context that records no conditions on sizes: the export recorded them already."""
    shape_env = mode.shape_env
    return contextlib.nullcontext() if shape_env is None else shape_env.suppress_guards()


def _value(node: fx.Node) -> Any:
    return node.meta.get("val")


def _dtypes(value: Any) -> list[torch.dtype]:
    leaves = value if isinstance(value, (tuple, list)) else [value]
    return [leaf.dtype for leaf in leaves if isinstance(leaf, Tensor)]
