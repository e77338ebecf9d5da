"""Which layers lose the most in int8."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastres.capture.imports import import_ahead
from fastres.capture.wrappers import unwrapped
from fastres.checks import is_number, refusal
from fastres.errors import (
    OptionError,
)
from fastres.optimization.fusing import fuse, refuse_without_values
from fastres.optimization.quantizing import calibrated
from fastres.options import Options
from fastres.quantization.sensitivity import SensitivityTable, sensitivities
from fastres.quantization.settings import requested
from fastres.runtime.autocast import without_autocast
from fastres.system.plain_tensors import refuse_under_tracing
from fastres.system.threads import preparing


def sensitivity(
    model: nn.Module,
    calibration: Any,
    example_input: Any = None,
    *,
    observer: str = "mse",
    time_limit: float = 60.0,
) -> SensitivityTable:
    """Which layers lose the most in int8: each is quantised by itself, the others stay float32.

    The rows' names go into ``optimize(..., precision="int8", keep={name: "bf16"})``.

    Args:
        model: as for :func:`optimize`; it is not changed.
        calibration: batches, as for :func:`optimize`; the first 64 images are what is measured on.
        example_input: as for :func:`optimize`.
        observer: how ranges are chosen, as for :func:`optimize`.
        time_limit: seconds after which no further layer is begun.

    Returns:
        A list of layers, those that lose the most first; ``print`` it.

    Raises:
        OptionError, InputError, ModelError, CaptureError: as :func:`optimize`.
    """
    if not isinstance(model, nn.Module):
        raise OptionError(f"model is a {type(model).__name__}: expected an nn.Module")
    if not is_number(time_limit) or time_limit <= 0:
        raise refusal("time_limit", time_limit, "a positive number of seconds")
    refuse_under_tracing("sensitivity")
    settings = requested("int8", calibration, {"observer": observer})
    assert settings is not None
    import_ahead()
    model, _ = unwrapped(model)
    refuse_without_values(model)
    with preparing(), torch.no_grad(), without_autocast(), torch.inference_mode(False):
        fused = fuse(model, example_input, Options(precision="int8"), None)
        found = calibrated(fused.captured, settings, calibration)
        return sensitivities(fused.captured.module, found, settings, time_limit)
