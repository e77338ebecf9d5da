"""Per-channel constants become one scale and shift, and fold; other constants stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.optimizing import nodes, operator_name, optimize
from tests.support.small import Net, assert_right, conv, counts, images, net, optimized

GAIN = torch.tensor([0.5, -1.0, 0.0, 2.0])


def operators(fast: Any) -> list[str]:
    return [operator_name(n) for n in fast.graph_module.graph.nodes if n.op == "call_function"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1)], ids=str)
@pytest.mark.parametrize(
    "function",
    [
        lambda y, c: y * c,
        lambda y, c: c * y,
        lambda y, c: y + c,
        lambda y, c: c + y,
        lambda y, c: y - c,
        lambda y, c: torch.add(y, c, alpha=3),
        lambda y, c: torch.sub(y, c, alpha=-2),
        lambda y, c: y.mul(c).add(c),
        lambda y, c: (y + c) * c - c,
    ],
    ids=["y*c", "c*y", "y+c", "c+y", "y-c", "add alpha", "sub alpha", "scale, shift", "chain"],
)
def test_folded_into_the_convolution_before(shape: tuple[int, ...], function: Any) -> None:
    model = net(
        lambda m, x: torch.relu(function(m.conv(x), m.gain)), conv=conv(), gain=GAIN.view(shape)
    )
    fast = optimized(model)
    assert operators(fast) == ["conv2d"]
    assert fast.report.complete


def test_a_layer_scale_merges_with_its_batch_norm() -> None:
    model = net(
        lambda m, x: torch.relu(x + m.norm(m.conv(x)) * m.gain),
        conv=conv(),
        norm=nn.BatchNorm2d(4),
        gain=GAIN.view(4, 1, 1),
    )
    fast = optimized(model)
    assert operators(fast) == ["conv2d"]
    assert counts(fast, "batch_norm") == (1, 1)
    assert counts(fast, "addition") == (1, 1)


def test_an_input_normalisation_folds_into_a_convolution_that_does_not_pad() -> None:
    model = net(
        lambda m, x: m.conv((x - m.mean) * m.gain),
        conv=conv(padding=0),
        mean=torch.rand(4, 1, 1),
        gain=GAIN.view(4, 1, 1),
    )
    assert operators(optimized(model)) == ["conv2d"]


def test_without_a_convolution_they_are_one_operator() -> None:
    model = net(
        lambda m, x: m.conv(torch.tanh((x - m.mean) * m.gain + m.mean)),
        conv=conv(),
        mean=torch.rand(4, 1, 1),
        gain=GAIN.view(4, 1, 1),
    )
    fast = optimized(model)
    assert operators(fast) == ["scale_shift", "tanh", "conv2d"]


def test_two_batch_norms_are_not_merged_but_each_counted() -> None:
    model = net(
        lambda m, x: m.second(m.first(torch.tanh(m.conv(x)))),
        conv=conv(),
        first=nn.BatchNorm2d(4),
        second=nn.BatchNorm2d(4),
    )
    fast = optimized(model)
    assert counts(fast, "batch_norm") == (0, 2)
    assert {remark.module for remark in fast.report.refused} == {"first", "second"}
    assert len(nodes(fast, "scale_shift")) == 2


def test_not_merged_where_the_value_between_is_read() -> None:
    def function(m: Any, x: Tensor) -> Any:
        scaled = torch.tanh(m.conv(x)) * m.gain
        return scaled * torch.sigmoid(scaled + m.gain)

    fast = optimized(net(function, conv=conv(), gain=GAIN.view(4, 1, 1)))
    assert len(nodes(fast, "scale_shift")) == 2


@pytest.mark.parametrize(
    ("constant", "function", "operator"),
    [
        (torch.rand(4, 1, 1), lambda y, c: c - y, "sub"),
        (torch.rand(4, 1, 1), lambda y, c: y / c, "div"),
        (torch.rand(9, 8), lambda y, c: y * c, "mul"),
        (torch.rand(4, 9, 8), lambda y, c: y + c, "add"),
        (torch.rand(1, 1, 9, 8), lambda y, c: y - c, "sub"),
        (torch.rand(1, 1, 1), lambda y, c: y * c, "mul"),
        (torch.rand(8), lambda y, c: y * c, "mul"),
        (torch.rand(2, 4, 1, 1), lambda y, c: y * c, "mul"),
        (torch.tensor(3.0), lambda y, c: y * c, "mul"),
        (torch.tensor([1, 2, 3, 4]).view(4, 1, 1), lambda y, c: y * c, "mul"),
        (torch.rand(5, 1, 1), lambda y, c: y[:, :1] * c, "mul"),
        (torch.rand(4, 1, 1), lambda y, c: y.mean((2, 3)) * c, "mul"),
        (torch.rand(4, 1, 1), lambda y, c: y.flatten(2)[:, :, :4] * c[:, 0], "mul"),
    ],
    ids=[
        *("reversed subtraction", "division", "pixels", "whole map", "pixels, 4-d", "one number"),
        *("columns", "images", "no dimension", "integers", "broadcasts one channel"),
        *("no feature map", "three dimensions"),
    ],
)
def test_other_constants_stay(constant: Tensor, function: Any, operator: str) -> None:
    model = Net(lambda m, x: function(m.conv(x), m.constant), conv=conv(), constant=constant)
    fast = optimize(model.eval(), images(2), engine="onednn")
    assert_right(model, fast, images(2))
    assert nodes(fast, operator), fast.graph_module.code
    assert counts(fast, "addition") == (0, 0)
    assert [remark.what for remark in fast.report.left] == [str(nodes(fast, operator)[0].target)]


def test_a_constant_on_a_map_of_the_channels_own_size() -> None:
    # [4, 1, 1] on a map of four by four pixels: the channels are not the rows.
    model = Net(lambda m, x: m.conv(x) * m.gain, conv=conv(), gain=torch.rand(4, 1))
    fast = optimized(model.eval(), torch.randn(2, 4, 4, 4))
    assert nodes(fast, "mul")


def test_bfloat16_keeps_the_constants_in_float32() -> None:
    model = net(lambda m, x: torch.tanh(m.conv(x)) * m.gain, conv=conv(), gain=torch.rand(4, 1, 1))
    fast = optimized(model, torch.randn(2, 4, 9, 8), precision="bf16")
    (node,) = nodes(fast, "scale_shift")
    stored = dict(fast.graph_module.named_buffers())
    for argument in node.args[1:3]:
        assert stored[str(argument.target)].dtype == torch.float32  # type: ignore[union-attr]
