"""Channels of zeros behind an image's own: where they are added, and every near miss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastres.ir.propagate import propagate
from fastres.kernels.spec import ConvSpec
from fastres.runtime.triton import fill_channels, fuse_blocks
from tests.support.optimizing import operator_name, optimize
from tests.support.small import Net, conv, images


class Filled:
    """A network after the pass."""

    def __init__(self, model: nn.Module, *inputs: Any, pays: bool = True, **options: Any) -> None:
        example = inputs if len(inputs) > 1 else inputs[0]
        before = optimize(model.eval(), example, engine="eager", **options).graph_module
        self.module = fuse_blocks.copy(before)
        self.asked: list[tuple[ConvSpec, ConvSpec]] = []

        def ask(narrow: ConvSpec, wide: ConvSpec) -> bool:
            self.asked.append((narrow, wide))
            return pays

        weights = set(self.module._buffers)
        self.changed = fill_channels.run(self.module, propagate(self.module, inputs), ask)
        assert self.changed == (self.paddings == 1) == (set(self.module._buffers) > weights)
        with torch.no_grad():
            for got, wanted in zip(self.module(*inputs), before(*inputs), strict=True):
                assert got.dtype == wanted.dtype
                torch.testing.assert_close(got, wanted, equal_nan=True)

    @property
    def paddings(self) -> int:
        return sum(operator_name(n) == "constant_pad_nd" for n in self.module.graph.nodes)


def stem(channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 8, 7, 2, 3), nn.ReLU(), nn.Conv2d(8, 3, 3))


@pytest.mark.parametrize(
    ("channels", "filled"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (7, 8), (8, 8), (9, 12)]
)
def test_to_the_next_multiple_of_four(channels: int, filled: int) -> None:
    assert fill_channels.filled(channels) == filled
    found = Filled(stem(channels), images(2, channels=channels, height=20, width=24))
    assert found.changed == (filled != channels)
    if found.changed:
        ((narrow, wide),) = found.asked
        assert (narrow.c, wide.c, narrow.k, wide.h) == (channels, filled, 8, 20)


def test_through_a_cast_of_the_argument() -> None:
    assert Filled(stem(3), images(2, channels=3, height=20), precision="bf16").changed


def test_nan_and_infinity_stay_where_they_were() -> None:
    x = images(2, channels=3, height=20)
    x[0, 1, 4, 4], x[1, 0, 0, 0] = torch.nan, torch.inf
    assert Filled(stem(3), x).changed


def test_only_where_it_pays() -> None:
    found = Filled(stem(3), images(2, channels=3, height=20), pays=False)
    assert not found.changed
    assert len(found.asked) == 1


def twice(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.conv(x)
    return y + x.mean()


def returned(m: Any, x: Tensor) -> Any:
    return m.conv(x), x


def added(m: Any, x: Tensor) -> Tensor:
    return F.relu(m.conv(x) + x)


def computed(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.conv(x * 2)
    return y


@pytest.mark.parametrize("function", [twice, returned, added, computed])
def test_not_where_the_image_is_read_otherwise_or_computed(function: Any) -> None:
    found = Filled(Net(function, conv=conv(3, 3)), images(2, channels=3))
    assert not found.changed
    assert found.asked == []


def test_not_with_groups() -> None:
    found = Filled(nn.Sequential(nn.Conv2d(3, 6, 3, groups=3)), images(2, channels=3))
    assert not found.changed


def test_what_adds_channels() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    pad = torch.ops.aten.constant_pad_nd.default
    assert fill_channels.added_channels(graph.call_function(pad, (x, [0, 0, 0, 0, 0, 2]))) == 2
    assert fill_channels.added_channels(graph.call_function(pad, (x, [0] * 5 + [x]))) == 0
    for sides in (
        [0, 0, 0, 0, 0, -1],
        [0, 0, 0, 0, 2, 2],
        [1, 0, 0, 0, 0, 2],
        [0, 0, 0, 2],
        [0] * 7 + [2],
    ):
        assert fill_channels.added_channels(graph.call_function(pad, (x, sides))) == 0
    ones = graph.call_function(pad, (x, [0, 0, 0, 0, 0, 2], 1.0))
    assert fill_channels.added_channels(ones) == 0
    assert fill_channels.added_channels(x) == 0
