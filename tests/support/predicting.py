"""A network, its files and 200 images, for the tests of ``fastres predict``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from fastres.models import cifar_resnet20
from fastres.predict import main
from fastres.preprocess import load_images
from fastres.transforms import Transforms
from tests.support.photographs import crops
from tests.zoo.statistics import randomise_statistics

COUNT = 200
DAMAGED = 77
SMALL = Transforms(resize=40, crop=32, mean=(0.49, 0.48, 0.45), std=(0.2, 0.2, 0.2))
NAMES = [f"kind {i}" for i in range(10)]


@dataclass(frozen=True)
class Setting:
    """A network with its files on the disk, and a folder of images."""

    network: nn.Module
    folder: Path
    images: list[Path]
    weights: Path
    transforms: Path
    labels: Path

    def options(self, *more: str | Path) -> list[str]:
        known = ("--model", "cifar_resnet20", "--weights", self.weights, "--quiet")
        described = ("--transforms", self.transforms, "--labels", self.labels)
        return [str(part) for part in (*known, *described, *more)]

    def run(self, *arguments: str | Path) -> int:
        return main(self.options(*arguments))


def make(home: Path) -> Setting:
    """Everything in the folder ``home``; one of the images is damaged."""
    folder = home / "images"
    folder.mkdir()
    images = crops(folder, COUNT)
    torch.manual_seed(0)
    sample = load_images(images[:16], SMALL)
    network: Any = randomise_statistics(cifar_resnet20(), sample).eval()
    with torch.no_grad():
        network.fc.weight.mul_(20.0)  # answers that are not all alike
    save_file(network.state_dict(), home / "weights.safetensors")
    damaged = images[DAMAGED]
    damaged.write_bytes(damaged.read_bytes()[:500])
    (home / "transforms.json").write_text(json.dumps(SMALL.to_dict()), encoding="utf-8")
    (home / "labels.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    files = (home / "weights.safetensors", home / "transforms.json", home / "labels.txt")
    return Setting(network, folder, images, *files)
