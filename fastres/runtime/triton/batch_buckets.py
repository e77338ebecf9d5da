"""Batch buckets: one executable for several batch sizes, filled up to the next size of a list.

Images behind the batch are computed along with whatever they hold, so this is right only for graphs
in which no image sees another; :func:`why_mixed` says where that is not certain.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fastres.ir import ops
from fastres.ir.graph import arguments, module_of
from fastres.kernels.activations import BY_ATEN

aten = torch.ops.aten

_IMAGE_BY_IMAGE = frozenset(
    {
        *ops.REFERENCE,
        aten.to.dtype,
        aten.avg_pool2d.default,
        aten.adaptive_avg_pool2d.default,
        aten.add.Tensor,
        aten.sub.Tensor,
        aten.mul.Tensor,
        aten.div.Tensor,
        *BY_ATEN,
        aten.hardtanh.default,
        aten.sigmoid.default,
        aten.hardsigmoid.default,
        aten.tanh.default,
        aten.gelu.default,
        aten.leaky_relu.default,
        aten.elu.default,
        aten.flatten.using_ints,
        aten.reshape.default,
        operator.getitem,
    }
)
"""Operations that keep images apart, as long as the batch stays the first axis."""


def bucket(sizes: Sequence[int], batch: int) -> int | None:
    """The smallest size that holds the batch; None if none does."""
    return min((size for size in sizes if size >= batch), default=None)


def batch_of(inputs: Sequence[Any]) -> int | None:
    """Images in a call; None where its tensors are not all images, or of different batches."""
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    batches = {int(value.shape[0]) for value in tensors if value.dim() == 4}
    if len(batches) != 1 or any(value.dim() != 4 for value in tensors):
        return None
    return batches.pop()


def filled(inputs: Sequence[Any], size: int) -> list[Any]:
    """The arguments with zeros behind their images."""

    def fill(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        rest = value.new_zeros((size - value.shape[0], *value.shape[1:]))
        return torch.cat([value, rest])

    return [fill(value) for value in inputs]


def why_mixed(module: fx.GraphModule, facts: Mapping[fx.Node, Any], size: int) -> str | None:
    """Why images of one batch might see each other, as a sentence; None if they cannot."""
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        fact = facts[node]
        if not isinstance(fact, (Tensor, list, tuple)):  # a size
            if any(user.target is not aten.reshape.default for user in node.users):
                return f"{module_of(node)} computes with a size"
        elif node.target not in _IMAGE_BY_IMAGE and not _moves_pixels(node):
            return f"{module_of(node)} ({node.target}) may mix images"
        elif any(not _keeps_batch(facts[each], size) for each in (node, *_activations(node))):
            return f"{module_of(node)} ({node.target}) has tensors without the batch"
    return None


def _moves_pixels(node: fx.Node) -> bool:
    """Whether a node is a permutation of the axes behind the batch: NHWC to NCHW."""
    return node.target is aten.permute.default and arguments(node)[1][0] == 0


def _activations(node: fx.Node) -> list[fx.Node]:
    tensors = arguments(node)[:1] if node.target in ops.REFERENCE else arguments(node)
    return [each for each in tensors if isinstance(each, fx.Node) and each.op != "get_attr"]


def _keeps_batch(fact: Any, size: int) -> bool:
    if isinstance(fact, (list, tuple)):
        return all(_keeps_batch(each, size) for each in fact)
    return not isinstance(fact, Tensor) or (fact.dim() > 1 and int(fact.shape[0]) == size)
