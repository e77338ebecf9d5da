"""What is computed with channels last becomes convolutions and norms with channels first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.optimizing import operator_name
from tests.support.small import conv, measured, net, optimized


def operators(fast: Any) -> Counter[str]:
    nodes = fast.graph_module.graph.nodes
    return Counter(operator_name(node) for node in nodes if node.op == "call_function")


def last(y: Tensor) -> Tensor:
    return y.permute(0, 2, 3, 1)


def first(y: Tensor) -> Tensor:
    return y.permute(0, 3, 1, 2)


def model(function: Callable[[Any, Tensor], Any]) -> nn.Module:
    parts: dict[str, Any] = {"conv": conv(), "norm": nn.LayerNorm(4), "wide": nn.Linear(4, 7)}
    parts |= {"narrow": nn.Linear(7, 4, bias=False), "scale": torch.randn(4)}
    return net(function, **parts)


WHOLLY: dict[str, tuple[Callable[[Any, Tensor], Any], dict[str, int]]] = {
    "LayerNorm2d": (lambda m, x: first(m.norm(last(m.conv(x)))), {"conv2d": 1, "layer_norm2d": 1}),
    "negative axes": (
        lambda m, x: m.norm(m.conv(x).permute(0, -2, -1, 1)).permute(0, -1, 1, -2),
        {"conv2d": 1, "layer_norm2d": 1},
    ),
    "a block": (
        lambda m, x: x + first(m.narrow(F.gelu(m.wide(m.norm(last(m.conv(x))))))),
        {"conv2d": 3, "layer_norm2d": 1, "gelu": 1},
    ),
    "a constant for each channel": (
        lambda m, x: m.conv(x) + first(m.narrow(m.wide(last(x))) * m.scale),
        {"conv2d": 3},
    ),
    "a sum between": (
        lambda m, x: first((y := last(m.conv(x))) + m.narrow(m.wide(y).relu())),
        {"conv2d": 3},
    ),
    "twice": (
        lambda m, x: first(m.norm(last(first(m.norm(last(m.conv(x))))))),
        {"conv2d": 1, "layer_norm2d": 2},
    ),
}


@pytest.mark.parametrize("name", WHOLLY)
def test_what_moves(name: str) -> None:
    function, wanted = WHOLLY[name]
    fast = optimized(model(function))
    assert operators(fast) == wanted


PARTLY: dict[str, tuple[Callable[[Any, Tensor], Any], dict[str, int]]] = {
    "it is returned with channels last": (
        lambda m, x: m.norm(last(m.conv(x))),
        {"conv2d": 1, "layer_norm2d": 1, "permute": 1},
    ),
    "somebody else reads it": (
        lambda m, x: (first(y := m.norm(last(m.conv(x)))), y.mean(2)),
        {"conv2d": 1, "layer_norm2d": 1, "permute": 1, "mean": 1},
    ),
    "another norm": (
        lambda m, x: first(F.layer_norm(y := last(m.conv(x)), y.shape[2:])),
        {"conv2d": 1, "layer_norm": 1, "permute": 2},
    ),
    "another order of axes": (
        lambda m, x: m.norm(m.conv(x).permute(0, 3, 2, 1)).permute(0, 3, 2, 1),
        {"conv2d": 1, "layer_norm": 1, "permute": 2},
    ),
    "a weight from the input": (
        lambda m, x: first(F.linear(last(m.conv(x)), x.mean((0, 2, 3))[None] * m.scale[:, None])),
        {"conv2d": 1, "linear": 1, "permute": 2},
    ),
    "a constant of another shape": (
        lambda m, x: first(last(m.conv(x)) * m.scale[:1]),
        {"conv2d": 1, "permute": 2},
    ),
}


@pytest.mark.parametrize("name", PARTLY)
def test_what_stays(name: str) -> None:
    function, wanted = PARTLY[name]
    got = operators(optimized(model(function)))
    assert {name: count for name, count in got.items() if name in wanted} == wanted


def test_any_size_and_batch() -> None:
    block = model(WHOLLY["a block"][0])
    fast = optimized(block)
    for shape in ((1, 4, 5, 6), (3, 4, 9, 8), (0, 4, 9, 8), (2, 4, 1, 1)):
        x = torch.randn(shape)
        torch.testing.assert_close(fast(x), block(x), rtol=1e-4, atol=1e-5)


def test_a_weight_is_shared_and_stays_the_users() -> None:
    block = measured(model(WHOLLY["a block"][0]))
    before = {name: value.clone() for name, value in block.state_dict().items()}
    optimized(block)
    for name, value in block.state_dict().items():
        assert torch.equal(value, before[name]), name
