"""Transforms as torchvision and timm describe them, read without either package."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

from fastres.checks import as_tuple, is_count, is_number
from fastres.errors import OptionError

_TIMM = {"input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode"}
_TORCHVISION = ("resize_size", "crop_size", "interpolation", "mean", "std")


def read(description: Any) -> dict[str, Any]:
    """The arguments of :class:`fastres.transforms.Transforms` that say the same.

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
    if len(size) != 3 or not all(is_count(part, 2**16) for part in size):
        raise OptionError(f"input_size={size}: expected (channels, height, width)")
    if size[1] != size[2]:
        raise OptionError(f"input_size={size}: expected a square image")
    if mode not in ("center", None):
        raise OptionError(
            f"crop_mode={mode!r}: expected 'center'; the others distort or frame the image"
        )
    percent = config["crop_pct"]
    if not is_number(percent) or not 0 < percent <= 1:
        raise OptionError(f"crop_pct={percent!r}: expected a share between 0 and 1")
    mean, std = as_tuple("mean", config["mean"]), as_tuple("std", config["std"])
    if len(mean) != size[0]:
        raise OptionError(f"mean={mean}: expected {size[0]} values, one per channel of input_size")
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
    alike = bool(parts) and all(is_count(part, 2**16) and part == parts[0] for part in parts)
    if not alike or len(parts) > (2 if name == "crop_size" else 1):
        raise OptionError(
            f"{name}={value!r}: expected one number of pixels (the shorter side, a square); other "
            "shapes distort the image"
        )
    return int(parts[0])
