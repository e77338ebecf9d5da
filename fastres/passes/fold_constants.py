"""Constant folding, of what depends on weights alone: ``f(w) -> constant``.

Frozen BatchNorms write ``weight * (var + eps).rsqrt()`` into the graph and standardised
convolutions normalise their weight at every call; both become plain weights here. Evaluated in the
model's own dtype, as eager would.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fastres.ir.graph import add_constant, constant, copy_meta, module_of
from fastres.passes.context import Context


def run(module: fx.GraphModule, context: Context) -> None:
    """Replace each tensor computed from constants only by a constant."""
    known: dict[fx.Node, Any] = {}
    for node in list(module.graph.nodes):
        if (value := constant(node)) is not None:
            known[node] = value
        elif _depends_on(node, known):
            with torch.no_grad():
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
                known[node] = node.target(*args, **kwargs)
            if isinstance(known[node], Tensor):
                with module.graph.inserting_before(node):
                    new = add_constant(module.graph, f"{module_of(node)}_{node.name}", known[node])
                node.replace_all_uses_with(copy_meta(new, node))
                known[new] = known[node]
    module.graph.eliminate_dead_code()


def _depends_on(node: fx.Node, known: dict[fx.Node, Any]) -> bool:
    """Whether a node is a deterministic function of known values alone."""
    return (
        node.op == "call_function"
        and bool(node.all_input_nodes)
        and all(parent in known for parent in node.all_input_nodes)
        and torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ())
    )
