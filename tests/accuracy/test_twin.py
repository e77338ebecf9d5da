"""The model in another precision, its parameters converted as they are read."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastres.accuracy.reference import InPrecision
from fastres.accuracy.twin import lean_twin, whole_twin
from tests.support.oracle import unchanged
from tests.support.small import conv, images, net


def by_name(m: Any, x: Tensor) -> Any:
    return m.second(torch.relu(m.norm(m.first(x))))


def by_the_weights_dtype(m: Any, x: Tensor) -> Any:
    return m.second(x.to(next(m.parameters()).dtype)) * m.first.weight.flatten()[0]


def by_all_parameters(m: Any, x: Tensor) -> Any:
    return m.second(m.first(x)) + sum(p.sum() for p in m.parameters())


def by_functions(m: Any, x: Tensor) -> Any:
    bias = dict(m.named_parameters())["first.bias"]
    return nn.functional.conv2d(x, m.first.weight, bias, padding=1)


FUNCTIONS = [by_name, by_the_weights_dtype, by_all_parameters, by_functions]


def network(function: Callable[[Any, Tensor], Any] = by_name) -> nn.Module:
    torch.manual_seed(0)
    shared = conv()
    model = net(function, first=shared, norm=nn.BatchNorm2d(4), second=conv(), third=shared)
    shared.weight.data = shared.weight.data.to(memory_format=torch.channels_last)
    return model


class Hoarder(nn.Module):
    """Keeps its parameter under a second name that no module knows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv()
        self.scale = nn.Parameter(torch.full((4, 1, 1), 1 / 3, dtype=torch.float32, device="cpu"))
        self.hoard = [self.scale]

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.stem(x) * self.hoard[0]
        return result


class Recurrent(nn.Module):
    """An LSTM, which keeps its weights in a list, over the pixels of a convolution's result."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv()
        self.lstm = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        return self.lstm(self.stem(x).flatten(2).transpose(1, 2))[0]


class Selfish(nn.Module):
    """Writes into its own weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.stem.weight.mul_(2)
        result: Tensor = self.stem(x)
        return result


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, None], ids=str)
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_answers_are_bitwise_those_of_a_whole_copy(
    function: Callable[[Any, Tensor], Any], dtype: torch.dtype | None
) -> None:
    model, x = network(function), images(2).to(dtype or torch.float32)
    with torch.no_grad(), unchanged(model):
        lean, whole = (make(model, dtype)(x) for make in (lean_twin, whole_twin))
    assert lean.dtype == whole.dtype
    assert torch.equal(lean, whole)


@pytest.mark.parametrize("make", [Hoarder, Recurrent])
def test_a_parameter_that_is_kept_elsewhere_too(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = make().eval(), images(2)
    with torch.no_grad(), unchanged(model):
        answer = InPrecision(model, torch.float64)(x)
        assert torch.equal(answer, whole_twin(model, torch.float64)(x.double()))


def test_what_stands_in_never_becomes_an_answer() -> None:
    model = Hoarder().eval()
    lean: Any = lean_twin(model, torch.float64)
    assert lean.hoard[0].is_meta and not lean.scale.is_meta
    model.forward = lambda x: model.hoard[0] + 0  # type: ignore[method-assign]
    answer = InPrecision(model, torch.float64)(images(1))
    assert torch.equal(answer, model.scale.detach().double())


def test_a_forward_that_writes_into_a_weight_leaves_the_users_alone() -> None:
    model = Selfish().eval()
    before = model.stem.weight.detach().clone()
    with torch.no_grad():
        InPrecision(model, torch.float64)(images(1))
        InPrecision(model, torch.float32)(images(1))
    assert torch.equal(model.stem.weight, before)


class Counting(nn.Module):
    """Counts the float64 copies of weights that are alive while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        alive = [o for o in gc.get_objects() if type(o) is nn.Parameter and not o.is_meta]
        self.seen.append(sum(o.dtype == torch.float64 and o.shape[:2] == (4, 4) for o in alive))
        return x


def test_no_two_layers_are_in_float64_at_once() -> None:
    counting = Counting()
    model = nn.Sequential(*(part for _ in range(4) for part in (conv(), counting))).eval()
    with torch.no_grad():
        twin = lean_twin(model, torch.float64)
        twin(images(1).double())
        assert twin.get_submodule("1").seen == [0, 0, 0, 0]
        whole = whole_twin(model, torch.float64)
        whole(images(1).double())
        assert whole.get_submodule("1").seen == [4, 4, 4, 4]  # the count can count
