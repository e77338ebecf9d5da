"""The real photographs that scikit-learn and scikit-image carry in their wheels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import skimage.data
import sklearn.datasets
from PIL import Image

SCIKIT_IMAGE = Path(skimage.data.__file__).parent
SCIKIT_LEARN = Path(sklearn.datasets.__file__).parent / "images"

# scikit-image fetches further pictures from the internet; these are inside its wheel.
PHOTOGRAPHS = (
    SCIKIT_LEARN / "china.jpg",
    SCIKIT_LEARN / "flower.jpg",
    SCIKIT_IMAGE / "astronaut.png",
    SCIKIT_IMAGE / "camera.png",  # greyscale
    SCIKIT_IMAGE / "chelsea.png",
    SCIKIT_IMAGE / "coffee.png",
    SCIKIT_IMAGE / "motorcycle_left.png",
    SCIKIT_IMAGE / "retina.jpg",
    SCIKIT_IMAGE / "rocket.jpg",
    SCIKIT_IMAGE / "logo.png",  # with an alpha channel, and the only one that is no photograph
)


def crops(folder: Path, count: int) -> list[Path]:
    """Parts of the photographs, of many sizes, written as JPEG and PNG; sorted by path."""
    random = np.random.default_rng(0)
    pictures = []
    for path in PHOTOGRAPHS:
        with Image.open(path) as image:
            pictures.append(image.convert("RGB"))
    for number in range(count):
        picture = pictures[number % len(pictures)]
        width, height = (int(random.integers(64, min(size, 240))) for size in picture.size)
        left = int(random.integers(0, picture.width - width))
        top = int(random.integers(0, picture.height - height))
        suffix = ".png" if number % 5 == 0 else ".jpg"
        part = picture.crop((left, top, left + width, top + height))
        part.save(folder / f"{number:03}{suffix}")
    return sorted(folder.iterdir())
