"""Remove nodes that do nothing in inference: dropout, clones, casts to the same dtype.

Identity modules and empty ``nn.Sequential`` leave nothing in a captured graph to begin with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fastres.ir.graph import arguments, module_of, same_shape, value_of
from fastres.passes.context import Context

aten = torch.ops.aten


def _always(node: fx.Node) -> bool:
    return True


def _in_eval_mode(node: fx.Node) -> bool:
    probability, training = arguments(node)[1:3]
    return not training or probability == 0.0


def _changes_nothing(node: fx.Node) -> bool:
    """Whether dtype, device and shape come out as they went in."""
    before, after = value_of(arguments(node)[0]), value_of(node)
    same = same_shape(arguments(node)[0], node)
    return bool(same and before.dtype == after.dtype and before.device == after.device)


_IDLE: dict[Any, Callable[[fx.Node], bool]] = {
    aten.dropout.default: _in_eval_mode,
    aten.feature_dropout.default: _in_eval_mode,
    aten.alpha_dropout.default: _in_eval_mode,
    aten.feature_alpha_dropout.default: _in_eval_mode,
    aten.clone.default: _always,
    aten.contiguous.default: _always,
    aten.detach.default: _always,
    aten.alias.default: _always,
    aten.lift_fresh_copy.default: _always,
    aten.to.dtype: _changes_nothing,
    aten.to.dtype_layout: _changes_nothing,
    aten.to.device: _changes_nothing,
    aten.to.other: _changes_nothing,
    aten.type_as.default: _changes_nothing,
    aten.view_as.default: _changes_nothing,
}


def run(module: fx.GraphModule, context: Context) -> None:
    """Remove idle nodes; a dropout that is active in eval mode too stays, with a note."""
    for node in list(module.graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)  # capture's own check, which would count as a reader
            continue
        idle = _IDLE.get(node.target) if node.op == "call_function" else None
        if idle is None:
            continue
        if idle(node):
            node.replace_all_uses_with(arguments(node)[0])
            module.graph.erase_node(node)
        elif not node.meta.get("added"):
            context.report.notes.append(
                f"{module_of(node)}: {node.target} is active in eval mode too, as in the model"
                if idle is _in_eval_mode
                else f"{module_of(node)}: {node.target} changes the dtype, as in the model"
            )
