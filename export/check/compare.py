"""Errors of a file's answers, summed over runs, and the verdict on them."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastres.accuracy.relative_error import relative, square, squared_error
from fastres.export.check.reference import Reference
from fastres.export.check.runner import Differs
from fastres.export.graph import Converted
from fastres.verification import NUMBERS_AGREE

FLOOR_ULPS = 4.0
"""Units in the last place that are forgiven whatever PyTorch achieves: on a handful of numbers its
own error can be next to nothing by luck."""


@dataclass
class OutputError:
    """How one output compares, over everything that was run.

    Attributes:
        name: of the output.
        error, eager_error: relative root-mean-square against float64, of the file and of PyTorch.
        floor: the error that is forgiven in any case.
    """

    name: str
    floor: float
    ours: float = 0.0
    eagers: float = 0.0
    square: float = 0.0

    @property
    def error(self) -> float:
        """Of the file."""
        return relative(self.ours, self.square)

    @property
    def eager_error(self) -> float:
        """Of PyTorch in the same precision."""
        return relative(self.eagers, self.square)

    @property
    def ratio(self) -> float:
        """The file's error as a multiple of PyTorch's, which counts as the floor at least."""
        eager = self.eager_error if isfinite(self.eager_error) else 0.0
        return self.error / max(eager, self.floor)


@dataclass
class Checked:
    """What the checks found.

    Attributes:
        outputs: errors of the floating-point outputs.
        images, agreeing: of how many images, and on how many the first choice was float64's.
        operators: how many nodes of each kind the file has.
        done: the checks, a sentence each.
        ranked: the outputs are the largest answers and their indices, which hold the first choice.
    """

    outputs: list[OutputError]
    ranked: bool = False
    images: int = 0
    agreeing: int = 0
    operators: dict[str, int] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)


def nothing_yet(converted: Converted, reference: Reference) -> Checked:
    """Sums of zero, for the outputs of a file."""
    floor = FLOOR_ULPS * torch.finfo(reference.dtype).eps
    surroundings = reference.fast.preprocessing
    ranked = surroundings is not None and surroundings.top_k is not None
    return Checked([OutputError(name, floor) for _, name in converted.outputs], ranked)


def compare(
    checked: Checked, converted: Converted, got: list[Any], wanted: list[Any], eager: list[Any]
) -> None:
    """Add one run's answers.

    Args:
        checked: the sums.
        converted: which results the outputs are.
        got: the file's outputs, as arrays.
        wanted, eager: the reference's flattened results in float64 and in the file's precision.

    Raises:
        Differs: a shape, whole numbers, or a first choice is another.
    """
    ranked = checked.ranked
    first = True
    for (index, name), into, value in zip(converted.outputs, checked.outputs, got, strict=True):
        y64, plain = wanted[index], eager[index]
        ours = torch.from_numpy(np.asarray(value))
        if tuple(ours.shape) != tuple(y64.shape):
            raise Differs(f"{name} is {list(ours.shape)}, expected {list(y64.shape)}")
        if not y64.is_floating_point():
            if ours.numel() and float((ours == y64).double().mean()) < NUMBERS_AGREE:
                raise Differs(f"{name} holds other numbers")
            if ranked and y64.dim() == 2:
                checked.images += len(y64)
                checked.agreeing += int((ours[:, 0] == y64[:, 0]).sum())
            continue
        into.ours += squared_error(ours, y64, plain)
        into.eagers += squared_error(plain, y64, plain)
        into.square += square(y64)
        if first and not ranked and y64.dim() >= 2 and y64.numel():
            _count_first_choices(checked, name, ours.double(), y64)
        first = False


def judge(checked: Checked, bound: float) -> None:
    """Refuse errors beyond ``bound`` times PyTorch's.

    Raises:
        Differs: one is.
    """
    for each in checked.outputs:
        if not each.ratio <= bound:
            raise Differs(
                f"{each.name} has an error of {each.error:.2e} against float64, {each.ratio:.1f}x "
                f"PyTorch's own ({each.eager_error:.2e}); {bound:g}x is allowed"
            )


def _count_first_choices(checked: Checked, name: str, ours: Tensor, y64: Tensor) -> None:
    """A first choice may be another only where float64 itself is undecided within the error."""
    flat, flat64 = ours.flatten(1), y64.flatten(1)
    chosen, right = flat.argmax(1), flat64.argmax(1)
    checked.images += len(chosen)
    checked.agreeing += int((chosen == right).sum())
    lead = flat64.gather(1, right[:, None]) - flat64.gather(1, chosen[:, None])
    if bool((lead[:, 0] > 2 * (flat - flat64).abs().amax(1)).any()):
        raise Differs(f"{name} has another first choice than float64")
