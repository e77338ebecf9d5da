"""In-place operations, on views as well: the answers are the model's, by torch's way or ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from tests.support.optimizing import optimize
from tests.support.small import conv, net, optimized

Function = Callable[[Any, Tensor], Any]


def model(function: Function) -> nn.Module:
    return net(function, conv=conv(), two=conv(4, 2))


def ghost(m: Any, x: Tensor) -> Any:
    out = torch.cat([m.conv(x), m.two(x)], 1)[:, :4, :, :]
    out += m.conv(x.relu())
    return m.conv(out.relu_())


def read_before(m: Any, x: Tensor) -> Any:
    whole = m.conv(x)
    total = whole * 2
    part = whole[:, 1:3]
    part.add_(m.two(x))
    return torch.cat([part, total], 1)


def read_behind(m: Any, x: Tensor) -> Any:
    whole = m.conv(x)
    part = whole[:, 1:3]
    part.add_(m.two(x))
    return m.conv(whole) + part.mean(1, keepdim=True)


def other_part_behind(m: Any, x: Tensor) -> Any:
    whole = m.conv(x)
    one, two = whole[:, :2], whole[:, 1:3]
    one.add_(m.two(x))
    return torch.cat([one, two], 1)


def reshaped_before(m: Any, x: Tensor) -> Any:
    whole = m.conv(x)
    flat = whole.flatten(1)
    part = whole[:, 1:3]
    part.mul_(3)
    return flat.sum(1, keepdim=True), part


def part_of_part(m: Any, x: Tensor) -> Any:
    part = m.conv(x)[:, 1:]
    inner = part[:, :2]
    inner.mul_(m.two(x))
    return part.sum(1), inner


def part_of_what_was_written(m: Any, x: Tensor) -> Any:
    whole = m.conv(x).relu_()
    part = whole[:, 1:3]
    part.sub_(m.two(x))
    return m.conv(x) + part.sum(1, keepdim=True)


BY_OURSELVES: list[Function] = [ghost, read_before]
BY_TORCH: list[Function] = [
    *(read_behind, other_part_behind, reshaped_before, part_of_part, part_of_what_was_written),
]


@pytest.fixture
def functionalised(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What torch's own functionalisation was called for."""
    called: list[str] = []
    original = ExportedProgram.run_decompositions

    def run(program: ExportedProgram, *args: Any) -> ExportedProgram:
        called.append("torch")
        result: ExportedProgram = original(program, *args)
        return result

    monkeypatch.setattr(ExportedProgram, "run_decompositions", run)
    return called


@pytest.mark.parametrize("function", BY_OURSELVES, ids=lambda each: each.__name__)
def test_what_only_the_view_reads(function: Function, functionalised: list[str]) -> None:
    optimized(model(function))
    assert functionalised == []


@pytest.mark.parametrize("function", BY_TORCH, ids=lambda each: each.__name__)
def test_what_others_read(function: Function, functionalised: list[str]) -> None:
    optimized(model(function))
    assert functionalised == ["torch"]


def test_a_view_of_the_input() -> None:
    def function(m: Any, x: Tensor) -> Any:
        x[:, :2].add_(m.two(x))
        return m.conv(x)

    written, x = model(function), torch.randn(2, 4, 9, 8)
    fast = optimize(written, x.clone())
    # The model writes into what it is called with: each call gets a copy.
    torch.testing.assert_close(fast(x.clone()), written(x.clone()), rtol=1e-4, atol=1e-5)
