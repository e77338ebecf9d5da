"""Real photographs, preprocessed in full and classified by a ResNet, before and after."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from fastres.models import resnet18
from fastres.preprocess import load_images
from fastres.transforms import Transforms
from tests.support.optimizing import assert_complete, optimize
from tests.support.oracle import assert_as_accurate, run_in
from tests.support.photographs import PHOTOGRAPHS
from tests.zoo.statistics import randomise_statistics

pytestmark = pytest.mark.campaign

VIEWS = (Transforms(), Transforms(resize=288), Transforms(resize=230))


@dataclass(frozen=True)
class Album:
    """A network whose head tells the photographs apart, and views of them it was not fitted on."""

    model: nn.Module
    images: torch.Tensor


def features_of(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    body = nn.Sequential(*list(model.children())[:-1], nn.Flatten())
    features: torch.Tensor = body(images)
    return features.double()


@pytest.fixture(scope="session")
def album() -> Album:
    """ResNet-18 of random filters, its statistics measured on the photographs, its head fitted.

    Each photograph is a class. The head is ridge regression on the features of two views (closer
    and wider); the images asked about are the usual view, 256 to 224.
    """
    torch.manual_seed(0)
    model = resnet18(num_classes=len(PHOTOGRAPHS))
    usual, *others = (load_images(PHOTOGRAPHS, view) for view in VIEWS)
    fitted = torch.cat(others)
    randomise_statistics(model, fitted).eval()
    head = model.fc
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        features = features_of(model, fitted)
        wanted = torch.eye(len(PHOTOGRAPHS)).repeat(len(others), 1).double()
        centre = features.mean(0)
        spread = features - centre
        ridge = 1e-3 * spread.square().sum() / len(spread)
        gram = spread @ spread.T + ridge * torch.eye(len(spread))
        weight = (spread.T @ torch.linalg.solve(gram, wanted - wanted.mean(0))).T
        head.weight.copy_(weight)
        head.bias.copy_(wanted.mean(0) - weight @ centre)
    return Album(model, usual)


def test_the_head_recognises_the_photographs(album: Album) -> None:
    logits = run_in(album.model, torch.float64, album.images)
    assert torch.equal(logits.argmax(1), torch.arange(len(PHOTOGRAPHS)))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_photographs_are_classified_alike(album: Album, precision: str) -> None:
    fast = optimize(album.model, album.images[:1], precision=precision)
    assert_complete(fast, batch_norm=20, convolution=20, addition=8, activation=17)
    assert_as_accurate(album.model, fast, album.images, precision=precision)
    with torch.no_grad():
        got = fast(album.images).argmax(1)
    assert torch.equal(got, torch.arange(len(PHOTOGRAPHS)))


def test_a_photograph_alone_gets_the_same_answer_as_in_a_batch(album: Album) -> None:
    fast = optimize(album.model, album.images[:1])

    def one_by_one(images: torch.Tensor) -> torch.Tensor:
        return torch.cat([fast(image[None]) for image in images])

    assert torch.equal(one_by_one(album.images).argmax(1), torch.arange(len(PHOTOGRAPHS)))
    assert_as_accurate(album.model, one_by_one, album.images)
