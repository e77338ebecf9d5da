"""A server's life in short: many calls over many shapes leave memory as it was."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import torch.nn.functional as F
from torch import Tensor, nn

import fastres
from fastres.runtime.executable_cache import CAPACITY
from tests.support.optimizing import optimize
from tests.support.small import conv, images, net

# The larger weight has 0.56 MiB: whoever keeps one per call or per shape is far beyond the bound.
CHANNELS = 128
BOUND_MIB = 24.0

SHAPES = [(1 + i % 2, 1 + i % 5, 1 + i // 5) for i in range(50)]


def model() -> nn.Module:
    def function(m: Any, x: Tensor) -> Any:
        y = F.relu(m.norm(m.stem(x)))
        return F.relu(m.conv(y) + y)

    norm = nn.BatchNorm2d(CHANNELS)
    return net(function, stem=conv(4, CHANNELS, 1), norm=norm, conv=conv(CHANNELS, CHANNELS))


def resident_mib() -> float:
    gc.collect()
    return float(psutil.Process().memory_info().rss) / 2**20


def growth_mib(warm: int, calls: int, call: Callable[[int], Any]) -> float:
    """How much the process grows over ``calls`` calls, after ``warm`` of them."""
    for number in range(warm):
        call(number)
    before = resident_mib()
    for number in range(warm, warm + calls):
        call(number)
    return resident_mib() - before


@pytest.mark.campaign
def test_a_thousand_calls_over_fifty_shapes() -> None:
    assert len(set(SHAPES)) == 50 > CAPACITY  # so that executables come and go all the time
    fast = optimize(model(), images(2))

    def call(number: int) -> None:
        batch, height, width = SHAPES[number % len(SHAPES)]
        y = fast(images(batch, height=height, width=width))
        assert y.shape == (batch, CHANNELS, height, width)

    assert growth_mib(50, 1000, call) < BOUND_MIB


@pytest.mark.campaign
def test_shapes_that_never_come_again() -> None:
    fast = optimize(model(), images(2))

    def call(number: int) -> None:
        height, width = 1 + number % 16, 1 + number // 16
        fast(images(1, height=height, width=width))

    # torch keeps what oneDNN prepared for its last 1024 calls of different shape: up to 0.3 MiB for
    # each new shape here, until there are that many. A weight for each would be 72 MiB.
    assert growth_mib(2 * CAPACITY, 4 * CAPACITY, call) < 2 * BOUND_MIB


@pytest.mark.campaign
def test_models_that_come_and_go() -> None:
    def call(_: int) -> None:
        fastres.optimize(model(), images(2))(images(1))

    # Of each, torch.export keeps half a MiB of its own; the weights alone, plain and packed, are
    # more than two.
    assert growth_mib(3, 15, call) < BOUND_MIB


@pytest.mark.campaign
def test_repeated_errors() -> None:
    fast = optimize(model(), images(2))

    def call(number: int) -> None:
        with pytest.raises(ValueError, match="channels"):
            fast(images(1, channels=3, height=5 + number))

    assert growth_mib(20, 100, call) < BOUND_MIB
