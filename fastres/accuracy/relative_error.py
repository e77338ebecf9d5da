"""How far numbers are from the right ones: relative root-mean-square, ``|y - y64| / |y64|``."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def relative(squared_error: float, square: float) -> float:
    """The relative error of sums of squares; infinite where all should be zero and is not."""
    if squared_error == 0.0:
        return 0.0
    return math.sqrt(squared_error / square) if square else math.inf


def squared_error(y: Tensor, y64: Tensor, eager: Tensor) -> float:
    """Sum of squares of ``y - y64`` where both are numbers.

    Infinite if somewhere only one of them is NaN or infinite, unless eager does there what ``y``
    does: then the model overflows in this precision by itself.
    """
    alike = _same_kind(y, y64) | _same_kind(y, eager)
    if not bool(alike.all()):
        return math.inf
    difference = y.double() - y64
    return float(torch.where(torch.isfinite(difference), difference, 0).square().sum())


def _same_kind(a: Tensor, b: Tensor) -> Tensor:
    """Where both are numbers, both NaN, or the same infinity."""
    numbers = torch.isfinite(a) & torch.isfinite(b)
    return numbers | (torch.isnan(a) & torch.isnan(b)) | (torch.isinf(a) & (a == b.to(a.dtype)))


def square(exact: Tensor) -> float:
    """Sum of squares of what is finite."""
    return float(torch.where(torch.isfinite(exact), exact, 0).square().sum())
