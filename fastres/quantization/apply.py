"""What a calibration makes of a fused float32 graph: int8, or float16 beside float32."""

from __future__ import annotations

from typing import TypeAlias

from torch import fx

from fastres.quantization.calibration import Quantized
from fastres.quantization.equalize import equalize
from fastres.quantization.float16_ranges import Float16Ranges
from fastres.quantization.narrow import narrow_and_tell
from fastres.quantization.quantize import quantize_and_tell
from fastres.report import Report

Calibrated: TypeAlias = Quantized | Float16Ranges
"""What calibration found, and makes a graph of; it is kept with a model, for new weights."""


def apply(module: fx.GraphModule, calibrated: Calibrated, report: Report) -> None:
    """Rewrite a fused float32 graph in place, by the ranges that were found with other weights.

    Raises:
        ModelError: these weights make another graph, of which calibration saw nothing.
    """
    if isinstance(calibrated, Float16Ranges):
        narrow_and_tell(module, calibrated, report)
        return
    if calibrated.settings.equalization:
        equalize(module)
    quantize_and_tell(module, calibrated, report)
