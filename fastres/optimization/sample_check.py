"""The last stages: the first call, and what it answers against the model in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fastres.accuracy.bounds import SAMPLE_BOUND, SAMPLE_IMAGES
from fastres.accuracy.compare import compare
from fastres.accuracy.drift import first_drift
from fastres.accuracy.sample import (
    draws_random_numbers,
    leading,
    on_device,
    shapes_of,
)
from fastres.capture.capture import Captured
from fastres.capture.contract import Contract
from fastres.capture.diagnose import eager_fault
from fastres.errors import (
    CaptureError,
    FastresError,
    InputError,
    VerificationError,
)
from fastres.optimized import OptimizedModule
from fastres.report import Check, Report
from fastres.runtime.integers import is_wholly_quantized, refuse_others
from fastres.runtime.native.library import let_go


def run_once(fast: OptimizedModule, captured: Captured, sample: list[Any], report: Report) -> None:
    """Make the first call, and put on the receipt what the engine said."""
    args, kwargs = pytree.tree_unflatten(on_device(sample, report.device), captured.in_spec)
    fast(*args, **kwargs)
    left, notes = fast.engine_remarks(on_device(sample, report.device))
    report.threads = fast.threads if report.device == "cpu" else None
    report.add_engine(left, notes)


def check_sample(
    model: nn.Module, fast: OptimizedModule, captured: Captured, sample: list[Any], report: Report
) -> list[str]:
    """Compare the answers to a sample with the model's.

    Returns:
        What the caller is to be warned of, in sentences.

    Raises:
        VerificationError: they are further off than :data:`SAMPLE_BOUND` allows, or other integers
            than the definition's.
    """
    if draws_random_numbers(captured.module):
        report.notes.append("not checked on a sample: the model draws random numbers in eval mode")
        return []
    # One image too: torch.export takes for granted that a batch has two or more.
    one, some = leading(sample, 1), leading(sample, SAMPLE_IMAGES)
    samples = [one, some] if shapes_of(one) != shapes_of(some) else [some]
    allowed = [each for each in samples if _is_allowed(captured.contract, each)]
    warned: list[str] = []
    for arguments in allowed or [sample]:
        args, kwargs = pytree.tree_unflatten(arguments, captured.in_spec)
        let_go()  # or the activations of the last call would lie beside those in float64
        comparison = compare(model, fast, [(args, kwargs)])
        report.check = Check(
            comparison.error, comparison.eager_error, comparison.ratio, shapes_of(arguments)
        )
        if fast.is_quantized and is_wholly_quantized(fast.graph_module.graph):
            refuse_others(report.engine, comparison.different)
            continue
        advice = (
            "Unless the model's code treats a batch of one differently, which one graph cannot, "
            "this is a defect of fastres: please report it"
        )
        if comparison.overflowed and fast.dtype == torch.float16:
            advice = _beyond_float16(comparison.overflowed, shapes_of(arguments), report)
            warned = [advice]
        if not comparison.ratio <= SAMPLE_BOUND:
            raise VerificationError(
                f"the optimised {report.model} differs from the model: error "
                f"{comparison.error:.2e} on {shapes_of(arguments)}, {comparison.ratio:.1f}x that "
                f"of torch eager (allowed {SAMPLE_BOUND:g}x). Nothing is returned. The first layer "
                f"that drifts: {_drifting(model, fast, captured, arguments)}. {advice}"
            )
    report.notes += warned
    return warned


def _beyond_float16(count: int, shapes: str, report: Report) -> str:
    advice = "precision='fp16' with calibration=images keeps layers that overflow in float32"
    if "calibration" in report.seconds:
        advice = "calibrate on images like these, or take precision='bf16'"
    return (
        f"{count} answer{'s' if count > 1 else ''} to a sample {shapes} "
        f"{'are' if count > 1 else 'is'} NaN or infinite, because float16 ends at 65504: {advice}"
    )


def _drifting(
    model: nn.Module, fast: OptimizedModule, captured: Captured, arguments: list[Any]
) -> str:
    """The first layer that is further off than it should be, or that there is none."""
    args, kwargs = pytree.tree_unflatten(arguments, captured.in_spec)
    try:
        drift = first_drift(model, fast, (args, kwargs), SAMPLE_BOUND)
    except Exception as error:  # noqa: BLE001 - another failure must not hide the one at hand
        return f"unknown ({type(error).__name__})"
    return str(drift or "none by itself")


def _is_allowed(contract: Contract, arguments: list[Any]) -> bool:
    """Whether these sizes are allowed: a model may fix its batch."""
    try:
        contract.check(arguments)
    except InputError:
        return False
    return True


@contextmanager
def naming_the_module(model: nn.Module, captured: Captured, sample: list[Any]) -> Iterator[None]:
    """Name the module where the model itself cannot be run, though capture's stand-ins could."""
    try:
        yield
    except FastresError:
        raise
    except Exception as error:
        fault = eager_fault(model, *pytree.tree_unflatten(sample, captured.in_spec))
        if fault is None:
            raise
        raise CaptureError(
            f"{type(model).__name__} cannot be run on {shapes_of(sample)}: {fault}"
        ) from error
