"""The end of a bfloat16 network on CPUs: its last pooling and classifier compute in float32.

They are less than a thousandth of ResNet-50's multiplications, and the pooled values, the
classifier's weights and the logits would be rounded behind everything that could even errors out.
Before the last pass, which casts, this module says which nodes stay in float32; afterwards it casts
what they read.
"""

from __future__ import annotations

from collections.abc import Set

import torch
from torch import Tensor, fx

from fastres.ir import ops
from fastres.ir.graph import MOVES_DATA, constant, is_call, value_of
from fastres.ir.views import Conv2d

aten = torch.ops.aten


def is_wanted(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether graphs of a dtype on a device keep their heads in float32.

    On GPUs, where batches are large and float32 products slow, they do not.
    """
    return dtype == torch.bfloat16 and device.type == "cpu"


def head(graph: fx.Graph) -> set[fx.Node]:
    """The last linear layers, what pools for them, and what moves values from there to the end."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        behind = [user for user in node.users if not user.meta.get("added")]
        inner = [user for user in behind if user in found]
        ends = all(user.op == "output" or user in found for user in behind)
        if behind and ends and _may_belong(node, inner):
            found.add(node)
    read = {each for node in found for each in node.all_input_nodes if constant(each) is not None}
    shared = any(user not in found for each in read for user in each.users)
    return set() if shared or all(node.target in MOVES_DATA for node in found) else found


def _may_belong(node: fx.Node, behind: list[fx.Node]) -> bool:
    """Whether a node of which only the head's nodes ``behind`` read belongs to it as well."""
    last = not any(_multiplies(each) or each.target is ops.global_avg_pool for each in behind)
    if _multiplies(node):
        return last
    value = value_of(node)
    is_single = isinstance(value, Tensor) and all(size == 1 for size in value.shape[2:])
    belongs = is_call(node, ops.global_avg_pool, ops.layer_norm2d, *MOVES_DATA)
    return belongs and is_single


def _multiplies(node: fx.Node) -> bool:
    """Whether a node is a classifier: a linear layer, or a convolution of one pixel's channels."""
    if is_call(node, ops.linear):
        return True
    if not is_call(node, ops.conv2d):
        return False
    conv = Conv2d.of(node)
    return is_call(conv.x, ops.global_avg_pool) and conv.residual is None


def constants(nodes: Set[fx.Node]) -> set[str]:
    """Names of the constants that they read."""
    return {
        str(each.target)
        for node in nodes
        for each in node.all_input_nodes
        if constant(each) is not None
    }


def cast_into(graph: fx.Graph, nodes: Set[fx.Node]) -> None:
    """Let these nodes read float32."""
    casts: dict[fx.Node, fx.Node] = {}
    for node in [node for node in graph.nodes if node in nodes]:
        for source in node.all_input_nodes:
            value = value_of(source)
            is_float = isinstance(value, Tensor) and value.is_floating_point()
            if source in nodes or constant(source) is not None or not is_float:
                continue
            if source not in casts:
                with graph.inserting_before(node):
                    casts[source] = graph.call_function(aten.to.dtype, (source, torch.float32))
                casts[source].meta["module"] = node.meta.get("module", "")
            node.replace_input_with(source, casts[source])
