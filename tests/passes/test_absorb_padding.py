"""Zero padding before a convolution becomes the convolution's own; other padding does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.optimizing import nodes, operator_name
from tests.support.small import conv, net, optimized


def operators(fast: Any) -> list[str]:
    return [operator_name(n) for n in fast.graph_module.graph.nodes if n.op == "call_function"]


def padding_of(fast: Any) -> list[int]:
    (node,) = nodes(fast, "conv2d")
    sides: Any = node.args[5]
    return list(sides)


# torch's order is (left, right, top, bottom), the operator's (top, left, bottom, right).
@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("sides", "own", "wanted"),
    [
        ((1, 2, 3, 0), 0, [3, 1, 0, 2]),
        ((0, 1, 0, 1), 0, [0, 0, 1, 1]),
        ((0, 1, 0, 1), 1, [1, 1, 2, 2]),
        ((2, 1), 0, [0, 2, 0, 1]),
        ((0, 0, 0, 0), 1, [1, 1, 1, 1]),
        ((0, 0, 0, 1), 0, [0, 0, 1, 0]),
    ],
    ids=str,
)
def test_absorbed(sides: tuple[int, ...], own: int, wanted: list[int]) -> None:
    model = net(
        lambda m, x: torch.relu(m.norm(m.conv(F.pad(x, sides)))),
        conv=conv(padding=own, stride=2),
        norm=nn.BatchNorm2d(4),
    )
    fast = optimized(model)
    assert operators(fast) == ["conv2d"]
    assert padding_of(fast) == wanted


@pytest.mark.parametrize(
    "pad",
    [nn.ZeroPad2d((1, 2, 0, 1)), nn.ConstantPad2d((1, 2, 0, 1), 0.0)],
    ids=["ZeroPad2d", "ConstantPad2d"],
)
def test_padding_modules(pad: nn.Module) -> None:
    fast = optimized(nn.Sequential(pad, conv(padding=0)).eval())
    assert operators(fast) == ["conv2d"]
    assert padding_of(fast) == [0, 1, 1, 2]


def test_two_paddings_in_a_row() -> None:
    fast = optimized(nn.Sequential(nn.ZeroPad2d(1), nn.ZeroPad2d((0, 2, 0, 0)), conv()).eval())
    assert padding_of(fast) == [2, 2, 2, 4]
    assert operators(fast) == ["conv2d"]


def test_a_padding_computed_from_the_size() -> None:
    # As TensorFlow's SAME at stride 2: how many pixels a side gets depends on the image.
    def function(m: Any, x: Tensor) -> Any:
        return m.conv(F.pad(x, (0, x.shape[3] // 3, 1, x.shape[2] % 2)))

    fast = optimized(net(function, conv=conv(padding=0, stride=2)))
    assert nodes(fast, "pad", "constant_pad_nd")


@pytest.mark.parametrize("value", [1.5, -1.0, float("inf"), float("-inf")])
def test_not_with_another_value(value: float) -> None:
    model = net(lambda m, x: m.conv(F.pad(x, (1, 1, 1, 1), value=value)), conv=conv(padding=0))
    fast = optimized(model)
    assert nodes(fast, "pad", "constant_pad_nd")
    assert padding_of(fast) == [0, 0, 0, 0]


def test_not_where_it_crops() -> None:
    fast = optimized(net(lambda m, x: m.conv(F.pad(x, (-1, 1, 0, -2))), conv=conv()))
    assert nodes(fast, "pad", "constant_pad_nd")
    assert padding_of(fast) == [1, 1, 1, 1]


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_not_in_another_mode(mode: str) -> None:
    fast = optimized(net(lambda m, x: m.conv(F.pad(x, (1, 2, 1, 1), mode=mode)), conv=conv()))
    assert padding_of(fast) == [1, 1, 1, 1]
    assert len(operators(fast)) > 1


def test_not_of_the_channels() -> None:
    model = net(lambda m, x: m.conv(F.pad(x, (0, 0, 0, 0, 1, 1))), conv=conv(6))
    fast = optimized(model)
    assert nodes(fast, "pad", "constant_pad_nd")
    assert padding_of(fast) == [1, 1, 1, 1]


def test_not_with_a_second_reader() -> None:
    def function(m: Any, x: Tensor) -> Any:
        padded = F.pad(x, (1, 1, 1, 1))
        return m.conv(padded) + padded[:, :, 1:-1, 1:-1]

    fast = optimized(net(function, conv=conv(padding=0)))
    assert len(nodes(fast, "pad", "constant_pad_nd")) == 1


def test_not_into_a_pooling() -> None:
    # Pooling pads with minus infinity: with zeros, negative borders would become zero.
    model = net(lambda m, x: F.max_pool2d(F.pad(m.conv(x), (1, 1, 1, 1)), 3, 2), conv=conv())
    fast = optimized(model)
    (pool,) = nodes(fast, "max_pool2d")
    assert pool.args[3] == [0, 0]
    assert nodes(fast, "pad", "constant_pad_nd")


def test_norm_between_padding_and_convolution() -> None:
    # The norm sees the zeros and shifts them: the convolution must not pad them anew.
    model = net(
        lambda m, x: m.conv(m.norm(F.pad(x, (1, 1, 1, 1)))),
        conv=conv(padding=0),
        norm=nn.BatchNorm2d(4),
    )
    fast = optimized(model)
    assert fast.report.done["batch_norm"] == 0 or padding_of(fast) == [0, 0, 0, 0]
