"""Compute once what depends on weights alone: ``f(w) -> constant``.

Frozen BatchNorms write ``weight * (var + eps).rsqrt()`` into the graph and standardised
convolutions normalise their weight at every call; both become plain weights here. Evaluated in the
model's own dtype, as eager would.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fastres.graph import add_constant, constant, copy_meta, module_of
from fastres.passes.context import Context


def run(module: fx.GraphModule, context: Context) -> None:
    """Replace each tensor computed from constants only by a constant."""
    for node in list(module.graph.nodes):
        if node.op != "call_function" or not node.all_input_nodes:
            continue
        if any(constant(parent) is None for parent in node.all_input_nodes):
            continue
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            continue
        with torch.no_grad():
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), constant)
            value = node.target(*args, **kwargs)
        if not isinstance(value, Tensor):
            continue
        with module.graph.inserting_before(node):
            new = add_constant(module.graph, f"{module_of(node)}_{node.name}", value)
        node.replace_all_uses_with(copy_meta(new, node))
        module.graph.erase_node(node)
