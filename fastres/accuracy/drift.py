"""The first layer of an optimised model that is further off than it should be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastres.accuracy.bounds import LAYER_SLACK
from fastres.accuracy.compare import Optimized
from fastres.accuracy.reference import cast_copy
from fastres.accuracy.relative_error import ErrorSums
from fastres.capture.capture import Captured, capture, in_eval_mode, model_dtype
from fastres.capture.pipeline import with_preprocessing
from fastres.ir.precision import Recorder


@dataclass(frozen=True)
class Drift:
    """The first layer whose result is further from float64 than it should be."""

    module: str
    operation: str
    error: float
    eager_error: float

    def __str__(self) -> str:
        return (
            f"{self.module} ({self.operation}): error {self.error:.2e}, "
            f"eager's {self.eager_error:.2e}"
        )


def first_drift(model: nn.Module, fast: Optimized, batch: Any, bound: float) -> Drift | None:
    """The first operator whose result is further off than the captured model's; None for none."""
    if fast.is_quantized:  # held against the definition's integers; no layer rounds as it likes
        return None
    dtype = fast.dtype
    twin, _ = in_eval_mode(model)
    captured = capture(with_preprocessing(twin, fast.preprocessing), batch)
    own = model_dtype(twin)
    exact = _values(captured, own, torch.float64)
    plain = _values(captured, own, dtype, fast.has_wider_layers)
    flat = cast_copy(captured.example, own, own)
    for node, value in fast.intermediate(flat):
        y64 = exact.get(node.meta.get("source"))
        ye = plain.get(node.meta.get("source"))
        if y64 is None or ye is None or y64.shape != value.shape:
            continue
        sums = ErrorSums(torch.finfo(dtype).eps)
        sums.add(value, y64, ye)
        if sums.ratio > LAYER_SLACK * bound:
            return Drift(
                module=str(node.meta.get("module") or "(the model itself)"),
                operation=str(node.target).removesuffix(".default"),
                error=sums.error,
                eager_error=sums.eager_error,
            )
    return None


def _values(
    captured: Captured, own: torch.dtype, dtype: torch.dtype, endless: bool = False
) -> dict[Any, Tensor]:
    recorder = Recorder(captured.module, own, dtype, endless)
    with torch.no_grad():
        recorder.run(*cast_copy(captured.example, own, recorder.dtype))
    return recorder.kept
