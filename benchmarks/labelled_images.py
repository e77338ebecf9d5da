"""Real images with labels that packages bring along, so that accuracy can be measured anywhere.

- ``digits``: scikit-learn's 1,797 handwritten digits (Alpaydin and Kaynak, UCI, 1998), 8x8 pixels,
  enlarged to 32x32; every fourth is for testing.
- ``photographs``: which of ten colour photographs of scikit-image and scikit-learn a piece of 32x32
  pixels is from. A photograph is a board of squares of 64x64; pieces for training lie in the black
  ones, pieces for testing in the white ones, so that no pixel is in both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

SIDE = 32
SQUARE = 64

PHOTOGRAPHS = (
    "astronaut", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry", "retina",
    "rocket", "stereo_motorcycle", "china.jpg", "flower.jpg",
)  # fmt: skip
"""Names without a dot are functions of ``skimage.data``, the others files of scikit-learn."""

TRAINING_PIECES, TESTING_PIECES = 500, 200


@dataclass(frozen=True)
class LabelledImages:
    """Images [N, 3, 32, 32] float32, normalised, and their labels [N] int64, in random order."""

    training: Tensor
    training_labels: Tensor
    testing: Tensor
    testing_labels: Tensor

    @property
    def classes(self) -> int:
        """How many there are."""
        return int(self.training_labels.max()) + 1


def digits(seed: int) -> LabelledImages:
    """Handwritten digits."""
    from sklearn.datasets import load_digits

    data = load_digits()
    small = torch.from_numpy(np.asarray(data.images, dtype=np.float32))[:, None] / 16
    size = (SIDE, SIDE)
    images = F.interpolate(small, size=size, mode="bilinear", align_corners=False)
    images = images.expand(-1, 3, -1, -1)
    labels = torch.from_numpy(np.asarray(data.target, dtype=np.int64))
    is_test = torch.arange(len(labels), dtype=torch.int64, device="cpu") % 4 == 3
    return _normalised(images[~is_test], labels[~is_test], images[is_test], labels[is_test], seed)


def photographs(seed: int) -> LabelledImages:
    """Pieces of photographs."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    parts: list[tuple[Tensor, Tensor]] = []
    for colour, count in ((0, TRAINING_PIECES), (1, TESTING_PIECES)):
        pieces = [_pieces(_photograph(name), colour, count, generator) for name in PHOTOGRAPHS]
        labels = torch.arange(len(PHOTOGRAPHS), dtype=torch.int64, device="cpu")
        parts.append((torch.cat(pieces), labels.repeat_interleave(count)))
    (training, training_labels), (testing, testing_labels) = parts
    return _normalised(training, training_labels, testing, testing_labels, seed)


IMAGES: dict[str, Callable[[int], LabelledImages]] = {
    "digits": digits,
    "photographs": photographs,
}
"""The sets by name; each function takes a seed."""


def _photograph(name: str) -> Tensor:
    """[3, H, W] from 0 to 1."""
    if "." in name:
        from sklearn.datasets import load_sample_image

        pixels = load_sample_image(name)
    else:
        from skimage import data

        pixels = getattr(data, name)()
        pixels = pixels[0] if isinstance(pixels, tuple) else pixels  # left, right and disparity
    array = np.array(pixels[:, :, :3], dtype=np.uint8)  # a copy that may be written to
    return torch.from_numpy(array).permute(2, 0, 1).float() / 255


def _pieces(photograph: Tensor, colour: int, count: int, generator: torch.Generator) -> Tensor:
    """``count`` random pieces of the squares of one colour."""
    rows, columns = photograph.shape[1] // SQUARE, photograph.shape[2] // SQUARE
    squares = [(r, c) for r in range(rows) for c in range(columns) if (r + c) % 2 == colour]

    def draw(most: int) -> int:
        return int(torch.randint(most, (), generator=generator, dtype=torch.int64, device="cpu"))

    pieces = []
    for _ in range(count):
        row, column = squares[draw(len(squares))]
        top = row * SQUARE + draw(SQUARE - SIDE + 1)
        left = column * SQUARE + draw(SQUARE - SIDE + 1)
        pieces.append(photograph[:, top : top + SIDE, left : left + SIDE])
    return torch.stack(pieces)


def _normalised(
    training: Tensor, training_labels: Tensor, testing: Tensor, testing_labels: Tensor, seed: int
) -> LabelledImages:
    """By the training images' mean and deviation per channel; shuffled."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    mean = training.mean(dim=(0, 2, 3), keepdim=True)
    deviation = training.std(dim=(0, 2, 3), keepdim=True)

    def shuffled(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        order = torch.randperm(len(labels), generator=generator, dtype=torch.int64, device="cpu")
        return ((images[order] - mean) / deviation).contiguous(), labels[order].contiguous()

    return LabelledImages(*shuffled(training, training_labels), *shuffled(testing, testing_labels))
