"""Proof that an optimised model is still the user's model.

The oracle is the model itself in float64. The yardstick is the model itself in the optimised
model's precision: an error is only meaningful as a multiple of what plain torch makes. Errors are
relative root-mean-square: ``|y - y64| / |y64|`` with Euclidean norms over all answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastres.accuracy.bounds import BOUND
from fastres.accuracy.compare import compare
from fastres.accuracy.drift import Drift, first_drift
from fastres.capture.capture import refuse_torchscript
from fastres.capture.wrappers import unwrapped
from fastres.errors import OptionError
from fastres.optimized import OptimizedModule
from fastres.system.plain_tensors import materialized, refuse_under_tracing
from fastres.system.threads import safe_threads


@dataclass(frozen=True)
class Verification:
    """How an optimised model compares with the model it was made from.

    Attributes:
        error, eager_error: relative root-mean-square error against float64, over all answers.
        error_ratio: ``error`` as a multiple of ``eager_error`` (at least one unit in the last
            place of the precision, so that a lucky eager does not make the ratio infinite).
        top1_agreement: share of images on which the largest answer is the same as in float64.
        first_drift: first layer beyond :data:`fastres.accuracy.bounds.LAYER_SLACK` times the bound,
            None if there is none.
        bound: what ``error_ratio`` was compared with.
        images: number of images.
        precision: the optimised model's dtype, or int8; then eager's own error is that of int8's
            definition, computed by torch's operators one by one.
    """

    error: float
    eager_error: float
    error_ratio: float
    top1_agreement: float
    first_drift: Drift | None
    bound: float
    images: int
    precision: str

    @property
    def passed(self) -> bool:
        """Whether the error is within the bound; a NaN where float64 has a number is not."""
        return self.error_ratio <= self.bound

    def __str__(self) -> str:
        whose = f"eager's own in {self.precision}"
        if self.precision == "int8":
            whose = "that of int8's definition"
        lines = [
            f"{'passed' if self.passed else 'FAILED'}: error {self.error:.2e}, "
            f"{self.error_ratio:.2f}x {whose} ({self.eager_error:.2e}), bound {self.bound:g}x",
            f"top-1 agreement with float64: {self.top1_agreement:.2%} of {self.images} images",
            f"first layer that drifts: {self.first_drift or 'none'}",
        ]
        return "\n".join(lines)


@safe_threads()
def verify(
    model: nn.Module, fast: OptimizedModule, data: Tensor | Iterable[Any], *, bound: float = BOUND
) -> Verification:
    """Compare ``fast`` with ``model`` on ``data``.

    Args:
        model: the model that ``fast`` was made from; it is not changed.
        fast: the optimised model.
        data: a batch [N, C, H, W], or an iterable of batches; a batch of several arguments is a
            tuple or dict, as for ``example_input``. As ``fast`` takes it: where that preprocesses
            images, these are images, and the reference preprocesses them in float64.
        bound: largest allowed multiple of eager's own error.

    Raises:
        OptionError: ``data`` has no batch or tensors without values, ``fast`` is not an optimised
            model, or something watches this thread's calls (a fake mode, say).
        CaptureError: ``model`` is TorchScript, or cannot be captured.
    """
    refuse_under_tracing("verify")
    if not isinstance(fast, OptimizedModule):
        raise OptionError(f"fast is a {type(fast).__name__}: expected what optimize() returned")
    if not bound > 0:
        raise OptionError(f"bound={bound!r}: expected a positive multiple of eager's error")
    if not isinstance(model, nn.Module):
        raise OptionError(f"model is a {type(model).__name__}: expected an nn.Module")
    if not isinstance(data, Iterable):
        raise OptionError(
            f"data is a {type(data).__name__}: expected a tensor [N, C, H, W] or an iterable of "
            "such batches"
        )
    model, _ = unwrapped(model)
    refuse_torchscript(model)
    batches = [data] if isinstance(data, Tensor) else list(data)
    batches = pytree.tree_map(partial(materialized, name="data"), batches)
    if not batches:
        raise OptionError("data has no batch: pass a tensor [N, C, H, W] or an iterable of them")
    comparison = compare(model, fast, batches)
    drifts = (first_drift(model, fast, batch, bound) for batch in batches)
    drift = next(filter(None, drifts), None)
    return Verification(
        error=comparison.error,
        eager_error=comparison.eager_error,
        error_ratio=comparison.ratio,
        top1_agreement=comparison.agreeing / max(comparison.images, 1),
        first_drift=drift,
        bound=bound,
        images=comparison.images,
        precision="int8" if fast.is_quantized else str(fast.dtype).removeprefix("torch."),
    )
