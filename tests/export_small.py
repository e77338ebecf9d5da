"""A small network with every part of a ResNet, and the file made of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from zoo.resblk import ResBlk
from zoo.statistics import randomise_statistics

from fastres.export import OnnxReport


class Small(nn.Module):
    """Stem, two residual blocks, classifier."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = ResBlk(8, 8, talk=False)
        self.layer2 = ResBlk(8, 16, stride=2, talk=False)
        self.fc = nn.Linear(16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.pool(torch.relu(self.bn1(self.conv1(x))))
        y = self.layer2(self.layer1(y)).mean((2, 3))
        logits: torch.Tensor = self.fc(y)
        return logits


EXAMPLE = torch.zeros(1, 3, 40, 40)
OPERATORS = {"Conv": 6, "Relu": 5, "Add": 2, "MaxPool": 1, "GlobalAveragePool": 1} | {
    "Flatten": 1,
    "Gemm": 1,
}


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return randomise_statistics(Small(), torch.randn(16, 3, 40, 40)).eval()


@dataclass(frozen=True)
class Exported:
    """A model and its file, which takes images of any size."""

    model: nn.Module
    path: Path
    report: OnnxReport
