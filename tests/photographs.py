"""The real photographs that scikit-learn and scikit-image carry in their wheels."""

from __future__ import annotations

from pathlib import Path

import skimage.data
import sklearn.datasets

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
