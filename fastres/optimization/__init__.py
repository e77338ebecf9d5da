"""``optimize``: capture, rewrite, choose an engine, check the result."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fastres.accuracy.sample import (
    random_arguments,
)
from fastres.capture import pipeline
from fastres.capture.imports import import_ahead
from fastres.capture.wrappers import unwrapped
from fastres.errors import (
    FastresWarning,
    ModelError,
    NotOptimizedError,
    OptionError,
)
from fastres.optimization.by_layer import sensitivity
from fastres.optimization.fusing import fuse, refuse_without_values, stage
from fastres.optimization.precision_choice import Limits, automatic
from fastres.optimization.quantizing import (
    narrowed_by,
    quantized_by,
    refuse_unknown_modules,
)
from fastres.optimization.sample_check import check_sample, naming_the_module, run_once
from fastres.optimized import OptimizedModule
from fastres.options import Options
from fastres.quantization.apply import Calibrated
from fastres.quantization.calibration import Seen
from fastres.quantization.folder import image_batches
from fastres.quantization.settings import Quantization, requested
from fastres.report import Report
from fastres.runtime.autocast import without_autocast
from fastres.runtime.engine import choose
from fastres.runtime.integers import compared
from fastres.system.collector import full_collections_later
from fastres.system.device import checked_device
from fastres.system.plain_tensors import refuse_under_tracing
from fastres.system.threads import preparing
from fastres.transforms import InputFormat, Preprocessing, Transforms

__all__ = ["optimize", "sensitivity"]


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
    streams: int | None = None,
    batch_buckets: Sequence[int] = (),
    input_format: InputFormat | None = None,
    transforms: Any = None,
    resize: bool = False,
    softmax: bool = False,
    top_k: int | None = None,
    labels: Sequence[str] | None = None,
    calibration: Any = None,
    observer: str | None = None,
    keep: Mapping[str, str] | None = None,
    bias_correction: bool | None = None,
    equalization: bool | None = None,
    max_error: float | None = None,
    max_accuracy_drop: float | None = None,
    time_limit: float | None = None,
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
            ``"fp16"`` convert weights and activations, ``"int8"`` quantises them. ``"auto"`` makes
            and times all that this device has and takes the fastest whose answers are near enough,
            int8 among them where there is ``calibration``. Inputs and results keep the model's
            dtype.
        engine: ``"auto"`` takes the fastest that runs here; ``"triton"``, ``"native"``,
            ``"onednn"`` or ``"eager"`` forces one. ``"triton"`` is for GPUs; on the CPU it runs
            only under ``TRITON_INTERPRET=1``, to see what the kernels compute.
        strict: raise for the first thing that cannot be optimised, instead of one warning.
        tune: on a GPU, time each layer's candidates and the library when a shape is first seen,
            instead of choosing by the cost model. Results are kept in ``FASTRES_CACHE_DIR``
            (default ``~/.cache/fastres``); an interrupted tuning goes on where it stopped. On CPUs
            it does nothing, and the receipt says so.
        threads: threads per call; default: torch's setting, but no more than the process's CPU
            affinity and cgroup quota grant.
        streams: throughput mode, on CPUs: a call uses one thread, and :meth:`OptimizedModule.map`
            keeps so many going at a time, over one copy of the weights. (Without it a batch is
            shared out between the threads of one call, image by image.)
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
        calibration: for int8 and fp16, an iterable of batches as the model takes them, from which
            the ranges of its activations are taken: tensors, tuples, dicts, or a DataLoader's
            (images, labels); or a folder of images, together with ``transforms``. 100 to 500 images
            are enough. fp16 does without; with it, layers that come near float16's end, or that are
            too small for it, stay in float32, and the receipt names them.
        observer: for int8, how ranges are chosen: ``"mse"`` (the default), ``"minmax"``,
            ``"percentile"`` or ``"entropy"``; see :mod:`fastres.quantization.observers`.
        keep: for int8, modules that stay wider: ``{"fc": "bf16", "layer1": "fp32"}``.
        bias_correction: for int8, let biases make up for the rounding of weights; default: True.
        equalization: for int8, even out neighbouring layers' weights before; default: False.
        max_error: for ``"auto"``, the relative root-mean-square error against float64 that is
            allowed; default: 0.05.
        max_accuracy_drop: for ``"auto"``, in its place, the share of images that may be answered
            worse than by the model, 0.005 say; ``calibration`` is then of (images, labels).
        time_limit: for ``"auto"``, seconds after which nothing further is tried; what has been made
            by then is timed, and the receipt says what was left out. Default: no limit.

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
    is_folder = isinstance(calibration, (str, os.PathLike))
    if is_folder:
        described = None if transforms is None else Transforms.of(transforms)
        calibration = image_batches(calibration, described, input_format, resize)
        transforms = None if input_format is None else transforms
    asked = {
        "max_error": max_error,
        "max_accuracy_drop": max_accuracy_drop,
        "time_limit": time_limit,
    }
    limits: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if precision == "auto":
        again: dict[str, Any] = {
            "device": device, "engine": engine, "strict": strict, "tune": tune, "threads": threads,
            "streams": streams, "batch_buckets": batch_buckets, "input_format": input_format,
            "transforms": transforms, "resize": resize, "softmax": softmax, "top_k": top_k,
            "labels": labels,
        }  # fmt: skip
        of_int8 = {
            "observer": observer, "keep": keep, "bias_correction": bias_correction,
            "equalization": equalization,
        }  # fmt: skip
        chosen = automatic(
            model, example_input, calibration, Limits(**limits), optimize, again, of_int8
        )
        _warn(chosen.report, strict, [])
        return chosen
    if limits:
        raise OptionError(
            f"{', '.join(limits)}: got with precision={precision!r}, expected precision='auto'; "
            "nothing else chooses."
        )
    surroundings = pipeline.requested_preprocessing(
        input_format, transforms, resize, softmax, top_k, labels
    )
    import_ahead()  # before anything else of torch's is imported, which Ctrl-C could cut off
    model, left_out = unwrapped(model)
    options = Options(
        precision, engine, strict, threads, checked_device(device), tune, buckets, streams
    )
    passed = {
        "observer": observer,
        "keep": keep,
        "bias_correction": bias_correction,
        "equalization": equalization,
    }
    settings = requested(precision, calibration, passed)
    if settings is not None:
        refuse_unknown_modules(model, settings)
    refuse_without_values(model)
    for name, module in model.named_modules():
        if isinstance(module, OptimizedModule):
            raise ModelError(
                f"{name or 'the model'} is already optimised: give optimize() the model that "
                "it was made from"
            )
    # What autocast does would be captured.
    with preparing(), torch.no_grad(), without_autocast(), full_collections_later():
        fast, notes = _optimize(
            model, example_input, options, surroundings, (settings, calibration)
        )
    fast.report.notes += left_out
    _warn(fast.report, strict, notes)
    return fast


def _optimize(
    model: nn.Module,
    example_input: Any,
    options: Options,
    surroundings: Preprocessing | None,
    quantization: tuple[Quantization | None, Any],
) -> tuple[OptimizedModule, list[str]]:
    settings, data = quantization
    fused = fuse(model, example_input, options, surroundings, data is not None)
    evaluated, captured, report = fused.evaluated, fused.captured, fused.report
    calibrated: Calibrated | None = None
    seen = Seen()
    if data is not None:
        with (
            stage(report, "calibration", shown=False),
            torch.inference_mode(False),
            torch.no_grad(),
        ):
            if settings is None:
                calibrated = narrowed_by(captured, data, report)
            else:
                calibrated = quantized_by(captured, settings, data, report)
        seen = calibrated.seen
    chosen, passed_over = choose(options, captured.module)
    report.engine = chosen.name
    report.add_engine([], passed_over)
    report.device = str(next((b.device for b in captured.module.buffers()), "cpu"))
    if options.tune and chosen.name != "triton":
        report.notes.append(
            f"tune=True did nothing: the {chosen.name} engine chooses by its cost model alone"
        )
    kept = None if calibrated is None else calibrated.without_calls()
    fast = OptimizedModule(captured, options, report, surroundings, fused.recipe, kept)
    given = example_input is not None
    sample = captured.example if given else random_arguments(captured.example, report.device)
    with (
        stage(report, "first call", not options.tune),
        naming_the_module(evaluated, captured, sample),
    ):
        run_once(fast, captured, sample, report)
    with stage(report, "check"), naming_the_module(evaluated, captured, sample):
        warned = check_sample(evaluated, fast, captured, sample, report)
        if calibrated is not None:
            report.notes.append(compared(fast.internals.runner, seen))
    return fast, [*fused.notes, *warned]


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
