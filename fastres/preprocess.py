"""Decode and preprocess photographs, by :class:`fastres.transforms.Transforms`.

    x[c] = (crop(resize(image))[c] / divisor - mean[c]) / std[c]

in float32: bit for bit what ``torchvision.transforms`` gives for a Pillow image (``Resize``,
``CenterCrop``, ``ToTensor``, ``Normalize``), without torchvision. Many a report of "the optimised
model is wrong" ends at another mean, a resize without antialiasing or a swapped channel, so there
is one way to do it, here. An optimised model with ``input_format`` does the second half itself and
takes what :func:`load_pixels` gives.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from fastres.errors import InputError, OptionError
from fastres.system.regular import open_regular
from fastres.transforms import IMAGENET_MEAN, IMAGENET_STD, Interpolation, Transforms

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Interpolation",
    "Transforms",
    "list_images",
    "load_image",
    "load_images",
    "load_pixels",
]

Source: TypeAlias = "str | os.PathLike[str] | Image.Image | np.ndarray[Any, Any]"

# What is decoded, by content, whatever a file is called. For others Pillow runs programs on it
# (PostScript), or needs what few have.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})

# Modes whose values no convention maps to 0..255; clipped by Pillow, a photograph would turn white.
_WIDE_MODES = ("I", "F")

# What an image of so many channels is to Pillow.
_MODES = {1: "L", 3: "RGB"}

# Pixels after resizing, as many as Pillow agrees to decode (its Image.MAX_IMAGE_PIXELS, doubled).
_MOST_PIXELS = 178_956_970


def load_pixels(
    source: Source, transforms: Transforms | None = None, *, exif_orientation: bool = False
) -> torch.Tensor:
    """Decode one image, resize and crop it; the pixels are not normalised.

    Greyscale and palettes become RGB, and colours grey where the transforms have one channel; an
    alpha channel is dropped, not blended; of an animation the first frame is taken. Pillow
    antialiases whenever it shrinks (except with "nearest"), whatever ``transforms.antialias`` says.
    What a crop takes from outside the image is black.

    Args:
        source: a file, a Pillow image, or an array of uint8 shaped [H, W], [H, W, 3] or [H, W, 4].
        transforms: the default is ImageNet's evaluation, 256 to 224.
        exif_orientation: turn the image as its EXIF data asks. Off, as in torchvision, whose
            networks were trained on pixels as they are stored; a portrait from a telephone then
            lies on its side.

    Returns:
        uint8, ``[crop, crop, C]``; where transforms has no crop, of the image's size.

    Raises:
        InputError: the file is missing, damaged or no image (its name is in the message), the array
            has another shape or dtype, or the pixels have more than eight bits.
        OptionError: the transforms are for images of neither one nor three channels.
    """
    transforms = transforms or Transforms()
    mode = _MODES.get(transforms.channels)
    if mode is None:
        raise OptionError(
            f"transforms of {transforms.channels} channels: image files have 3 (mean and std of "
            "red, green and blue) or 1 (grey)"
        )
    image = _decode(source, exif_orientation, mode)
    if transforms.resize is not None:
        image = _resize(image, transforms.resize, transforms.interpolation)
    if transforms.crop is not None:
        image = _centre_crop(image, transforms.crop)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, transforms.channels)


def load_image(
    source: Source, transforms: Transforms | None = None, *, exif_orientation: bool = False
) -> torch.Tensor:
    """Decode and preprocess one image.

    Args:
        source, transforms, exif_orientation: as for :func:`load_pixels`.

    Returns:
        float32, ``[C, crop, crop]``; where transforms has no crop, of the image's size.

    Raises:
        InputError, OptionError: as for :func:`load_pixels`.
    """
    transforms = transforms or Transforms()
    pixels = load_pixels(source, transforms, exif_orientation=exif_orientation)
    image = pixels.permute(2, 0, 1).contiguous()
    mean = torch.tensor(transforms.mean, dtype=torch.float32, device="cpu").view(-1, 1, 1)
    std = torch.tensor(transforms.std, dtype=torch.float32, device="cpu").view(-1, 1, 1)
    return image.float().div_(transforms.divisor).sub_(mean).div_(std)


def load_images(
    sources: Sequence[Source],
    transforms: Transforms | None = None,
    *,
    exif_orientation: bool = False,
) -> torch.Tensor:
    """Decode and preprocess several images into one batch.

    Args:
        sources: as for `load_pixels`, one or more.
        transforms, exif_orientation: as for `load_pixels`.

    Returns:
        float32, ``[N, C, crop, crop]``, in the order given.

    Raises:
        InputError: there is no source, their sizes differ and transforms has no crop, or as for
            `load_pixels`.
    """
    if isinstance(sources, (str, os.PathLike)):
        raise InputError(
            f"load_images takes several sources, got the one path {os.fspath(sources)!r}; "
            "use load_image, or list_images for a directory"
        )
    if len(sources) == 0:
        raise InputError("no images were given; at least one is needed to make a batch")
    images = [load_image(each, transforms, exif_orientation=exif_orientation) for each in sources]
    sizes = sorted({f"{image.shape[2]}x{image.shape[1]}" for image in images})
    if len(sizes) > 1:
        raise InputError(
            f"the images are of {len(sizes)} sizes, {sizes[0]} and {sizes[1]} for two: transforms "
            "without a crop make no batch of them"
        )
    return torch.stack(images)


def list_images(directory: str | os.PathLike[str]) -> list[Path]:
    """The image files in a directory and the directories in it, sorted by path.

    Files are known by their suffix. Hidden ones (name begins with a dot) are left out. Whatever
    else is called like an image is taken, pipes and links that lead nowhere too, so that loading
    can tell; links to directories are not followed.

    Raises:
        InputError: there is no such directory, or no image in it.
    """
    root = Path(directory)
    if not root.is_dir():
        raise InputError(f"{root} is not a directory; a directory of images is needed")
    found = [
        path
        for path in root.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
        and not path.is_dir()
    ]
    if not found:
        raise InputError(f"{root} holds no image; looked for {', '.join(sorted(SUFFIXES))}")
    return sorted(found)


def _decode(source: Source, exif_orientation: bool, mode: str) -> Image.Image:
    from PIL import Image, ImageOps

    if isinstance(source, Image.Image):
        image, name = source, "the Pillow image"
    elif isinstance(source, (str, os.PathLike)):
        image, name = _read(Path(source)), str(source)
    else:
        image, name = _from_array(source), "the array"
    if image.mode.startswith(_WIDE_MODES):
        raise InputError(
            f"{name} has pixels of mode {image.mode!r}: more than eight bits and no agreed range; "
            "scale them to 0..255 and pass them as uint8"
        )
    if exif_orientation:
        image = ImageOps.exif_transpose(image)
    if image.mode == "P":
        image = image.convert("RGBA")  # straight to RGB, Pillow warns about a transparent colour
    try:
        return image.convert(mode)
    except ValueError as error:
        raise InputError(f"{name} of mode {image.mode!r} has no {mode} form: {error}") from error


def _read(path: Path) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    try:
        with open_regular(path) as file, Image.open(file, formats=_FORMATS) as image:
            image.load()  # Image.open reads the header only; damage further on shows here
            return image
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; an image file is needed") from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{path} is no image in one of the formats {', '.join(_FORMATS)}; convert it to one of "
            "these"
        ) from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} is too large to decode: {error}") from error
    # What Pillow's decoders raise for damaged data, by its own documentation and by trying.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error) as error:
        raise InputError(f"{path} cannot be read as an image: {error}") from error


def _from_array(array: Any) -> Image.Image:
    from PIL import Image

    shape = tuple(getattr(array, "shape", ()))
    dtype = str(getattr(array, "dtype", type(array).__name__))
    fits = len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))
    if isinstance(array, torch.Tensor) or dtype != "uint8" or not fits or 0 in shape:
        raise InputError(
            f"got an array of {dtype} shaped {list(shape)}; expected a path, a Pillow image, or a "
            "NumPy array of uint8 shaped [H, W], [H, W, 3] or [H, W, 4]"
        )
    return Image.fromarray(array)


def _resize(image: Image.Image, side: int, interpolation: str) -> Image.Image:
    from PIL import Image

    shorter, longer = sorted(image.size)
    target = (side, side * longer // shorter)
    if target[0] * target[1] > _MOST_PIXELS:
        raise InputError(
            f"an image of {image.width}x{image.height} pixels, its shorter side resized to "
            f"{target[0]}, would be {target[1]} pixels long; crop it first"
        )
    size = target if image.width <= image.height else target[::-1]
    if size == image.size:
        return image
    return image.resize(size, Image.Resampling[interpolation.upper()])


def _centre_crop(image: Image.Image, crop: int) -> Image.Image:
    left, top = _offset(image.width, crop), _offset(image.height, crop)
    return image.crop((left, top, left + crop, top + crop))


def _offset(size: int, crop: int) -> int:
    """Where the crop begins; odd remainders go where torchvision puts them (half to even)."""
    if size < crop:
        return -((crop - size) // 2)
    return round((size - crop) / 2)
