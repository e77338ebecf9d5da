"""A network trained on real handwritten digits keeps its accuracy, and its answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from fastres.models import CifarResNet
from tests.support.optimizing import optimize
from tests.support.oracle import assert_as_accurate

pytestmark = pytest.mark.campaign

EPOCHS, BATCH = 10, 64


@dataclass(frozen=True)
class Trained:
    """A network in evaluation mode and the images it has never seen."""

    model: nn.Module
    images: torch.Tensor
    labels: torch.Tensor


@pytest.fixture(scope="session")
def digits() -> Trained:
    """ResNet-14 trained on 1437 of scikit-learn's 1797 digits (8x8 pixels) in a few seconds."""
    source = load_digits()
    images = (source.images[:, None] / 16).astype(np.float32)
    split = train_test_split(
        images, source.target, test_size=360, random_state=0, stratify=source.target
    )
    seen, unseen, seen_labels, unseen_labels = (torch.from_numpy(part) for part in split)
    mean, std = seen.mean(), seen.std()
    torch.manual_seed(0)
    model = CifarResNet(14, in_channels=1)
    train(model, (seen - mean) / std, seen_labels)
    return Trained(model.eval(), (unseen - mean) / std, unseen_labels)


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    steps = len(images) // BATCH
    optimiser = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=0.1, total_steps=EPOCHS * steps
    )
    model.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images))[: steps * BATCH].view(steps, BATCH):
            optimiser.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimiser.step()
            schedule.step()


def answers(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        digits: torch.Tensor = model(images).argmax(1)
    return digits


def test_the_network_has_learned(digits: Trained) -> None:
    correct = (answers(digits.model, digits.images) == digits.labels).float().mean()
    assert correct > 0.97


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_float32_gives_every_image_the_same_digit(digits: Trained, engine: str) -> None:
    fast = optimize(digits.model, digits.images[:1], engine=engine)
    counts = {"batch_norm": 13, "convolution": 13, "addition": 6, "activation": 13}
    assert fast.report.found == fast.report.done == counts, str(fast.report)
    assert torch.equal(answers(fast, digits.images), answers(digits.model, digits.images))
    assert_as_accurate(digits.model, fast, digits.images)


def test_float32_gives_the_same_digits_one_by_one(digits: Trained) -> None:
    fast = optimize(digits.model, digits.images[:1])
    one_by_one = torch.cat([answers(fast, image[None]) for image in digits.images[:50]])
    assert torch.equal(one_by_one, answers(digits.model, digits.images[:50]))


def test_bfloat16_is_as_often_right_within_one_image(digits: Trained) -> None:
    fast = optimize(digits.model, digits.images[:1], precision="bf16")
    right_before = (answers(digits.model, digits.images) == digits.labels).sum()
    right_after = (answers(fast, digits.images) == digits.labels).sum()
    assert abs(int(right_before) - int(right_after)) <= 1
    assert_as_accurate(digits.model, fast, digits.images, precision="bf16")
