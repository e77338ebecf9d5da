"""The views of operators against the operators' own schemas."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import fx

from fastres.ir import ops
from fastres.ir.views import (
    VIEWS,
    Bottleneck,
    Conv2d,
    Linear,
    QuantizedBottleneck,
    QuantizedStem,
    Stem,
    View,
)
from fastres.kernels.spec import BottleneckSpec, ConvSpec, StemSpec


def nodes(*names: str) -> tuple[fx.Graph, list[fx.Node]]:
    graph = fx.Graph()
    return graph, [graph.placeholder(name) for name in names]


def tensor(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.float32, device="meta")


def test_each_operator_has_a_view() -> None:
    assert set(VIEWS) == set(ops.REFERENCE)


@pytest.mark.parametrize("view", VIEWS.values(), ids=lambda view: view.__name__)
def test_fields_are_the_schemas_arguments(view: type[View]) -> None:
    named = [each.name for each in fields(view) if each.name != "node"]
    assert named == [argument.name for argument in view.target._schema.arguments]


def conv() -> Conv2d:
    graph, (x, weight) = nodes("x", "weight")
    args: tuple[Any, ...] = (x, weight, None, None, [2, 1], [1, 2, 3, 4], [1, 1], 2, "none", "relu")
    return Conv2d.of(graph.call_function(ops.conv2d, args))


def test_lists_are_tuples_and_arguments_come_back() -> None:
    view = conv()
    assert (view.stride, view.padding) == ((2, 1), (1, 2, 3, 4))
    assert view.args[4] == (2, 1)
    again = replace(view, residual=view.x)
    again.node.args = again.args
    assert Conv2d.of(again.node) == again != view
    again.node.graph.lint()


def test_another_operators_node_is_refused() -> None:
    with pytest.raises(AssertionError, match="is no"):
        Linear.of(conv().node)


def test_geometry() -> None:
    view = conv()
    facts = {view.x: tensor(5, 8, 9, 11), view.weight: tensor(6, 4, 3, 3)}
    assert view.spec(facts) == ConvSpec(5, 8, 9, 11, 6, 3, 3, (2, 1), (1, 2, 3, 4), (1, 1), 2)
    graph, (x, weight) = nodes("x", "weight")
    linear = Linear.of(graph.call_function(ops.linear, (x, weight, None, "none")))
    rows = linear.spec({x: tensor(3, 4, 7), weight: tensor(5, 7)})
    assert rows == ConvSpec(12, 7, 1, 1, 5, 1, 1)


def test_geometry_of_fused_blocks() -> None:
    graph, (x, weight, expand, residual, shortcut, following) = nodes(*"abcdef")
    args = (x, weight, None, expand, None, residual, shortcut, [2, 2], following, None)
    block = Bottleneck.of(
        graph.call_function(ops.bottleneck, (*args, [2, 2], [1, 1, 1, 1], [1, 1], 1))
    )
    facts = {
        x: tensor(2, 4, 8, 8),
        weight: tensor(4, 4, 3, 3),
        expand: tensor(16, 4, 1, 1),
        residual: tensor(2, 8, 8, 8),
        shortcut: tensor(16, 8, 1, 1),
        following: tensor(6, 16, 1, 1),
    }
    assert block.spec(facts) == BottleneckSpec(
        conv=ConvSpec(2, 4, 8, 8, 4, 3, 3, (2, 2), (1, 1, 1, 1)),
        expand_k=16,
        shortcut=ConvSpec(2, 8, 8, 8, 16, 1, 1, (2, 2)),
        next_k=6,
    )
    graph, (x_, w_, ws, b_, expand_, es, eb, r_, s_, ss, sb, n_, ns, nb) = nodes(*"abcdefghijklmn")
    tail = QuantizedBottleneck.of(
        graph.call_function(
            ops.quantized_bottleneck,
            (
                *(x_, w_, ws, b_, expand_, es, eb, r_, s_, ss, sb, [2, 2], n_, ns, nb),
                *([2, 2], [1, 1, 1, 1], [1, 1], 1, [0.1] * 6, [0] * 6),
            ),
        )
    )
    same = (x, weight, expand, residual, shortcut, following)
    known = dict(zip((x_, w_, expand_, r_, s_, n_), map(facts.__getitem__, same), strict=True))
    assert tail.spec(known) == replace(block.spec(facts), quantized=True)
    alone = replace(block, shortcut_weight=None, next_weight=None)
    assert (alone.spec(facts).shortcut, alone.spec(facts).next_k) == (None, None)
    graph, (x, weight, scale, shift) = nodes(*"abcd")
    rest = (x, weight, None, [2, 2], [3, 3, 3, 3], "relu", [3, 3], [2, 2], [1, 1], scale, shift)
    stem = Stem.of(graph.call_function(ops.conv2d_max_pool2d, rest))
    facts = {x: tensor(2, 32, 30, 3), weight: tensor(8, 3, 7, 7)}
    assert stem.spec(facts) == StemSpec(
        conv=ConvSpec(2, 3, 32, 30, 8, 7, 7, (2, 2), (3, 3, 3, 3)),
        pool_kernel=(3, 3),
        pool_stride=(2, 2),
        pool_padding=(1, 1),
        uint8=True,
    )
    graph, (x, weight, weight_scale, bias) = nodes(*"abcd")
    geometry = ([2, 2], [3, 3, 3, 3], "relu", [3, 3], [2, 2], [1, 1], 0.1, 131, 0.2, 0)
    node = graph.call_function(
        ops.quantized_conv2d_max_pool2d, (x, weight, weight_scale, bias, *geometry)
    )
    known = {x: tensor(2, 3, 32, 30), weight: tensor(8, 3, 7, 7)}
    wanted = replace(stem.spec(facts), uint8=False, quantized=True)
    assert QuantizedStem.of(node).spec(known) == wanted
