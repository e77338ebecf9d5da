"""The check that a peer has to pass before it is timed: its outputs against the model in float64.

    error = |y - y64| / |y64|        (2-norms, over all outputs for all images that are checked)

What matters is not the error itself, which the model and the precision bring with them, but how
many times eager's own error in the same precision it is.

torch eager does not compute in int8. There fastres has a definition to be held to, operator by
operator and bit for bit, and the error is a multiple of the definition's: 1. Peers have scales and
roundings of their own, so that a multiple would say nothing of them; they pass up to an error of
`ABSOLUTE`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fastres.dtypes import PRECISIONS

ABSOLUTE = {"fp32": 1e-3, "tf32": 0.1, "bf16": 0.5, "fp16": 0.1, "int8": 0.5}
"""Whoever answers passes up to this error, eager itself too: beyond it, answers are noise."""


@dataclass(frozen=True)
class Outputs:
    """A model's outputs for some images.

    Attributes:
        values: float64, ``[images, everything the model returns for one image]``.
        first_choice: index of the largest logit per image; None if the model returns no logits.
    """

    values: torch.Tensor
    first_choice: torch.Tensor | None

    def first(self, images: int) -> Outputs:
        """The outputs for the first few images."""
        choice = self.first_choice
        return Outputs(self.values[:images], None if choice is None else choice[:images])


@dataclass(frozen=True)
class Verdict:
    """Whether a peer's outputs pass, and their error.

    Attributes:
        error: relative to float64, see the module; NaN if an answer is.
        ratio: as a multiple of eager's own error in the same precision, or of that of the
            precision's definition; None where there is neither.
        top1: share of images with the same first choice as in float64; None without logits.
        reason: why the peer fails, or None if it passes.
    """

    error: float
    ratio: float | None
    top1: float | None
    reason: str | None


def collect(call: Callable[[torch.Tensor], object], batches: Iterable[torch.Tensor]) -> Outputs:
    """Run a callable on batch after batch and collect its outputs.

    Raises:
        ValueError: it returns something that is not tensors or arrays with a row per image.
    """
    values: list[torch.Tensor] = []
    choices: list[torch.Tensor] = []
    for images in batches:
        results = [_rows(leaf, len(images)) for leaf in leaves(call(images))]
        if not results:
            raise ValueError("it returned no tensor at all")
        values.append(torch.cat([result.flatten(1) for result in results], dim=1))
        if results[0].ndim == 2 and results[0].shape[1] > 1:
            choices.append(results[0].argmax(1))
    all_have_classes = len(choices) == len(values)
    return Outputs(torch.cat(values), torch.cat(choices) if all_have_classes else None)


def float64_outputs(model: nn.Module, images: torch.Tensor, chunk: int = 8) -> Outputs:
    """The outputs of a float64 copy of the model, the reference of every comparison."""
    double_model = copy.deepcopy(model).double()

    def call(batch: torch.Tensor) -> object:
        with torch.no_grad():
            return double_model(batch.double())

    return collect(call, images.split(chunk))


def judge(
    outputs: Outputs,
    expected: Outputs,
    *,
    precision: str,
    eager_error: float | None,
    bound: float,
    definition: Outputs | None = None,
    is_exact: bool = False,
) -> Verdict:
    """Compare outputs with those in float64.

    Args:
        outputs: a peer's.
        expected: those in float64, for the same images.
        precision: a key of `fastres.bench.peers.peer.DTYPES`.
        eager_error: eager's own error in this precision, for the same images; None where it does
            not compute in it.
        bound: the largest multiple of it that passes.
        definition: the outputs that the precision's definition gives, whose error then stands for
            eager's.
        is_exact: whether no others pass.
    """
    error = relative_error(outputs, expected)
    yardstick = "eager's own"
    if definition is not None:
        eager_error = relative_error(definition, expected)
        yardstick = "that of its definition"
    # Where eager happens to make no rounding at all, multiples of its error mean nothing.
    least = torch.finfo(PRECISIONS[precision].folded).eps
    ratio = None if eager_error is None else error / max(eager_error, least)
    top1 = None
    if outputs.first_choice is not None and expected.first_choice is not None:
        top1 = (outputs.first_choice == expected.first_choice).double().mean().item()
    reason = None
    if not error <= ABSOLUTE[precision]:  # also true of NaN
        reason = f"error {error:.1e}, at most {ABSOLUTE[precision]:g} is accepted in {precision}"
    elif ratio is not None and not ratio <= bound:
        reason = (
            f"error {error:.1e} is {ratio:.1f} times {yardstick} in {precision}, "
            f"at most {bound:g} times is accepted"
        )
    elif is_exact and definition is not None:
        different = int((outputs.values != definition.values).sum())
        if different:
            reason = (
                f"{different} of {outputs.values.numel()} answers differ from {precision}'s "
                "definition, whose every bit is expected"
            )
    return Verdict(error, ratio, top1, reason)


def relative_error(outputs: Outputs, expected: Outputs) -> float:
    """2-norm of the difference over that of ``expected``; infinite where the shapes differ."""
    if outputs.values.shape != expected.values.shape:
        return math.inf
    difference = float(torch.linalg.vector_norm(outputs.values - expected.values))
    size = float(torch.linalg.vector_norm(expected.values))
    if size == 0:
        return 0.0 if difference == 0 else math.inf
    return difference / size


def finite(value: float | None) -> float | None:
    """The value, or None for infinity and NaN, which JSON does not have."""
    return value if value is not None and math.isfinite(value) else None


def leaves(output: object) -> list[Any]:
    """The tensors and arrays in nested tuples, lists and dicts, in order."""
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (tuple, list)):
        return [leaf for item in output for leaf in leaves(item)]
    return [] if output is None else [output]


def _rows(leaf: object, images: int) -> torch.Tensor:
    if isinstance(leaf, np.ndarray):
        leaf = torch.from_numpy(leaf)
    if not isinstance(leaf, torch.Tensor):
        raise ValueError(f"it returned {type(leaf).__name__}, expected tensors or arrays")
    if leaf.ndim == 0 or len(leaf) != images:
        raise ValueError(f"it returned {list(leaf.shape)} for {images} images, expected a row each")
    return leaf.detach().cpu().double()
