"""Errors of a file's outputs, summed over runs, and whether they are within the bound."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastres.accuracy.bounds import EXPORT_FLOOR, NUMBERS_AGREE
from fastres.accuracy.relative_error import ErrorSums
from fastres.export.check.reference import Reference
from fastres.export.check.runner import OutputsDiffer
from fastres.export.graph import Converted


@dataclass
class OutputError:
    """How one output of the file compares, over everything that was run."""

    name: str
    sums: ErrorSums


@dataclass
class Checked:
    """The result of the checks.

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
    """The least that PyTorch's own error counts as, so that no ratio is to an error near zero."""
    return EXPORT_FLOOR * torch.finfo(reference.dtype).eps


def empty_result(converted: Converted, reference: Reference) -> Checked:
    """The result before any run: sums of zero for each output of the file."""
    floor = floor_of(reference)
    surroundings = reference.fast.preprocessing
    ranked = surroundings is not None and surroundings.top_k is not None
    return Checked([OutputError(name, ErrorSums(floor)) for _, name in converted.outputs], ranked)


def compare(
    checked: Checked, converted: Converted, got: list[Any], expected: list[Any], eager: list[Any]
) -> None:
    """Add the errors of one run.

    Args:
        checked: the result so far, to which errors are added.
        converted: which results the outputs are.
        got: the file's outputs, as arrays.
        expected, eager: the reference's flattened results in float64 and in the file's precision.

    Raises:
        Differs: a shape, whole numbers, or a first choice is another.
    """
    ranked = checked.ranked
    first = True
    for (index, name), output, value in zip(converted.outputs, checked.outputs, got, strict=True):
        y64, eager_value = expected[index], eager[index]
        actual = torch.from_numpy(np.asarray(value))
        if tuple(actual.shape) != tuple(y64.shape):
            raise OutputsDiffer(f"{name} is {list(actual.shape)}, expected {list(y64.shape)}")
        if not y64.is_floating_point():
            if actual.numel() and float((actual == y64).double().mean()) < NUMBERS_AGREE:
                raise OutputsDiffer(f"{name} holds other numbers")
            if ranked and y64.dim() == 2:
                checked.images += len(y64)
                checked.agreeing += int((actual[:, 0] == y64[:, 0]).sum())
            continue
        output.sums.add(actual, y64, eager_value)
        if first and not ranked and y64.dim() >= 2 and y64.numel():
            _count_first_choices(checked, name, actual.double(), y64)
        first = False


def judge(checked: Checked, bound: float) -> None:
    """Refuse errors beyond ``bound`` times PyTorch's.

    Raises:
        OutputsDiffer: the error of an output is beyond it.
    """
    for each in checked.outputs:
        if not each.sums.ratio <= bound:
            raise OutputsDiffer(
                f"{each.name} has an error of {each.sums.error:.2e} against float64, "
                f"{each.sums.ratio:.1f}x PyTorch's own ({each.sums.eager_error:.2e}); "
                f"{bound:g}x is allowed"
            )


def _count_first_choices(checked: Checked, name: str, actual: Tensor, y64: Tensor) -> None:
    """Count the images whose largest output is float64's.

    Raises:
        OutputsDiffer: it is another, and float64's lead is larger than the error could explain.
    """
    flat, flat64 = actual.flatten(1), y64.flatten(1)
    chosen, expected = flat.argmax(1), flat64.argmax(1)
    checked.images += len(chosen)
    checked.agreeing += int((chosen == expected).sum())
    lead = flat64.gather(1, expected[:, None]) - flat64.gather(1, chosen[:, None])
    if bool((lead[:, 0] > 2 * (flat - flat64).abs().amax(1)).any()):
        raise OutputsDiffer(f"{name} has another first choice than float64")
