"""``optimize``: capture, rewrite, choose an engine, check the result."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
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
    random_arguments,
    shapes_of,
)
from fastres.artifact.recipe import Recipe, record
from fastres.capture import pipeline
from fastres.capture.capture import Captured, capture, in_eval_mode, model_dtype
from fastres.capture.contract import Contract
from fastres.capture.diagnose import eager_fault
from fastres.capture.export_program import import_ahead
from fastres.capture.wrappers import unwrapped
from fastres.errors import (
    ArtifactError,
    CaptureError,
    FastresError,
    FastresWarning,
    InputError,
    ModelError,
    NotOptimizedError,
    OptionError,
    VerificationError,
)
from fastres.optimized import OptimizedModule
from fastres.options import Options
from fastres.passes import rewrite
from fastres.report import Check, Report
from fastres.runtime.autocast import without_autocast
from fastres.runtime.engine import choose
from fastres.system.device import checked_device
from fastres.system.plain_tensors import materialized, refuse_under_tracing, why_not_plain
from fastres.system.threads import preparing
from fastres.transforms import InputFormat, Preprocessing


def optimize(
    model: nn.Module,
    example_input: Any = None,
    *,
    device: torch.device | str | None = None,
    precision: str | None = None,
    engine: str = "auto",
    strict: bool = False,
    tune: bool = False,
    threads: int | None = None,
    batch_buckets: Sequence[int] = (),
    input_format: InputFormat | None = None,
    transforms: Any = None,
    resize: bool = False,
    softmax: bool = False,
    top_k: int | None = None,
    labels: Sequence[str] | None = None,
) -> OptimizedModule:
    """A faster drop-in for ``model``, checked against it.

    Args:
        model: any ``nn.Module`` with two-dimensional convolutions; not changed in any way. In
            training mode, a copy in eval mode is optimised, with a warning.
        example_input: a tensor, a tuple of positional arguments or a dict of keyword arguments as
            the model takes them. Default: one image [1, in_channels, 224, 224] for the first
            ``nn.Conv2d``. Batch, height and width may differ in later calls.
        device: where to run; default: where the model is.
        precision: None keeps the model's dtype and torch's flags; ``"fp32"``, ``"bf16"`` and
            ``"fp16"`` convert weights and activations. Inputs and results keep the model's dtype.
        engine: ``"auto"`` takes the fastest that runs here; ``"triton"``, ``"native"``,
            ``"onednn"`` or ``"eager"`` forces one. ``"triton"`` is for GPUs; on the CPU it runs
            only under ``TRITON_INTERPRET=1``, to see what the kernels compute.
        strict: raise for the first thing that cannot be optimised, instead of one warning.
        tune: on a GPU, time each layer's candidates and the library when a shape is first seen,
            instead of choosing by the cost model. Results are kept in ``FASTRES_CACHE_DIR``
            (default ``~/.cache/fastres``); an interrupted tuning goes on where it stopped.
        threads: threads per call; default: torch's setting, but no more than the process's CPU
            affinity and cgroup quota grant.
        batch_buckets: on a GPU, batch sizes to prepare for: a smaller batch runs as the next of
            these, filled up, so that few sizes are ever recorded. Larger batches run as they are.
        input_format: ``"uint8_nhwc"`` or ``"uint8_nchw"``: the optimised model takes images as they
            are decoded, and casts, divides and normalises them itself, by ``transforms``. In
            ``example_input`` too, the first tensor is such a batch of images.
        transforms: the mean, standard deviation and sizes that the model was trained for: a
            :class:`fastres.transforms.Transforms`, the preset of torchvision's weights
            (``weights.transforms()``), or timm's data configuration
            (``timm.data.resolve_data_config(model=model)``).
        resize: resize and crop inside the model too: images of any size. Otherwise they are taken
            for resized and cropped already.
        softmax: answer with probabilities, in float32 or more.
        top_k: answer ``(values, indices)`` of the k largest, each [N, k], the largest first.
        labels: the names of the classes, kept in ``fast.preprocessing`` and in what is saved or
            exported.

    Returns:
        The optimised module; ``print(fast.report)`` shows what was done.

    Raises:
        OptionError: an argument is not one of those above.
        ModelError: the model has no convolution, or weights that do not lie in memory.
        CaptureError: the model cannot be captured as one graph (hooks, parametrisations, control
            flow on data, state changed in forward); the message names the module.
        NotOptimizedError: under ``strict``.
        TargetError: the device or the engine that was asked for is not there.
        VerificationError: the result differed from the model's; nothing is returned.
    """
    if not isinstance(model, nn.Module):
        raise OptionError(f"model is a {type(model).__name__}: expected an nn.Module")
    buckets = tuple(batch_buckets) if isinstance(batch_buckets, Sequence) else batch_buckets
    refuse_under_tracing("optimize")
    surroundings = pipeline.requested_preprocessing(
        input_format, transforms, resize, softmax, top_k, labels
    )
    import_ahead()  # before anything else of torch's is imported, which Ctrl-C could cut off
    model, left_out = unwrapped(model)
    options = Options(precision, engine, strict, threads, checked_device(device), tune, buckets)
    _refuse_without_values(model)
    for name, module in model.named_modules():
        if isinstance(module, OptimizedModule):
            raise ModelError(
                f"{name or 'the model'} is already optimised: give optimize() the model that "
                "it was made from"
            )
    with preparing(), torch.no_grad(), without_autocast():  # autocast would be captured
        fast, notes = _optimize(model, example_input, options, surroundings)
    fast.report.notes += left_out
    _warn(fast.report, strict, notes)
    return fast


def _optimize(
    model: nn.Module, example_input: Any, options: Options, surroundings: Preprocessing | None
) -> tuple[OptimizedModule, list[str]]:
    report = Report(type(model).__name__)
    with _stage(report, "capture"):
        example_input = pytree.tree_map(partial(materialized, name="example_input"), example_input)
        evaluated, notes = in_eval_mode(model)
        example = pipeline.example_for(evaluated, surroundings, example_input)
        captured = capture(pipeline.with_preprocessing(evaluated, surroundings), example)
    report.notes += [*notes, *captured.notes, *pipeline.notes(surroundings)]
    own = model_dtype(evaluated)
    recipe = _recipe(captured, evaluated, own, report)
    # Folded weights made in inference mode could not be written to later.
    with _stage(report, "passes"), torch.inference_mode(False), torch.no_grad():
        rewrite(captured.module, report, own, options.dtype(own))
    if not report.found["convolution"]:
        raise ModelError(
            f"{type(model).__name__} has no two-dimensional convolution that runs in forward: "
            "there is nothing for fastres to speed up"
        )
    if options.device is not None:
        captured.move_to(options.device)
    report.precision = str(options.dtype(own)).removeprefix("torch.")
    chosen, passed_over = choose(options, captured.module)
    report.engine = chosen.name
    report.add_engine([], passed_over)
    report.device = str(next((b.device for b in captured.module.buffers()), "cpu"))
    fast = OptimizedModule(captured, options, report, surroundings, recipe)
    given = example_input is not None
    sample = captured.example if given else random_arguments(captured.example, report.device)
    with _stage(report, "first call"), _naming_the_module(evaluated, captured, sample):
        _run_once(fast, captured, sample, report)
    with _stage(report, "check"), _naming_the_module(evaluated, captured, sample):
        _check(evaluated, fast, captured, sample, report)
    return fast, notes


@contextmanager
def _naming_the_module(model: nn.Module, captured: Captured, sample: list[Any]) -> Iterator[None]:
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


def _recipe(captured: Captured, model: nn.Module, own: torch.dtype, report: Report) -> Recipe | str:
    """What refreshes the weights later, or why they cannot be."""
    try:
        return record(captured.module, model, own, report.notes)
    except ArtifactError as error:
        return str(error)


@contextmanager
def _stage(report: Report, name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    report.seconds[name] = time.perf_counter() - started


def _refuse_without_values(model: nn.Module) -> None:
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


def _run_once(fast: OptimizedModule, captured: Captured, sample: list[Any], report: Report) -> None:
    args, kwargs = pytree.tree_unflatten(on_device(sample, report.device), captured.in_spec)
    fast(*args, **kwargs)
    left, notes = fast.engine_remarks(on_device(sample, report.device))
    report.threads = fast.threads if report.device == "cpu" else None
    report.add_engine(left, notes)


def _check(
    model: nn.Module, fast: OptimizedModule, captured: Captured, sample: list[Any], report: Report
) -> None:
    if draws_random_numbers(captured.module):
        report.notes.append("not checked on a sample: the model draws random numbers in eval mode")
        return
    # One image too: torch.export takes for granted that a batch has two or more.
    one, some = leading(sample, 1), leading(sample, SAMPLE_IMAGES)
    samples = [one, some] if shapes_of(one) != shapes_of(some) else [some]
    allowed = [each for each in samples if _is_allowed(captured.contract, each)]
    for arguments in allowed or [sample]:
        args, kwargs = pytree.tree_unflatten(arguments, captured.in_spec)
        comparison = compare(model, fast, [(args, kwargs)])
        report.check = Check(
            comparison.error, comparison.eager_error, comparison.ratio, shapes_of(arguments)
        )
        if not comparison.ratio <= SAMPLE_BOUND:
            raise VerificationError(
                f"the optimised {report.model} differs from the model: error "
                f"{comparison.error:.2e} on {shapes_of(arguments)}, {comparison.ratio:.1f}x that "
                f"of torch eager (allowed {SAMPLE_BOUND:g}x). Nothing is returned. The first layer "
                f"that drifts: {_drifting(model, fast, captured, arguments)}. Unless the model's "
                "code treats a batch of one differently, which one graph cannot, this is a defect "
                "of fastres: please report it"
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


def _warn(report: Report, strict: bool, notes: list[str]) -> None:
    remaining = [*report.refused, *report.left]
    if strict and remaining:
        first = remaining[0]
        raise NotOptimizedError(first.module, f"{first.what}: {first.reason}")
    if remaining:
        others = f" and {len(remaining) - 1} more" if len(remaining) > 1 else ""
        notes = [*notes, f"not everything was optimised ({remaining[0]}{others})"]
    if notes:
        warnings.warn(
            f"{'; '.join(notes)}; print(fast.report) has the details", FastresWarning, stacklevel=3
        )
