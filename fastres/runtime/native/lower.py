"""A subgraph of the fused graph as the library's operations, before its buffers have sizes.

Which nodes can be part of one is asked first (:func:`refusal`), so that lowering cannot fail.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fastres.dtypes import NATIVE
from fastres.ir import ops
from fastres.runtime.native import (
    rules_channels,
    rules_convolutions,
    rules_images,
    rules_maps,
    rules_norms,
    rules_quantized,
    rules_transposed,
)
from fastres.runtime.native.fuse_maps import fuse_maps
from fastres.runtime.native.operations import LoweredSubgraph
from fastres.runtime.native.subgraph_builder import Facts, Rule, SubgraphBuilder, computed_in

MULTIPLIES = (ops.conv2d, ops.linear, ops.quantized_conv2d, ops.quantized_linear)
"""The operators that are worth a subgraph."""

RULES: dict[Any, Rule] = {
    **rules_convolutions.RULES,
    **rules_quantized.RULES,
    **rules_images.RULES,
    **rules_maps.RULES,
    **rules_norms.RULES,
    **rules_channels.RULES,
    **rules_transposed.RULES,
}


def no_instructions(dtype: torch.dtype) -> str:
    """Why nothing is computed in a dtype on this processor."""
    return f"this processor has no instructions for {dtype} that it knows"


def refusal(node: fx.Node, facts: Facts, dtypes: Collection[torch.dtype] = NATIVE) -> str | None:
    """Why the engine has no operation for a node at this size, or None where it has one.

    Args:
        dtypes: those that this processor has instructions for.
    """
    rule = RULES.get(node.target)
    if rule is None:
        return "the native engine has no such operation"
    if not isinstance(facts.get(node), Tensor) or computed_in(node, facts) not in NATIVE:
        return "the native engine computes with no other numbers than float32, bfloat16 and uint8"
    if computed_in(node, facts) not in dtypes:
        return no_instructions(computed_in(node, facts))
    return rule.refusal(node, facts)


def lower(
    nodes: Sequence[fx.Node],
    outputs: Sequence[tuple[fx.Node, torch.dtype]],
    facts: Facts,
) -> LoweredSubgraph:
    """The operations of a subgraph.

    Args:
        nodes: what it computes, in order.
        outputs: those of them that are read outside, and the dtypes that are wanted there.
        facts: what every node is at this size.
    """
    builder = SubgraphBuilder(nodes, outputs, facts)
    for node in nodes:
        RULES[node.target].lower(builder, node)
    for index, (node, _) in enumerate(outputs):
        builder.export(index, node)
    return fuse_maps(builder.result)
