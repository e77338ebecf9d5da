"""What makes a quantised or float16 graph of a fused one, in a saved model, for ``refresh``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from dataclasses import fields as fields_of
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastres.artifact.strict import count, fields, of_type, text
from fastres.errors import ArtifactError, OptionError
from fastres.quantization.calibration import Calibration, Quantized, Seen
from fastres.quantization.float16_ranges import Float16Ranges, Range
from fastres.quantization.observers import Scale
from fastres.quantization.settings import Quantization

_FIELDS = ("settings", "images", "scales")


def quantized_to_json(quantized: Quantized) -> dict[str, Any]:
    """Settings and scales; the means are tensors of the file."""
    calibration = quantized.calibration
    settings = {**asdict(quantized.settings), "keep": dict(quantized.settings.keep)}
    scales = {name: [each.scale, each.zero_point] for name, each in calibration.scales.items()}
    return {"settings": settings, "images": calibration.seen.images, "scales": scales}


def quantized_from_json(data: Any, means: Mapping[str, Tensor]) -> Quantized:
    """What :func:`quantized_to_json` wrote.

    Args:
        means: by the names of their values.

    Raises:
        ArtifactError: it is something else.
    """
    where = "quantized"
    settings, images, scales = fields(data, _FIELDS, where)
    names = [field.name for field in fields_of(Quantization)]
    values = dict(zip(names, fields(settings, names, f"{where}.settings"), strict=True))
    try:
        checked = Quantization(**values)
    except (OptionError, TypeError) as error:
        raise ArtifactError(f"{where}.settings: {error}") from error
    for name, mean in means.items():
        if mean.dim() != 1 or mean.dtype != torch.float64:
            raise ArtifactError(f"{where}: the means of {ascii(name)[:60]} are no vector")
    calibration = Calibration(
        {
            text(name, where): _scale(entry, f"{where}.scales")
            for name, entry in of_type(scales, dict, f"{where}.scales").items()
        },
        dict(means),
        Seen(count(images, f"{where}.images")),
    )
    return Quantized(checked, calibration)


def float16_ranges_to_json(ranges: Float16Ranges) -> dict[str, Any]:
    """Each value's range, null for what is not float32."""
    values = {
        name: None if each is None else [each.largest, each.largest_sum, each.lost]
        for name, each in ranges.values.items()
    }
    return {"images": ranges.seen.images, "values": values}


def float16_ranges_from_json(data: Any) -> Float16Ranges:
    """What :func:`float16_ranges_to_json` wrote.

    Raises:
        ArtifactError: it is something else.
    """
    where = "ranges"
    images, values = fields(data, ("images", "values"), where)
    ranges = {
        text(name, where): None if entry is None else _range(entry, f"{where}.values")
        for name, entry in of_type(values, dict, f"{where}.values").items()
    }
    return Float16Ranges(ranges, Seen(count(images, f"{where}.images")))


def _range(data: Any, where: str) -> Range:
    entry = [of_type(each, float, where) for each in of_type(data, list, where)]
    if len(entry) != 3 or not all(0 <= each < 2.0**64 for each in entry):
        raise ArtifactError(f"{where}: expected three magnitudes")
    return Range(*entry)


def _scale(data: Any, where: str) -> Scale:
    entry = of_type(data, list, where)
    if len(entry) != 2:
        raise ArtifactError(f"{where}: expected a scale and a zero point")
    scale = of_type(entry[0], float, where)
    if not 0 < scale < float(np.finfo(np.float32).max):
        raise ArtifactError(f"{where}: {scale} is no scale")
    return Scale(scale, count(entry[1], where, 255))
