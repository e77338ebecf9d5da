"""Where the native engine's time goes: every convolution, held against what the processor can do.

Each row is a convolution of the user's model: the native engine's time for it, with bias, residual
and activation; its multiply-adds per second in % of the peak; and how many times as long our oneDNN
engine and OpenVINO take for the same module. The peak is what the same threads reach in registers
alone, measured in the same rounds. The multiply-adds counted are those of the direct convolution:
a Winograd convolution does fewer, and its row may exceed 100 %.

In int8 there is no oneDNN engine, and OpenVINO's model is quantised by NNCF. All take turns on the
same random images; times and ratios are medians over the rounds. A module
that OpenVINO fused into something else, or that has no name there, has "-". What is beside the
convolutions, layouts' changes among it, is in nobody's row.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor, nn

import fastres
from benchmarks import native, openvino_layers
from fastres.bench import measure, record, revision
from fastres.bench.peers.peer import FLOATING, QUANTIZED
from fastres.dtypes import PRECISIONS
from fastres.runtime.native.library import Library, load
from fastres.system import target
from fastres.workload import inputs, model_source

PEAK_MILLISECONDS = 20
"""What measuring the peak takes in each round."""

PRECISIONS_HERE = ("fp32", "bf16", "int8")

_NUMBERS = ("ms", "% of peak", "oneDNN engine", "OpenVINO")

Times = Mapping[str, int]
"""Nanoseconds by module."""


@dataclass(frozen=True)
class Convolution:
    """One of the user's, and what was measured.

    Attributes:
        module: its path in the model.
        shape: its channels, kernel and stride, to be read.
        multiply_adds: of the direct convolution, for one image.
        kind: what it runs as in the native engine, "-" where that engine leaves it to oneDNN.
        native_ns, onednn_ns, openvino_ns: by round; empty where there is no such module.
    """

    module: str
    shape: str
    multiply_adds: int
    kind: str = "-"
    native_ns: tuple[int, ...] = ()
    onednn_ns: tuple[int, ...] = ()
    openvino_ns: tuple[int, ...] = ()


@dataclass(frozen=True)
class PrecisionResult:
    """One precision.

    Attributes:
        precision, isa: what the native engine computes in, and with which instructions.
        peak: multiply-adds per second, by round.
        openvino: why it is not in it, or None.
        convolutions: in the order they run.
    """

    precision: str
    isa: str
    peak: tuple[float, ...]
    openvino: str | None
    convolutions: tuple[Convolution, ...] = field(repr=False)


def convolutions(model: nn.Module, images: Tensor) -> list[Convolution]:
    """The model's convolutions in the order they run, with nothing measured."""
    found: dict[str, Convolution] = {}
    hooks = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue

        def note(module: nn.Module, inputs: Any, output: Tensor, name: str = name) -> None:
            assert isinstance(module, nn.Conv2d)
            rows, columns = module.kernel_size
            groups = f" in {module.groups} groups" if module.groups > 1 else ""
            shape = (
                f"{module.in_channels}->{module.out_channels} {rows}x{columns}/{module.stride[0]}"
                f"{groups}, {output.shape[2]}x{output.shape[3]}"
            )
            before = found[name].multiply_adds if name in found else 0
            pixels = output.shape[2] * output.shape[3]
            found[name] = Convolution(name, shape, before + pixels * module.weight.numel())

        hooks.append(module.register_forward_hook(note))
    with torch.no_grad():
        model(images[:1])
    for hook in hooks:
        hook.remove()
    return list(found.values())


def profiled(fast: fastres.OptimizedModule, images: Tensor) -> Callable[[], Times]:
    """A call of one of our engines, layer by layer."""
    executable = fast.internals.runner.finite_executable([images])

    def call() -> Times:
        times: Counter[str] = Counter()
        with torch.no_grad(), fast.internals.runner.limit():
            for module, _, took in executable.timed([images]):
                times[module] += took
        return times

    return call


def interleaved(calls: Mapping[str, Callable[[], Any]], plan: measure.Plan) -> dict[str, list[Any]]:
    """What each call returned in each round, warm-up excepted."""
    returned: dict[str, list[Any]] = {name: [] for name in calls}

    def recording(name: str) -> Callable[[], None]:
        return lambda: returned[name].append(calls[name]())

    measured = measure.interleave({name: recording(name) for name in calls}, plan)
    rounds = min(map(len, measured.values()))
    return {name: results[-rounds:] for name, results in returned.items()}


def measure_precision(
    model: nn.Module,
    images: Tensor,
    precision: str,
    threads: int,
    plan: measure.Plan,
    calibration: Tensor | None = None,
) -> PrecisionResult:
    """All convolutions of a model in one precision, which the native engine must have.

    Args:
        calibration: for int8, images [N, C, H, W] that activations' ranges are taken from.
    """
    library = load()
    assert isinstance(library, Library)
    isa = native.instruction_set(library, precision)
    assert isa is not None
    dtype = PRECISIONS[precision].dtype
    engines = {
        engine: fastres.optimize(
            model,
            images,
            engine=engine,
            precision=precision,
            threads=threads,
            calibration=calibration,
        )
        for engine in ("native", "onednn")
        if engine == "native" or precision in FLOATING
    }
    calls: dict[str, Callable[[], Any]] = {
        "peak": lambda: library.peak(isa, dtype, threads, PEAK_MILLISECONDS),
        **{engine: profiled(fast, images) for engine, fast in engines.items()},
    }
    reason = openvino_layers.why_unavailable(precision)
    if reason is None:
        calls["openvino"] = openvino_layers.profiled(model, images, precision, threads, calibration)
    returned = interleaved(calls, plan)
    program = engines["native"].program(images)

    def samples(name: str, module: str) -> tuple[int, ...]:
        samples_ns = tuple(times.get(module, 0) for times in returned.get(name, ()))
        return samples_ns if all(samples_ns) else ()

    rows = [
        replace(
            convolution,
            kind=_kind(program, convolution.module),
            native_ns=samples("native", convolution.module),
            onednn_ns=samples("onednn", convolution.module),
            openvino_ns=samples("openvino", convolution.module),
        )
        for convolution in convolutions(model, images)
    ]
    return PrecisionResult(precision, isa, tuple(returned["peak"]), reason, tuple(rows))


