"""The first half: capture a model, and let the passes rewrite its graph."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fastres.artifact.recipe import Recipe, record
from fastres.capture import pipeline
from fastres.capture.capture import Captured, capture, in_eval_mode, model_dtype
from fastres.errors import (
    ArtifactError,
    ModelError,
)
from fastres.options import Options
from fastres.passes import rewrite
from fastres.report import Report
from fastres.system.heap import give_back
from fastres.system.plain_tensors import materialized, why_not_plain
from fastres.system.progress import shown_if_slow
from fastres.transforms import Preprocessing


@dataclass(frozen=True)
class Fused:
    """A captured model, its graph rewritten by the passes."""

    evaluated: nn.Module
    captured: Captured
    recipe: Recipe | str
    report: Report
    notes: list[str]


def fuse(
    model: nn.Module,
    example_input: Any,
    options: Options,
    surroundings: Preprocessing | None,
    is_calibrated: bool = False,
) -> Fused:
    """Capture a model with what surrounds it, and run the passes.

    Args:
        is_calibrated: fold in float32, for what is calibrated afterwards.

    Raises:
        CaptureError: the model cannot be captured as one graph.
        ModelError: it has no convolution.
    """
    report = Report(type(model).__name__)
    with stage(report, "capture"):
        example_input = pytree.tree_map(partial(materialized, name="example_input"), example_input)
        evaluated, notes = in_eval_mode(model)
        example = pipeline.example_for(evaluated, surroundings, example_input)
        captured = capture(pipeline.with_preprocessing(evaluated, surroundings), example)
    report.notes += [*notes, *captured.notes, *pipeline.notes(surroundings)]
    own = model_dtype(evaluated)
    dtype = options.dtype(own, is_calibrated)
    device = options.device or captured.device
    recipe = _recipe(captured, evaluated, own, report)
    # Folded weights made in inference mode could not be written to later.
    with stage(report, "passes"), torch.inference_mode(False), torch.no_grad():
        rewrite(captured.module, report, own, dtype, device)
    if not report.found["convolution"]:
        raise ModelError(
            f"{type(model).__name__} has no two-dimensional convolution that runs in forward: "
            "there is nothing for fastres to speed up"
        )
    if options.device is not None:
        captured.move_to(options.device)
    report.precision = str(dtype).removeprefix("torch.")
    return Fused(evaluated, captured, recipe, report, notes)


def _recipe(captured: Captured, model: nn.Module, own: torch.dtype, report: Report) -> Recipe | str:
    """What refreshes the weights later, or why they cannot be."""
    try:
        return record(captured.module, model, own, report.notes)
    except ArtifactError as error:
        return str(error)


@contextmanager
def stage(report: Report, name: str, shown: bool = True) -> Iterator[None]:
    """Time what is inside, for the receipt, and give back the memory that it needed meanwhile.

    Args:
        shown: tell of it on a terminal, if it takes long; not where it has a bar of its own.
    """
    started = time.perf_counter()
    line = shown_if_slow(f"{report.model}: {name}") if shown else contextlib.nullcontext()
    with line:
        yield
    give_back()
    report.seconds[name] = time.perf_counter() - started


def refuse_without_values(model: nn.Module) -> None:
    """Raise ModelError where a weight does not lie in memory."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            continue  # capture tells of the hook that would make it
        if tensor.is_meta:
            raise ModelError(
                f"{name} is on the meta device and has no values: load the weights first "
                "(model.to_empty(device='cpu'), then load_state_dict)"
            )
        found = why_not_plain(tensor)
        if found is not None:
            raise ModelError(
                f"{name} is no plain tensor: {found}; give the model weights that lie in memory"
            )
