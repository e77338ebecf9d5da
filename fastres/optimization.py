"""``optimize``: capture, rewrite, choose an engine, check the result."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fastres.capture import Captured, capture, in_eval_mode
from fastres.errors import (
    FastresWarning,
    ModelError,
    NotOptimizedError,
    OptionError,
    TargetError,
    VerificationError,
)
from fastres.optimized import OptimizedModule
from fastres.options import Options
from fastres.passes import rewrite
from fastres.report import Check, Report
from fastres.runtime.engine import choose
from fastres.verification import compare

CHECK_BOUND = 8.0
"""How many times eager's own error the result may be off on the one sample of ``optimize``.

Wider than what :func:`fastres.verify` allows on real data: on one image with ten answers the ratio
of two rounding errors can be 3 by chance, while a lost BatchNorm is off by a thousand.
"""


def optimize(
    model: nn.Module,
    example_input: Any = None,
    *,
    device: torch.device | str | None = None,
    precision: str | None = None,
    engine: str = "auto",
    strict: bool = False,
    threads: int | None = None,
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
        engine: ``"auto"`` takes the fastest that runs here; ``"onednn"`` or ``"eager"`` forces one.
        strict: raise for the first thing that cannot be optimised, instead of one warning.
        threads: threads per call; default: torch's setting, but no more than the process's CPU
            affinity and cgroup quota grant.

    Returns:
        The optimised module; ``print(fast.report)`` shows what was done.

    Raises:
        OptionError: an argument is not one of those above.
        ModelError: the model has no convolution.
        CaptureError: the model cannot be captured as one graph (hooks, parametrisations, control
            flow on data, state changed in forward); the message names the module.
        NotOptimizedError: under ``strict``.
        TargetError: the device or the engine that was asked for is not there.
        VerificationError: the result differed from the model's; nothing is returned.
    """
    if not isinstance(model, nn.Module):
        raise OptionError(f"model is a {type(model).__name__}: expected an nn.Module")
    options = Options(precision, engine, strict, threads, _device(device))
    report = Report(type(model).__name__)
    with _stage(report, "capture"):
        evaluated, told = in_eval_mode(model)
        captured = capture(evaluated, example_input)
    report.notes += [*told, *captured.notes]
    own = _own_dtype(evaluated)
    with _stage(report, "passes"):
        rewrite(captured.module, report, own, options.dtype(own))
    if not report.found["convolution"]:
        raise ModelError(
            f"{type(model).__name__} has no two-dimensional convolution that runs in forward: "
            "there is nothing for fastres to speed up"
        )
    if options.device is not None:
        captured.move_to(options.device)
    report.precision = str(options.dtype(own)).removeprefix("torch.")
    chosen, passed_over = choose(engine, captured.module)
    report.engine = chosen.name
    report.notes += passed_over
    report.device = str(next((b.device for b in captured.module.buffers()), "cpu"))
    fast = OptimizedModule(captured, options, report)
    sample = _sample(captured, given=example_input is not None)
    with _stage(report, "first call"):
        _run_once(fast, captured, sample, report)
    with _stage(report, "check"):
        _check(evaluated, fast, captured, sample, report)
    _announce(report, strict, told)
    return fast


@contextmanager
def _stage(report: Report, name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    report.seconds[name] = time.perf_counter() - started


def _device(device: torch.device | str | None) -> torch.device | None:
    if device is None:
        return None
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise OptionError(f"device={device!r}: {str(error).splitlines()[0]}") from error
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise TargetError(f"device={device!r}: torch sees no CUDA device here; leave device out")
    return wanted


def _own_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the first convolution's weight, else of the first floating-point tensor."""
    convolutions = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    tensors = [*convolutions, *model.parameters(), *model.buffers()]
    return next((t.dtype for t in tensors if t.is_floating_point()), torch.get_default_dtype())


def _sample(captured: Captured, given: bool) -> list[Any]:
    """The flattened arguments of the checked call: the caller's own, or one random image."""
    if given:
        return captured.example
    generator = torch.Generator().manual_seed(0)

    def image(leaf: Any) -> Any:
        noise = torch.randn((1, *leaf.shape[1:]), generator=generator)
        return noise.to(leaf.device, leaf.dtype)

    return [image(leaf) for leaf in captured.example]


def _run_once(fast: OptimizedModule, captured: Captured, sample: list[Any], report: Report) -> None:
    args, kwargs = pytree.tree_unflatten(_on(sample, report.device), captured.in_spec)
    fast(*args, **kwargs)
    left, notes = fast.engine_remarks(_on(sample, report.device))
    report.threads = fast.threads if report.device == "cpu" else None
    report.left += left
    report.notes += notes


def _on(sample: list[Any], device: str) -> list[Any]:
    return [leaf.to(device) if isinstance(leaf, Tensor) else leaf for leaf in sample]


def _check(
    model: nn.Module, fast: OptimizedModule, captured: Captured, sample: list[Any], report: Report
) -> None:
    if _is_random(captured.module):
        report.notes.append("not checked on a sample: the model draws random numbers in eval mode")
        return
    args, kwargs = pytree.tree_unflatten(sample, captured.in_spec)
    comparison = compare(model, fast, [args] if not kwargs else [kwargs])
    shapes = ", ".join(str(list(leaf.shape)) for leaf in sample if isinstance(leaf, Tensor))
    report.check = Check(comparison.error, comparison.eager_error, comparison.ratio, shapes)
    if not comparison.ratio <= CHECK_BOUND:
        raise VerificationError(
            f"the optimised {report.model} differs from the model: error {comparison.error:.2e} on "
            f"{shapes}, {comparison.ratio:.1f}x that of torch eager (allowed {CHECK_BOUND:g}x). "
            "Nothing is returned; this is a defect of fastres, or a model that treats a batch of "
            "one differently: pass an example_input, and please report it"
        )


def _is_random(module: fx.GraphModule) -> bool:
    return any(
        torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        for node in module.graph.nodes
    )


def _announce(report: Report, strict: bool, told: list[str]) -> None:
    remaining = [*report.refused, *report.left]
    if strict and remaining:
        first = remaining[0]
        raise NotOptimizedError(first.module, f"{first.what}: {first.reason}")
    if remaining:
        others = f" and {len(remaining) - 1} more" if len(remaining) > 1 else ""
        told = [*told, f"not everything was optimised ({remaining[0]}{others})"]
    if told:
        warnings.warn(
            f"{'; '.join(told)}; print(fast.report) has the details", FastresWarning, stacklevel=3
        )