def _kind(program: str, module: str) -> str:
    """What a module runs as, by the native engine's description of its plan."""
    line = re.search(rf"^#\s+{re.escape(module)}: (\w+) ", program, re.MULTILINE)
    return "-" if line is None else line[1]


def show(result: PrecisionResult, batch: int, threads: int, console: Console) -> None:
    """Print the table of one precision."""
    peak = statistics.median(result.peak)
    table = Table(
        "convolution",
        "shape",
        "runs as",
        *(Column(name, justify="right", no_wrap=True) for name in _NUMBERS),
        title=f"{result.precision}: the peak of {threads} thread{'' if threads == 1 else 's'} is "
        f"{peak / 1e9:.0f} thousand million multiply-adds per second ({result.isa})",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for row in result.convolutions:
        table.add_row(
            row.module,
            row.shape,
            row.kind,
            _milliseconds(row.native_ns),
            _of_peak(row.multiply_adds * batch, row.native_ns, peak),
            _ratio(row.onednn_ns, row.native_ns),
            _ratio(row.openvino_ns, row.native_ns),
        )
    table.add_section()
    rows = [row for row in result.convolutions if row.native_ns]
    total = _sums(row.native_ns for row in rows)
    totals = [
        _ratio(_sums(samples), total) if all(samples) else "-"
        for samples in ([row.onednn_ns for row in rows], [row.openvino_ns for row in rows])
    ]
    table.add_row(
        "all",
        "",
        "",
        _milliseconds(total),
        _of_peak(sum(row.multiply_adds for row in rows) * batch, total, peak),
        *totals,
    )
    console.print(table)
    if result.openvino is not None:
        console.print(result.openvino, markup=False, highlight=False)
    if any(row.kind == "winograd" for row in result.convolutions):
        console.print(
            "% of peak counts the direct convolution's multiply-adds; winograd does fewer and may "
            "exceed 100 %",
            highlight=False,
        )


def _sums(samples: Any) -> tuple[int, ...]:
    """The sum of several rows' samples, round by round."""
    return tuple(map(sum, zip(*samples, strict=True)))


def _milliseconds(samples: Sequence[int]) -> str:
    return f"{statistics.median(samples) / 1e6:.3f}" if samples else "-"


def _of_peak(multiply_adds: int, samples: Sequence[int], peak: float) -> str:
    if not samples:
        return "-"
    return f"{multiply_adds * 1e9 / statistics.median(samples) / peak:.0%}"


def _ratio(reference: Sequence[int], native_samples: Sequence[int]) -> str:
    if not (reference and native_samples):
        return "-"
    return f"{measure.paired_ratio(reference, native_samples).median:.2f}x"


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table per precision; the exit status is 1 where there is no native engine for any."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layers", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default="resnet50", help="as for fastres.bench")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS_HERE)
    parser.add_argument("--threads", type=int, default=target.cpu_threads())
    parser.add_argument("--seconds", type=float, default=10.0, help="per precision")
    parser.add_argument("--json", type=Path, help="write the record")
    options = parser.parse_args(argv)
    if options.batch > options.threads and options.batch % options.threads:
        # Threads then work by themselves and together, and only the former's layers are timed.
        parser.error(f"--batch {options.batch}: expected a multiple of {options.threads} threads")
    model = model_source.build(model_source.parse(options.model), seed=0)
    pool = inputs.synthetic_images(max(16, options.batch), 3, options.size, seed=0)
    inputs.calibrate_random_weights(model, pool[:16], seed=0)
    images = pool[: options.batch]
    others = inputs.synthetic_images(
        inputs.CALIBRATION_IMAGES, 3, options.size, seed=inputs.CALIBRATION_SEED
    )
    console = Console(width=None if sys.stdout.isatty() else 110)
    results: list[PrecisionResult] = []
    for precision in dict.fromkeys(options.precision or PRECISIONS_HERE):
        reason = native.why_unavailable(precision)
        if reason is not None:
            print(f"{precision}: {reason}")
            continue
        plan = measure.Plan(seconds=options.seconds)
        calibration = others if precision in QUANTIZED else None
        results.append(
            measure_precision(model, images, precision, options.threads, plan, calibration)
        )
        show(results[-1], options.batch, options.threads, console)
    if options.json is not None:
        tree = {
            "schema": "fastres.layers",
            "version": 1,
            "model": options.model,
            "batch": options.batch,
            "size": options.size,
            "threads": options.threads,
            "revision": revision.of_fastres(),
            "environment": target.environment(),
            "precisions": [asdict(each) for each in results],
        }
        record.write_tree(tree, options.json)
    return int(not results)


if __name__ == "__main__":
    sys.exit(main())
