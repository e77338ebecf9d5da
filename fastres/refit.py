"""New weights for an optimised model: the passes again on the captured graph, and a check."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fastres.accuracy.bounds import SAMPLE_BOUND
from fastres.accuracy.compare import different
from fastres.accuracy.reference import cast_copy
from fastres.accuracy.relative_error import ErrorSums
from fastres.accuracy.sample import draws_random_numbers, on_device, shapes_of
from fastres.artifact.recipe import ReadRecipe, Recipe, make_graph
from fastres.capture.contract import Contract
from fastres.errors import (
    ArtifactError,
    FastresError,
    NotOptimizedError,
    VerificationError,
)
from fastres.ir.precision import Recorder
from fastres.options import Options
from fastres.quantization.apply import Calibrated, apply
from fastres.quantization.calibration import Quantized
from fastres.quantization.float16_ranges import Float16Ranges
from fastres.report import Check, Report
from fastres.runtime.autocast import without_autocast
from fastres.runtime.engine import choose
from fastres.runtime.integers import by_definition, is_wholly_quantized, refuse_others
from fastres.runtime.runner import Runner
from fastres.system.device import move


@dataclass(frozen=True)
class Refitted:
    """What replaces an optimised model's graph, receipt and runner, all at once."""

    module: fx.GraphModule
    report: Report
    runner: Runner


def refit(
    recipe: Recipe,
    state_dict: Mapping[str, Any],
    options: Options,
    contract: Contract,
    sample: list[Any],
    old: Report,
    check: bool,
    calibrated: Calibrated | None = None,
) -> Refitted:
    """The graph that ``optimize`` would make of the model with these weights.

    Args:
        recipe: the captured graph.
        state_dict: the weights, by the names of the model's ``state_dict()``.
        options: as the model was optimised.
        contract: the inputs that the graph takes, on the device where it runs.
        sample: flattened arguments of one call, on that device.
        old: the receipt so far.
        check: compare with the captured graph in float64.
        calibrated: the ranges that calibration found with the old weights, which are kept.

    Raises:
        OptionError: the state dict does not fit.
        NotOptimizedError: under ``strict``, something was not optimised with these weights.
        TargetError: the engine that was asked for cannot run these weights.
        VerificationError: the answers differ from the captured graph's.
        ArtifactError: the recipe came from a file and is no captured graph.
    """
    started = time.perf_counter()
    read = ReadRecipe(recipe)
    state = read.checked(state_dict)
    report = Report(old.model, notes=list(read.notes))
    dtype = options.dtype(read.model_dtype, calibrated is not None)
    device = torch.device(old.device)
    try:
        with without_autocast():
            module = make_graph(read, state, dtype, device, report)
        move(module, read.device, device)
    except FastresError:
        raise
    except Exception as error:  # of torch, on a graph from a changed file
        raise ArtifactError(
            f"the captured graph cannot be optimised again ({type(error).__name__}: {error}); the "
            "old weights are kept. Optimise the model itself"
        ) from error
    report.precision = str(dtype).removeprefix("torch.")
    report.device = old.device
    if calibrated is not None:
        with torch.inference_mode(False), torch.no_grad():
            apply(module, calibrated, report)
    remaining = [*report.refused, *report.left]
    if options.strict and remaining:
        first = remaining[0]
        raise NotOptimizedError(first.module, f"{first.what}: {first.reason}")
    report.seconds["passes"] = time.perf_counter() - started
    engine, passed_over = choose(options, module)
    report.engine = engine.name
    runner = Runner(module, contract, engine, options.threads_per_call)
    started = time.perf_counter()
    executable = runner.executable(sample)
    report.add_engine(executable.remarks, [*passed_over, *executable.notes])
    report.threads = runner.limit.threads if device.type == "cpu" else None
    report.seconds["first shape"] = time.perf_counter() - started
    report.notes.append(
        "the weights were renewed by refresh(), from the captured graph; the model's code did not "
        "run again"
    )
    if check:
        started = time.perf_counter()
        _compare(read, state, runner, sample, report, calibrated)
        report.seconds["check"] = time.perf_counter() - started
    return Refitted(module, report, runner)


def _compare(
    read: ReadRecipe,
    state: Mapping[str, Tensor],
    runner: Runner,
    sample: list[Any],
    report: Report,
    calibrated: Calibrated | None,
) -> None:
    """Hold the answers against those of the captured graph in float64, as ``optimize`` does."""
    is_quantized, is_float16 = (isinstance(calibrated, kind) for kind in (Quantized, Float16Ranges))
    precision = torch.float32 if is_quantized else getattr(torch, report.precision)
    captured = read.graph(state)
    if draws_random_numbers(captured):
        report.notes.append("not checked on a sample: the model draws random numbers in eval mode")
        return
    arguments = on_device(sample, str(read.device))
    with torch.no_grad(), without_autocast():
        exact, plain = (
            Recorder(captured, read.model_dtype, dtype, endless).run(
                *cast_copy(arguments, read.model_dtype, torch.float32 if endless else dtype)
            )
            for dtype, endless in ((torch.float64, False), (precision, is_float16))
        )
        if is_quantized:
            plain = by_definition(runner, sample)
        ours = runner(sample)
    sums = ErrorSums(torch.finfo(precision).eps)
    for y64, ye, y in zip(exact, plain, ours, strict=True):
        if isinstance(y64, Tensor) and y64.is_floating_point():
            sums.add(y.to(y64.device), y64, ye)
    shapes = shapes_of(sample)
    report.check = Check(sums.error, sums.eager_error, sums.ratio, shapes)
    if is_quantized:
        if is_wholly_quantized(runner.module.graph):
            refuse_others(runner.engine.name, different(ours, plain))
        return
    if not sums.ratio <= SAMPLE_BOUND:
        raise VerificationError(
            f"with these weights the optimised {report.model} differs from the captured graph: "
            f"error {sums.error:.2e} on {shapes}, {sums.ratio:.1f}x that of torch eager (allowed "
            f"{SAMPLE_BOUND:g}x). The old weights are kept. This is a defect of fastres: please "
            "report it"
        )
