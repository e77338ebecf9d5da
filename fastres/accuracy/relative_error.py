"""How far numbers are from the right ones: relative root-mean-square, ``|y - y64| / |y64|``."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class ErrorSums:
    """Squares summed over tensors: of what is right, and of two errors.

    Attributes:
        floor: what eager's error counts as at least, so that a lucky eager does not make the ratio
            infinite.
        ours, exact: squares of our error, and of the answers in float64.
        eagers, eagers_exact: the same of eager, which may have been seen on more answers.
    """

    floor: float
    ours: float = 0.0
    exact: float = 0.0
    eagers: float = 0.0
    eagers_exact: float = 0.0

    def add(self, y: Tensor, y64: Tensor, eager: Tensor) -> None:
        """Add a tensor of ours, in float64, and of eager in our precision, all of one shape."""
        self.add_ours(y, y64, eager)
        self.add_eagers(eager, y64)

    def add_ours(self, y: Tensor, y64: Tensor, eager: Tensor) -> None:
        """Add a tensor to our side alone."""
        self.ours += squared_error(y, y64, eager)
        self.exact += square(y64)

    def add_eagers(self, eager: Tensor, y64: Tensor) -> None:
        """Add a tensor to eager's side alone."""
        self.eagers += squared_error(eager, y64, eager)
        self.eagers_exact += square(y64)

    @property
    def error(self) -> float:
        """Our relative error."""
        return relative(self.ours, self.exact)

    @property
    def eager_error(self) -> float:
        """Eager's relative error."""
        return relative(self.eagers, self.eagers_exact)

    @property
    def ratio(self) -> float:
        """Our error as a multiple of eager's; where eager's is infinite, of the floor."""
        eager = self.eager_error if math.isfinite(self.eager_error) else 0.0
        return self.error / max(eager, self.floor)


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
