"""Normalisation by an image's own mean and variance, or a pixel's."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fastres.ir import ops
from fastres.ir.graph import argument_of, arguments, constant
from fastres.ir.views import LayerNorm2d
from fastres.runtime.native.operations import Named
from fastres.runtime.native.rules_maps import FLOATS
from fastres.runtime.native.subgraph_builder import Facts, Rule, SubgraphBuilder, is_batch

aten = torch.ops.aten


def _read(node: fx.Node, facts: Facts) -> tuple[int, Any, Any, Any]:
    """The number of groups, weight, bias and what is added to the variance."""
    args = (*arguments(node), *(None,) * 8)
    if node.target is aten.instance_norm.default:
        return int(facts[args[0]].shape[1]), args[1], args[2], args[7]
    return args[1], args[2], args[3], argument_of(node, 4, "eps", 1e-5)


def _tensors_refusal(x: Any, parameters: tuple[Any, Any]) -> str | None:
    """Of either normalisation: why not with this input, or with this weight and bias."""
    if not is_batch(x) or x.dim() != 4 or x.dtype not in FLOATS:
        return "its input is no batch of images"
    if any(each is not None and constant(each) is None for each in parameters):
        return "its weight is computed from the input"
    return None


def _refusal(node: fx.Node, facts: Facts) -> str | None:
    groups, weight, bias, epsilon = _read(node, facts)
    fault = _tensors_refusal(facts[arguments(node)[0]], (weight, bias))
    if fault is not None:
        return fault
    if node.target is aten.instance_norm.default and not arguments(node)[5]:
        return "it normalises with numbers of its own"
    plain = isinstance(groups, int) and isinstance(epsilon, float)
    return None if plain else "its arguments are computed from the input"


def _lower(builder: SubgraphBuilder, node: fx.Node) -> None:
    groups, weight, bias, epsilon = _read(node, builder.facts)
    builder.append(
        "group_norm",
        node,
        arguments(node)[0],
        groups=groups,
        epsilon=epsilon,
        scale=_vector(weight),
        shift=_vector(bias),
    )


def _vector(node: Any) -> Named | None:
    value = constant(node)
    return None if value is None else (f"{node.target} for {len(value)}", value)


def _layer_norm_refusal(node: fx.Node, facts: Facts) -> str | None:
    norm = LayerNorm2d.of(node)
    return _tensors_refusal(facts[norm.x], (norm.weight, norm.bias))


def _lower_layer_norm(builder: SubgraphBuilder, node: fx.Node) -> None:
    norm = LayerNorm2d.of(node)
    scale, shift = _vector(norm.weight), _vector(norm.bias)
    builder.append("layer_norm", node, norm.x, epsilon=norm.eps, scale=scale, shift=shift)


_RULE = Rule(_refusal, _lower)

RULES: dict[Any, Rule] = {
    aten.group_norm.default: _RULE,
    aten.instance_norm.default: _RULE,
    ops.layer_norm2d: Rule(_layer_norm_refusal, _lower_layer_norm),
}
