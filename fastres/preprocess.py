"""Photographs as the networks of `fastres.models` want to see them.

    x[c] = (crop(resize(image))[c] / 255 - mean[c]) / std[c]

in float32, with the shorter side resized to 256 and the central 224x224 kept: bit for bit what
``torchvision.transforms`` gives for a Pillow image (``Resize``, ``CenterCrop``, ``ToTensor``,
``Normalize``), without torchvision. Many a report of "the optimised model is wrong" ends at another
mean, a resize without antialiasing or a swapped channel, so there is one way to do it, here.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import torch

from fastres.errors import InputError, OptionError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Interpolation",
    "Preprocessing",
    "list_images",
    "load_image",
    "load_images",
]

Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic"]
Source: TypeAlias = "str | os.PathLike[str] | Image.Image | np.ndarray[Any, Any]"

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})

# Modes whose values no convention maps to 0..255; clipped by Pillow, a photograph would turn white.
_WIDE_MODES = ("I", "F")

# Pixels after resizing, as many as Pillow agrees to decode (its Image.MAX_IMAGE_PIXELS, doubled).
_MOST_PIXELS = 178_956_970


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a network's input.

    Attributes:
        resize: pixels of the shorter side after resizing; the longer side follows, rounded down.
        crop: side in pixels of the central square that is kept; what lies outside the image is
            black.
        mean, std: of red, green and blue in [0, 1]; subtracted, then divided by.
        interpolation: Pillow's filter, which antialiases when it shrinks (except "nearest").
        exif_orientation: turn the image as its EXIF data asks. Off, as in torchvision, whose
            networks were trained on pixels as they are stored; a portrait from a telephone then
            lies on its side.

    Raises:
        OptionError: a size below one, not three channels, a standard deviation that is not
            positive, an unknown interpolation.
    """

    resize: int = 256
    crop: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: Interpolation = "bilinear"
    exif_orientation: bool = False

    def __post_init__(self) -> None:
        for name, size in (("resize", self.resize), ("crop", self.crop)):
            if size < 1:
                raise OptionError(f"{name}={size}: a size in pixels must be at least 1")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3:
                raise OptionError(
                    f"{name} has {len(values)} values; one each for red, green and blue is needed"
                )
        if min(self.std) <= 0:
            raise OptionError(f"std={self.std}: standard deviations must be positive")
        if self.interpolation not in get_args(Interpolation):
            known = ", ".join(get_args(Interpolation))
            raise OptionError(f"interpolation={self.interpolation!r} is not one of {known}")


def load_image(source: Source, preprocessing: Preprocessing | None = None) -> torch.Tensor:
    """Decode and preprocess one image.

    Greyscale and palettes become RGB; an alpha channel is dropped, not blended; of an animation the
    first frame is taken.

    Args:
        source: a file, a Pillow image, or an array of uint8 shaped [H, W], [H, W, 3] or [H, W, 4].
        preprocessing: the default is ImageNet's evaluation, 256 to 224.

    Returns:
        float32, ``[3, crop, crop]``.

    Raises:
        InputError: the file is missing, damaged or no image (its name is in the message), the array
            has another shape or dtype, or the pixels have more than eight bits.
    """
    preprocessing = preprocessing or Preprocessing()
    image = _decode(source, preprocessing.exif_orientation)
    image = _centre_crop(_resize(image, preprocessing), preprocessing.crop)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    pixels = pixels.view(image.height, image.width, 3).permute(2, 0, 1).contiguous()
    mean = torch.tensor(preprocessing.mean).view(3, 1, 1)
    std = torch.tensor(preprocessing.std).view(3, 1, 1)
    return pixels.float().div_(255).sub_(mean).div_(std)


def load_images(
    sources: Sequence[Source], preprocessing: Preprocessing | None = None
) -> torch.Tensor:
    """Decode and preprocess several images into one batch.

    Args:
        sources: as for `load_image`, one or more.
        preprocessing: the default is ImageNet's evaluation, 256 to 224.

    Returns:
        float32, ``[N, 3, crop, crop]``, in the order given.

    Raises:
        InputError: there is no source, or as for `load_image`.
    """
    if isinstance(sources, (str, os.PathLike)):
        raise InputError(
            f"load_images takes several sources, got the one path {os.fspath(sources)!r}; "
            "use load_image, or list_images for a directory"
        )
    if len(sources) == 0:
        raise InputError("no images were given; at least one is needed to make a batch")
    return torch.stack([load_image(source, preprocessing) for source in sources])


def list_images(directory: str | os.PathLike[str]) -> list[Path]:
    """The image files in a directory and the directories in it, sorted by path.

    Files are known by their suffix. Hidden ones (name begins with a dot) are left out.

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
        and path.is_file()
    ]
    if not found:
        raise InputError(f"{root} holds no image; looked for {', '.join(sorted(SUFFIXES))}")
    return sorted(found)


def _decode(source: Source, exif_orientation: bool) -> Image.Image:
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
        return image.convert("RGB")
    except ValueError as error:
        raise InputError(f"{name} of mode {image.mode!r} has no RGB form: {error}") from error


def _read(path: Path) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()  # Image.open reads the header only; damage further on shows here
            return image
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; an image file is needed") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not an image in a format Pillow can read") from error
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


def _resize(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    from PIL import Image

    shorter, longer = sorted(image.size)
    target = (preprocessing.resize, preprocessing.resize * longer // shorter)
    if target[0] * target[1] > _MOST_PIXELS:
        raise InputError(
            f"an image of {image.width}x{image.height} pixels, its shorter side resized to "
            f"{target[0]}, would be {target[1]} pixels long; crop it first"
        )
    size = target if image.width <= image.height else target[::-1]
    if size == image.size:
        return image
    return image.resize(size, Image.Resampling[preprocessing.interpolation.upper()])


def _centre_crop(image: Image.Image, crop: int) -> Image.Image:
    left, top = _offset(image.width, crop), _offset(image.height, crop)
    return image.crop((left, top, left + crop, top + crop))


def _offset(size: int, crop: int) -> int:
    """Where the crop begins; odd remainders go where torchvision puts them (half to even)."""
    if size < crop:
        return -((crop - size) // 2)
    return round((size - crop) / 2)
