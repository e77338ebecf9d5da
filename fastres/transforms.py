"""Preprocessing of images and postprocessing of outputs, as plain values.

    x[c] = (crop(resize(pixels))[c] / divisor - mean[c]) / std[c]

Two records, without code: they go into the metadata of exported files and into saved models as
JSON, and come back by :meth:`Transforms.from_dict`, which takes nothing that
:meth:`Transforms.to_dict` does not write. Descriptions made by torchvision and timm are read
without either package.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeAlias, get_args

from fastres.checks import (
    as_tuple,
    is_integer,
    is_number,
    refusal,
    require_bool,
    require_integer,
    require_one_of,
)
from fastres.errors import OptionError

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "INPUT_FORMATS",
    "InputFormat",
    "Interpolation",
    "Preprocessing",
    "Transforms",
]

Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic"]
InputFormat: TypeAlias = Literal["uint8_nhwc", "uint8_nchw"]

INPUT_FORMATS: tuple[str, ...] = get_args(InputFormat)
"""What ``optimize(..., input_format=...)`` takes: the order of an image batch's dimensions."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

LONGEST_SIDE = 65_536
"""The largest accepted size in pixels; anything beyond is taken for a mistake."""


@dataclass(frozen=True)
class Transforms:
    """How an image becomes a network's input; the default is ImageNet's usual evaluation.

    Attributes:
        resize: pixels of the shorter side after resizing; the longer side follows, rounded down.
            None: images are not resized.
        crop: side in pixels of the central square that is kept. None: nothing is cut off.
        interpolation: the filter of the resizing: ``"nearest"``, ``"bilinear"`` or ``"bicubic"``.
        antialias: widen the filter where the image shrinks, as Pillow always does.
        mean, std: per channel, of what the division gives; subtracted, then divided by.
        divisor: what pixels 0..255 are divided by first: 255, or 1 for a network that was trained
            on such pixels.

    Raises:
        OptionError: a value is not one of those.
    """

    resize: int | None = 256
    crop: int | None = 224
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    divisor: float = 255.0

    def __post_init__(self) -> None:
        for name, size in (("resize", self.resize), ("crop", self.crop)):
            if size is not None and not is_integer(size, most=LONGEST_SIDE):
                raise refusal(name, size, f"None or a size in pixels, 1 to {LONGEST_SIDE}")
        require_one_of("interpolation", self.interpolation, get_args(Interpolation))
        require_bool("antialias", self.antialias)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not isinstance(values, tuple) or not values or not all(map(is_number, values)):
                raise refusal(name, values, "a tuple of numbers, one per channel")
        if len(self.mean) != len(self.std):
            raise OptionError(
                f"mean has {len(self.mean)} values and std {len(self.std)}: expected one each per "
                "channel"
            )
        if min(self.std) <= 0:
            raise refusal("std", self.std, "positive standard deviations")
        if not is_number(self.divisor) or self.divisor <= 0:
            raise refusal("divisor", self.divisor, "a positive number", "usual are 255 and 1")

    @property
    def channels(self) -> int:
        """Number of channels of an image."""
        return len(self.mean)

    @property
    def scale(self) -> tuple[float, ...]:
        """Per channel, what a pixel 0..255 is multiplied by: ``1 / (divisor * std)``."""
        return tuple(1.0 / (self.divisor * deviation) for deviation in self.std)

    @property
    def shift(self) -> tuple[float, ...]:
        """Per channel, what is added behind that: ``-mean / std``."""
        return tuple(-m / deviation for m, deviation in zip(self.mean, self.std, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = asdict(self)
        return {**plain, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Transforms:
        """What :meth:`to_dict` wrote.

        Raises:
            OptionError: a name is missing or unknown, or a value is of another type or range.
        """
        _exactly(cls, values)
        lists = {name: as_tuple(name, values[name]) for name in ("mean", "std")}
        return cls(**{**values, **lists})

    @classmethod
    def of(cls, description: Any) -> Transforms:
        """Convert torchvision's or timm's description of an evaluation transform.

        Args:
            description: a :class:`Transforms` or its dict, the preset object of torchvision's
                weights (``ResNet50_Weights.DEFAULT.transforms()``), or timm's data configuration
                (``timm.data.resolve_data_config(model=model)``).

        Raises:
            OptionError: it is none of these, or asks for what fastres does not have (another
                filter, an image that is not square, timm's crop modes "squash" and "border").
        """
        if isinstance(description, cls):
            return description
        if isinstance(description, Mapping) and "divisor" in description:
            return cls.from_dict(description)
        return cls(**_described(description))


@dataclass(frozen=True)
class Preprocessing:
    """What an optimised model does besides the network, to its input and to its output.

    Attributes:
        input_format: ``"uint8_nhwc"`` or ``"uint8_nchw"`` images; None where the model takes what
            the network takes.
        transforms: how its images become the network's input; None without ``input_format``.
        resize: whether resizing and cropping are part of the model; otherwise the caller does both
            beforehand, and the model starts at the division.
        softmax: whether answers are probabilities.
        top_k: how many of the largest answers are given, with their indices; None gives all.
        labels: the names of the classes, in order.

    Raises:
        OptionError: a value is not one of those, or they do not go together.
    """

    input_format: InputFormat | None = None
    transforms: Transforms | None = None
    resize: bool = False
    softmax: bool = False
    top_k: int | None = None
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.input_format is not None:
            require_one_of(
                "input_format", self.input_format, INPUT_FORMATS, "None leaves the input as it is"
            )
        if self.transforms is not None and not isinstance(self.transforms, Transforms):
            raise refusal("transforms", self.transforms, "a Transforms or None")
        if self.input_format is not None and self.transforms is None:
            raise OptionError(
                f"input_format={self.input_format!r} needs transforms=...: which mean and standard "
                "deviation a network was trained with cannot be guessed"
            )
        if self.transforms is not None and self.input_format is None:
            formats = " or ".join(map(repr, INPUT_FORMATS))
            raise OptionError(
                f"transforms needs input_format={formats}: they turn images of bytes into the "
                "network's input"
            )
        require_bool("resize", self.resize)
        require_bool("softmax", self.softmax)
        self._check_resize()
        if self.top_k is not None:
            require_integer("top_k", self.top_k, "None gives all classes", most=2**31)
        if self.labels is not None and not (
            isinstance(self.labels, tuple)
            and self.labels
            and all(isinstance(name, str) for name in self.labels)
        ):
            raise refusal("labels", self.labels, "None or a tuple of names, one per class")

    def _check_resize(self) -> None:
        if not self.resize:
            return
        if self.transforms is None:
            raise OptionError("resize=True needs input_format and transforms")
        resize, crop = self.transforms.resize, self.transforms.crop
        if resize is None or crop is None:
            raise OptionError(
                f"resize=True with transforms of resize={resize}, crop={crop}: both are needed, so "
                "that the network always sees one size"
            )
        if crop > resize:
            raise OptionError(
                f"resize=True with crop={crop} beyond resize={resize}: the model does not pad; "
                "resize to at least the crop"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "transforms": None if self.transforms is None else self.transforms.to_dict(),
            "labels": None if self.labels is None else list(self.labels),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """What :meth:`to_dict` wrote.

        Raises:
            OptionError: a name is missing or unknown, or a value is of another type or range.
        """
        _exactly(cls, values)
        transforms, labels = values["transforms"], values["labels"]
        return cls(
            **{
                **values,
                "transforms": None if transforms is None else Transforms.from_dict(transforms),
                "labels": None if labels is None else as_tuple("labels", labels),
            }
        )


def _exactly(kind: type[Any], values: Any) -> None:
    names = [field.name for field in fields(kind)]
    if not isinstance(values, Mapping) or set(values) != set(names):
        got = sorted(map(str, values)) if isinstance(values, Mapping) else type(values).__name__
        raise OptionError(
            f"a stored {kind.__name__} is a mapping of {', '.join(names)}; got {got}: it was "
            "damaged, or written by another version of fastres"
        )


_TIMM = {"input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode"}
_TORCHVISION = ("resize_size", "crop_size", "interpolation", "mean", "std")


def _described(description: Any) -> dict[str, Any]:
    """The equivalent arguments of :class:`Transforms`.

    Args:
        description: torchvision's preset object or timm's data configuration.

    Raises:
        OptionError: it is neither, or asks for what fastres does not have.
    """
    if isinstance(description, Mapping):
        return _from_timm(description)
    if isinstance(description, functools.partial):
        raise OptionError(
            "transforms is a function that makes a preset: call it, weights.transforms()"
        )
    missing = [name for name in _TORCHVISION if not hasattr(description, name)]
    if missing:
        what = type(description).__name__
        raise OptionError(
            f"transforms is a {what} without {missing[0]}: expected fastres.transforms.Transforms, "
            "the preset of torchvision's weights for classification (weights.transforms()), or "
            "timm's data configuration (timm.data.resolve_data_config(model=model))"
        )
    return {
        "resize": _side("resize_size", description.resize_size),
        "crop": _side("crop_size", description.crop_size),
        "interpolation": getattr(description.interpolation, "value", description.interpolation),
        "antialias": bool(getattr(description, "antialias", True)),
        "mean": as_tuple("mean", description.mean),
        "std": as_tuple("std", description.std),
    }


def _from_timm(config: Mapping[str, Any]) -> dict[str, Any]:
    unknown = sorted(map(str, set(config) - _TIMM))
    missing = sorted(_TIMM - set(config))
    if unknown or missing:
        wrong = f"an unknown {unknown[0]!r}" if unknown else f"no {missing[0]!r}"
        raise OptionError(
            f"transforms is a dict with {wrong}: expected timm's data configuration with "
            f"{', '.join(sorted(_TIMM))}, as timm.data.resolve_data_config(model=model) gives it"
        )
    size, mode = as_tuple("input_size", config["input_size"]), config["crop_mode"]
    if len(size) != 3 or not all(is_integer(part, most=2**16) for part in size):
        raise refusal("input_size", size, "(channels, height, width)")
    if size[1] != size[2]:
        raise refusal("input_size", size, "a square image")
    if mode not in ("center", None):
        raise refusal("crop_mode", mode, "'center'", "the others distort or frame the image")
    percent = config["crop_pct"]
    if not is_number(percent) or not 0 < percent <= 1:
        raise refusal("crop_pct", percent, "a share between 0 and 1")
    mean, std = as_tuple("mean", config["mean"]), as_tuple("std", config["std"])
    if len(mean) != size[0]:
        raise refusal("mean", mean, f"{size[0]} values, one per channel of input_size")
    return {
        "resize": math.floor(size[1] / percent),
        "crop": size[1],
        "interpolation": config["interpolation"],
        "mean": mean,
        "std": std,
    }


def _side(name: str, value: Any) -> int:
    """The one number of torchvision's ``[224]``; its ``[224, 224]`` is a square only of a crop."""
    parts = list(value) if isinstance(value, (list, tuple)) else [value]
    alike = bool(parts) and all(is_integer(part, most=2**16) and part == parts[0] for part in parts)
    if not alike or len(parts) > (2 if name == "crop_size" else 1):
        raise refusal(
            name,
            value,
            "one number of pixels (the shorter side, a square)",
            "other shapes distort the image",
        )
    return int(parts[0])
