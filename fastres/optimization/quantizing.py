"""Between the passes and the engine: a fused float32 graph becomes int8, or float16."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import nn

from fastres.capture.capture import Captured
from fastres.checks import refusal
from fastres.dtypes import PRECISIONS
from fastres.errors import (
    TargetError,
)
from fastres.quantization.calibration import Calibration, Calls, Quantized, calibrate
from fastres.quantization.equalize import equalize
from fastres.quantization.float16_ranges import Float16Ranges, float16_ranges
from fastres.quantization.narrow import narrow_and_tell
from fastres.quantization.quantize import observed, quantize_and_tell
from fastres.quantization.settings import Quantization
from fastres.report import Report


def quantized_by(
    captured: Captured, settings: Quantization, data: Any, report: Report
) -> Quantized:
    """Calibrate a fused float32 graph and quantise it, in place."""
    quantized = Quantized(settings, calibrated(captured, settings, data))
    quantize_and_tell(captured.module, quantized, report)
    return quantized


def narrowed_by(captured: Captured, data: Any, report: Report) -> Float16Ranges:
    """Look at a fused float32 graph's values and make what float16 can hold float16, in place."""
    ranges = float16_ranges(captured.module, data, _calls(captured))
    narrow_and_tell(captured.module, ranges, report)
    return ranges


def calibrated(captured: Captured, settings: Quantization, data: Any) -> Calibration:
    """The ranges of a fused float32 graph; its weights are evened out where that is asked for."""
    module, how = captured.module, _calls(captured)
    device = how.device
    if device.type not in PRECISIONS["int8"].devices:
        raise TargetError(
            f"precision='int8' has no kernels for {device.type}; expected a model on the CPU or on "
            "a GPU, device='cpu' or device='cuda'"
        )
    if settings.equalization:
        equalize(module)
    nodes = observed(module.graph, settings)
    return calibrate(module, nodes, data, how, settings.observer)


def _calls(captured: Captured) -> Calls:
    device = next((buffer.device for buffer in captured.module.buffers()), torch.device("cpu"))
    return Calls(captured.signature, captured.in_spec, captured.contract.check, device)


def refuse_unknown_modules(model: nn.Module, settings: Quantization) -> None:
    """Raise OptionError where a layer is to stay wider that the model does not have."""
    names = {name for name, _ in model.named_modules()}
    for name in settings.keep:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            advice = f"did you mean {close[0]!r}?" if close else "see model.named_modules()"
            raise refusal("keep", name, f"the name of a module of {type(model).__name__}", advice)
