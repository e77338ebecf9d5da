"""Softmax, top-k and labels at the end of an optimised model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastres
from fastres.accuracy import top_k
from fastres.errors import ModelError, OptionError, VerificationError
from fastres.transforms import Preprocessing
from tests.support.optimizing import assert_complete, optimize
from tests.support.small import classifier


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return classifier()


def images(batch: int = 5) -> Tensor:
    return torch.randn(batch, 3, 32, 32)


@pytest.mark.parametrize("precision", [None, "bf16"])
def test_probabilities(model: nn.Module, precision: str | None) -> None:
    fast = optimize(model, softmax=True, precision=precision, strict=True)
    assert_complete(fast, convolution=4)
    batch = images()
    got = fast(batch)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.sum(1), torch.ones(5))
    with torch.no_grad():
        wanted = torch.softmax(model(batch), 1)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0.05 if precision else 1e-5)
    assert fastres.verify(model, fast, batch).passed
    assert fast.preprocessing == Preprocessing(softmax=True)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("precision", [None, "bf16"])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_the_largest(model: nn.Module, k: int, precision: str | None, softmax: bool) -> None:
    fast = optimize(model, top_k=k, softmax=softmax, precision=precision, strict=True)
    batch = images()
    values, indices = fast(batch)
    assert (values.shape, values.dtype) == ((5, k), torch.float32)
    assert (indices.shape, indices.dtype) == ((5, k), torch.int64)
    assert torch.equal(values, values.sort(1, descending=True).values)
    if precision is None:
        with torch.no_grad():
            answers = model(batch)
        wanted = torch.topk(torch.softmax(answers, 1) if softmax else answers, k, dim=1)
        assert torch.equal(indices, wanted.indices)
        torch.testing.assert_close(values, wanted.values, rtol=1e-4, atol=1e-5)
    result = fastres.verify(model, fast, batch)
    assert result.passed, str(result)
    assert result.images == 5
    empty_values, empty_indices = fast(images(0))
    assert empty_values.shape == empty_indices.shape == (0, k)


def shuffled(fast: Any, change: str) -> Any:
    """A stand-in for a defect: the right values with other indices, or the reverse."""
    forward = type(fast).forward

    def wrong(self: Any, *args: Any) -> Any:
        values, indices = forward(self, *args)
        if change == "indices":
            return values, (indices + 1) % 10
        if change == "values":
            return values * 1.001, indices
        return values, indices.to(torch.int32)

    type(fast).forward = wrong
    return fast


@pytest.mark.parametrize("change", ["indices", "values"])
def test_verify_sees_wrong_leaders(model: nn.Module, change: str) -> None:
    fast = shuffled(optimize(model, top_k=2), change)
    result = fastres.verify(model, fast, images())
    assert result.error_ratio > 100
    assert (result.top1_agreement < 1.0) == (change == "indices")


def test_verify_sees_another_dtype(model: nn.Module) -> None:
    fast = shuffled(optimize(model, top_k=2), "dtype")
    with pytest.raises(VerificationError, match=r"answers torch\.int64 .* torch\.int32"):
        fastres.verify(model, fast, images())


def test_leaders_that_are_as_good_are_right() -> None:
    """Which of two equal answers comes first is nobody's mistake."""
    exact = torch.tensor([[3.0, 5.0, 5.0, 1.0]], dtype=torch.float64)
    best = top_k.of_answers(exact, exact, 2)
    swapped = top_k.of_choice(torch.tensor([[5.0, 5.0]]), torch.tensor([[2, 1]]), exact)
    assert torch.equal(best.exact_values, swapped.exact_values)
    worse = top_k.of_choice(torch.tensor([[5.0, 5.0]]), torch.tensor([[2, 0]]), exact)
    assert not torch.equal(best.exact_values, worse.exact_values)


def test_labels_are_kept(model: nn.Module) -> None:
    names = [f"class {i}" for i in range(10)]
    fast = optimize(model, labels=names)
    assert fast.preprocessing.labels == tuple(names)
    batch = images()
    with torch.no_grad():
        torch.testing.assert_close(fast(batch), model(batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"top_k": 11}, OptionError, "top_k=11: the model has 10 classes"),
        ({"top_k": 0}, OptionError, "top_k: got 0, expected an integer"),
        ({"top_k": 2.5}, OptionError, r"top_k: got 2\.5"),
        ({"softmax": "yes"}, OptionError, "softmax: got 'yes', expected True or False"),
        ({"labels": ["cat"]}, OptionError, "got 1 labels for a model of 10 classes"),
        ({"labels": [1] * 10}, OptionError, "labels: got .*, expected None or a tuple of names"),
    ],
)
def test_endings_that_cannot_be(
    model: nn.Module, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fastres.optimize(model, **options)


def test_a_model_that_does_not_classify() -> None:
    maps = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    with pytest.raises(ModelError, match=r"answers one tensor \[N, classes\]; this one answers \["):
        fastres.optimize(maps, softmax=True)
