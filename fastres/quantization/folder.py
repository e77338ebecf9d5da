"""A folder of images as calibration data."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fastres.errors import OptionError
from fastres.preprocess import list_images, load_image, load_pixels
from fastres.transforms import InputFormat, Transforms

BATCH = 8
MOST_IMAGES = 512
"""Of a folder; evenly taken from a larger one."""


def image_batches(
    folder: str | os.PathLike[str],
    transforms: Transforms | None,
    input_format: InputFormat | None,
    resize: bool,
) -> Iterator[Tensor]:
    """Batches of a folder's images, as a model with this preprocessing takes them.

    Args:
        folder: searched with the folders in it; of more than :data:`MOST_IMAGES` images as many,
            evenly taken.
        transforms: as the network was trained.
        input_format: of the optimised model; None where it takes normalised images.
        resize: whether the optimised model resizes; images then come one by one as they are.

    Raises:
        OptionError: there are no transforms.
        InputError: the folder has no image, or one cannot be read.
    """
    if transforms is None:
        raise OptionError(
            f"calibration: got the folder {os.fspath(folder)!r} without transforms=...: how images "
            "become the network's input cannot be guessed; pass the transforms it was trained "
            "with (weights.transforms() of torchvision, say)"
        )
    return _batches(evenly(list_images(folder)), transforms, input_format, resize)


def evenly(paths: Sequence[Path]) -> Sequence[Path]:
    """All paths, or of more than :data:`MOST_IMAGES` as many, evenly taken."""
    if len(paths) <= MOST_IMAGES:
        return paths
    return [paths[i * len(paths) // MOST_IMAGES] for i in range(MOST_IMAGES)]


def _batches(
    paths: Sequence[Path],
    transforms: Transforms,
    input_format: InputFormat | None,
    resize: bool,
) -> Iterator[Tensor]:
    whole = replace(transforms, resize=None, crop=None) if resize else transforms
    images: list[Tensor] = []
    for path in paths:
        if input_format is None:
            image = load_image(path, whole)
        else:
            image = load_pixels(path, whole)
            if input_format == "uint8_nchw":
                image = image.permute(2, 0, 1)
        if images and (image.shape != images[0].shape or len(images) == BATCH):
            yield torch.stack(images)
            images = []
        images.append(image)
    if images:
        yield torch.stack(images)
