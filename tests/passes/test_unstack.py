"""Maps that were stacked along an axis of their own are computed beside each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.optimizing import operator_name
from tests.support.small import conv, net, optimized

FIVE_AXES = {"stack", "reshape", "view", "sum", "softmax", "transpose"}


def operators(fast: Any) -> Counter[str]:
    nodes = fast.graph_module.graph.nodes
    return Counter(operator_name(node) for node in nodes if node.op == "call_function")


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


def selective(m: Any, x: Tensor, paths: int = 2) -> Tensor:
    """A selective kernel: branches weighted by a softmax of what their sum says."""
    maps = torch.stack([m.one(x), m.two(x), m.one(x.relu())][:paths], 1)
    weights = m.choose(pooled(maps.sum(1))) if paths == 2 else m.more(pooled(maps.sum(1)))
    weights = weights.view(x.shape[0], paths, 4, 1, 1).softmax(1)
    result: Tensor = (maps * weights).sum(1)
    return result


def split_attention(m: Any, x: Tensor, groups: int) -> Tensor:
    """ResNeSt's: the groups of one convolution are the branches."""
    wide = m.wide(x)
    n, channels, height, width = wide.shape
    maps = wide.reshape(n, 2, channels // 2, height, width)
    weights = m.choose(pooled(maps.sum(dim=1)))
    weights = weights.view(n, groups, 2, -1).transpose(1, 2).softmax(dim=1).reshape(n, -1)
    weights = weights.view(n, -1, 1, 1).reshape(n, 2, channels // 2, 1, 1)
    result: Tensor = (maps * weights).sum(dim=1)
    return result


def model(function: Callable[[Any, Tensor], Any]) -> nn.Module:
    parts = {"one": conv(), "two": conv(kernel=5), "wide": conv(4, 8), "choose": conv(4, 8, 1)}
    return net(function, **parts, more=conv(4, 12, 1))


WHOLLY: dict[str, Callable[[Any, Tensor], Any]] = {
    "a sum of maps": lambda m, x: torch.stack([m.one(x), m.two(x), x], 1).sum(1),
    "a sum of channels": lambda m, x: m.wide(x).reshape(x.shape[0], 2, 4, *x.shape[2:]).sum(1),
    "a negative axis": lambda m, x: torch.stack([m.one(x), m.two(x)], 1).sum(-4),
    "a selective kernel": selective,
    "split attention": lambda m, x: split_attention(m, x, 1),
    "split attention of two groups": lambda m, x: split_attention(m, x, 2),
}


@pytest.mark.parametrize("name", WHOLLY)
def test_no_fifth_axis_is_left(name: str) -> None:
    assert not FIVE_AXES & set(operators(optimized(model(WHOLLY[name]))))


STAYS: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "a softmax of three": (lambda m, x: selective(m, x, 3), "softmax"),
    "another axis": (lambda m, x: torch.stack([m.one(x), m.two(x)], 2).sum(2), "stack"),
    "the channels of the maps": (lambda m, x: torch.stack([m.one(x), m.two(x)], 1).sum(2), "sum"),
    "an axis that stays": (
        lambda m, x: torch.stack([m.one(x), m.two(x)], 1).sum(1, keepdim=True),
        "sum",
    ),
    "channels in another order": (
        lambda m, x: m.wide(x).reshape(x.shape[0], 4, 2, *x.shape[2:]).sum(2),
        "sum",
    ),
    "another operation between": (
        lambda m, x: torch.stack([m.one(x), m.two(x)], 1).cumsum(1).sum(1),
        "cumsum",
    ),
    "a product with one map": (
        lambda m, x: (torch.stack([m.one(x), m.two(x)], 1) * m.one(x).unsqueeze(1)).sum(1),
        "stack",
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_stays(name: str) -> None:
    function, operator = STAYS[name]
    assert operators(optimized(model(function)))[operator]


def test_weights_far_apart() -> None:
    """A softmax of large numbers neither overflows nor loses the smaller weight's sign."""
    function = lambda m, x: selective(m, x * 200)  # noqa: E731 - as the others
    fast = optimized(model(function))
    assert not FIVE_AXES & set(operators(fast))


def test_nothing_made_in_vain_stays() -> None:
    fast = optimized(model(STAYS["a product with one map"][0]))
    nodes = [node for node in fast.graph_module.graph.nodes if node.op == "call_function"]
    assert all(node.users for node in nodes)
