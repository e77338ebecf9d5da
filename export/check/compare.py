"""Errors of a file's answers, summed over runs, and the verdict on them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastres.accuracy.bounds import EXPORT_FLOOR, NUMBERS_AGREE
from fastres.accuracy.relative_error import ErrorSums
from fastres.export.check.reference import Reference
from fastres.export.check.runner import Differs
from fastres.export.graph import Converted


@dataclass
class OutputError:
    """How one output of the file compares, over everything that was run."""

    name: str
    sums: ErrorSums


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


def floor_of(reference: Reference) -> float:
    """What PyTorch's own error counts as at least."""
    return EXPORT_FLOOR * torch.finfo(reference.dtype).eps


def nothing_yet(converted: Converted, reference: Reference) -> Checked:
    """Sums of zero, for the outputs of a file."""
    floor = floor_of(reference)
    surroundings = reference.fast.preprocessing
    ranked = surroundings is not None and surroundings.top_k is not None
    return Checked([OutputError(name, ErrorSums(floor)) for _, name in converted.outputs], ranked)


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
        into.sums.add(ours, y64, plain)
        if first and not ranked and y64.dim() >= 2 and y64.numel():
            _count_first_choices(checked, name, ours.double(), y64)
        first = False


def judge(checked: Checked, bound: float) -> None:
    """Refuse errors beyond ``bound`` times PyTorch's.

    Raises:
        Differs: one is.
    """
    for each in checked.outputs:
        if not each.sums.ratio <= bound:
            raise Differs(
                f"{each.name} has an error of {each.sums.error:.2e} against float64, "
                f"{each.sums.ratio:.1f}x PyTorch's own ({each.sums.eager_error:.2e}); "
                f"{bound:g}x is allowed"
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
