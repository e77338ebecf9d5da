"""float16 graphs on processors without arithmetic for it: the same graph in float32.

Inputs and results stay float16, and weights keep their float16 values; what lies between is not
rounded to float16, so that answers are nearer to float64 than float16's own.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fastres.ir.graph import add_constant, arguments, constant, copy_meta
from fastres.ir.precision import retype_node
from fastres.ir.shapes import shapes
from fastres.system import forking

aten = torch.ops.aten

NOTE = (
    "float16 is computed in float32, since this processor's kernels have no float16; inputs, "
    "weights and answers are float16"
)


class Widened:
    """The float32 forms of one model's float16 graphs; each is made once."""

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[fx.GraphModule, fx.GraphModule] = (
            weakref.WeakKeyDictionary()
        )
        self._lock = forking.lock()

    def __call__(self, module: fx.GraphModule, inputs: Sequence[Any]) -> fx.GraphModule:
        """``module`` itself where it has no float16 weights, else its float32 form."""
        if not any(value.dtype == torch.float16 for value in module.buffers()):
            return module
        with self._lock:
            if module not in self._known:
                self._known[module] = _in_float32(module, inputs)
            return self._known[module]


def _in_float32(module: fx.GraphModule, inputs: Sequence[Any]) -> fx.GraphModule:
    facts = shapes(module, inputs)
    wide = fx.GraphModule({}, fx.Graph())
    values: dict[fx.Node, fx.Node] = {}

    for node in module.graph.find_nodes(op="placeholder"):
        values[node] = copy_meta(wide.graph.node_copy(node), node)

    def cast(node: fx.Node, dtype: torch.dtype) -> fx.Node:
        return wide.graph.call_function(aten.to.dtype, (node, dtype))

    for node in module.graph.nodes:
        held = constant(node)
        if node.op == "placeholder":
            if _is_half(facts[node]):
                values[node] = copy_meta(cast(values[node], torch.float32), node)
        elif held is not None:
            value = held.float() if held.dtype == torch.float16 else held
            values[node] = copy_meta(add_constant(wide.graph, str(node.target), value), node)
        elif node.op == "output":
            results = [
                cast(values[each], torch.float16) if _is_half(facts.get(each)) else values[each]
                for each in node.all_input_nodes
            ]
            renamed = dict(zip(node.all_input_nodes, results, strict=True))
            wide.graph.output(fx.node.map_arg(node.args[0], renamed.__getitem__))
        elif node.target is aten.to.dtype and _is_idle(node, facts):
            values[node] = values[arguments(node)[0]]
        else:
            new = copy_meta(wide.graph.node_copy(node, values.__getitem__), node)
            retype_node(new, torch.float16, torch.float32)
            values[node] = new
    wide.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
    wide.recompile()
    return wide


def _is_half(fact: Any) -> bool:
    return isinstance(fact, Tensor) and fact.dtype == torch.float16


def _is_idle(node: fx.Node, facts: dict[fx.Node, Any]) -> bool:
    """Whether a cast is one between what is float32 on both sides now."""
    between = (facts[arguments(node)[0]].dtype, facts[node].dtype)
    return set(between) <= {torch.float16, torch.float32}
