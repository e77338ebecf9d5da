"""The judge itself: it must notice what it is there to notice."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.support.oracle import assert_as_accurate, float64_error, unchanged
from tests.zoo.quirk import Quirk
from tests.zoo.quirks import QUIRKS
from tests.zoo.statistics import batch_norms


class Scaled(nn.Module):
    """A BatchNorm applied twice."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.norm(x))  # type: ignore[no-any-return]


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()


@pytest.mark.sampled(5)
@pytest.mark.parametrize("spoil", [lambda _: nn.Identity(), Scaled], ids=["lost", "doubled"])
@pytest.mark.parametrize("quirk", QUIRKS, ids=lambda quirk: quirk.name)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
def test_a_spoilt_batch_norm_is_noticed(
    quirk: Quirk, spoil: Callable[[nn.Module], nn.Module]
) -> None:
    model = quirk.model()
    inputs, named = quirk.inputs()
    assert_as_accurate(model, model, *inputs, factor=1.0, **named)
    for name, norm in batch_norms(model):
        wrong = copy.deepcopy(model)
        wrong.set_submodule(name, spoil(copy.deepcopy(norm)))
        for precision in ("fp32", "bf16"):
            with pytest.raises(AssertionError):
                assert_as_accurate(model, wrong, *inputs, precision=precision, **named)


def test_statistics_are_deterministic_and_leave_modes_alone() -> None:
    quirk = QUIRKS[0]
    first, second = quirk.model(), quirk.model()
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert not any(module.training for module in first.modules())


def test_a_nan_is_noticed() -> None:
    model = small()
    x = torch.randn(2, 3, 8, 8)

    def poisoned(images: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = model(images).clone()
        y[0, 0, 0, 0] = float("nan")
        return y

    with pytest.raises(AssertionError, match="NaN or infinity where float64 has none"):
        assert_as_accurate(model, poisoned, x)


def test_a_small_relative_error_is_noticed() -> None:
    model = small()
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(AssertionError, match=r"times eager's .* at most 2\.0 is allowed"):
        assert_as_accurate(model, lambda images: model(images) * (1 + 1e-6), x)


def test_another_structure_or_shape_is_noticed() -> None:
    model = small()
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(AssertionError):
        float64_error(model, lambda images: [model(images)], x)
    with pytest.raises(AssertionError):
        float64_error(model, lambda images: model(images)[:1], x)


def _in_place(model: nn.Module) -> None:
    with torch.no_grad():
        next(model.parameters()).mul_(1)


def _channels_last(model: nn.Module) -> None:
    model.to(memory_format=torch.channels_last)


def _hook(model: nn.Sequential) -> None:
    model[0].register_forward_hook(lambda *_: None)


def _mode(model: nn.Sequential) -> None:
    model[1].train()


def _replaced(model: nn.Sequential) -> None:
    model[1] = nn.Identity()


def _frozen(model: nn.Module) -> None:
    next(model.parameters()).requires_grad_(False)


def _attribute(model: nn.Sequential) -> None:
    model[1].eps = 1e-3  # type: ignore[assignment]


@pytest.mark.parametrize(
    "touch",
    [_in_place, _channels_last, _hook, _mode, _replaced, _frozen, _attribute],
    ids=lambda touch: touch.__name__.strip("_"),
)
def test_a_touched_model_is_noticed(touch: Callable[[nn.Sequential], None]) -> None:
    model = small()
    with unchanged(model):
        model(torch.randn(1, 3, 8, 8))
    with pytest.raises(AssertionError, match="changed"), unchanged(model):
        touch(model)


def test_fresh_memory_is_poisoned() -> None:
    assert torch.empty(1000).isnan().all()
    assert torch.empty_like(torch.ones(7, dtype=torch.bfloat16)).isnan().all()
