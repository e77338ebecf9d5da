"""The command ``python -m fastres.inspect``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from rich.console import Console
from torch import fx

from fastres import models
from fastres.dtypes import PRECISIONS
from fastres.errors import FastresError, OptionError, TargetError
from fastres.inspect.reading import Reading
from fastres.kernels.inspection.budgets import violations
from fastres.kernels.inspection.finding import inspect_call
from fastres.kernels.tuning import gpus
from fastres.kernels.tuning.gpus import ARCHITECTURES, Architecture
from fastres.roofline.layers import graph_of
from fastres.system.target import cpu_threads
from fastres.workload import model_source

MODELS = ("resnet18", "resnet50", "resnext50_32x4d")
DEFAULT_ARCHITECTURES = ("sm_80", "sm_90")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the program's name; None takes them from ``sys.argv``.

    Returns:
        0, 1 where a launch breaks a budget or does not compile, 2 for arguments that cannot be or
        without Triton's compiler.
    """
    options = _parser().parse_args(argv)
    try:
        return _run(options)
    except FastresError as error:
        print(f"fastres inspect: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    if options.batch < 1 or options.size < 1:
        raise OptionError("--batch and --size: expected positive numbers")
    architectures = list(dict.fromkeys(gpus.architecture(name) for name in options.arch))
    try:
        from fastres.inspect.table import show
        from fastres.kernels.inspection.compiling import compiler_versions, require_compiler
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise TargetError(
            f"{error}: kernels are compiled by Triton; install fastres[gpu]"
        ) from error
    require_compiler()
    names = options.model if options.depth is None else [f"resnet{options.depth}"]
    chosen = [model_source.parse(name) for name in names]
    readings: dict[str, list[Reading]] = {each.name: [] for each in architectures}
    for precision in dict.fromkeys(options.precision):
        row = PRECISIONS[precision]
        graphs = {
            str(each): graph_of(
                model_source.build(each, seed=0), row.folded, quantized=row.quantized
            )
            for each in chosen
        }
        for architecture in architectures:
            readings[architecture.name] += read(
                graphs, options.batch, options.size, precision, architecture
            )
    broken = any(reading.broken for found in readings.values() for reading in found)
    if options.json:
        print(json.dumps(_record(options, names, compiler_versions(), readings), indent=1))
    else:
        for architecture in architectures:
            show(architecture, readings[architecture.name], Console())
    return int(broken)


def read(
    graphs: dict[str, fx.GraphModule],
    batch: int,
    size: int,
    precision: str,
    architecture: Architecture,
) -> list[Reading]:
    """Compile and read every distinct launch of several models.

    Args:
        graphs: by the models' names, see ``roofline.layers.graph_of``.
        batch: images per call.
        size: pixels of a side.
        precision: ``fp16``, ``bf16``, ``tf32``, ``fp32`` or ``int8``.
        architecture: the GPU architecture to compile for.
    """
    from fastres.inspect.launches import launches, merged, representative

    gpu = representative(architecture)
    distinct = merged(
        {name: launches(graph, batch, size, precision, gpu) for name, graph in graphs.items()}
    )
    runs_as = architecture.computed_in(precision)
    read_launch = partial(_read, precision=precision, runs_as=runs_as, architecture=architecture)
    with ThreadPoolExecutor(cpu_threads()) as pool:  # compilers hold no lock while they work
        return list(pool.map(read_launch, distinct))


def _read(launch: Any, precision: str, runs_as: str, architecture: Architecture) -> Reading:
    finding, broken = None, []
    try:
        finding = inspect_call(launch.call, architecture)
    except TargetError as error:
        broken = [str(error)]
    else:
        broken = violations(finding, architecture, runs_as)
    return Reading(launch.layers, launch.operation, precision, finding, tuple(broken))


def _record(
    options: argparse.Namespace,
    names: Sequence[str],
    versions: dict[str, str],
    readings: dict[str, list[Reading]],
) -> dict[str, Any]:
    return {
        "models": list(names),
        "batch": options.batch,
        "size": options.size,
        "compiler": versions,
        "architectures": {
            name: [dict(_fields(reading)) for reading in found] for name, found in readings.items()
        },
    }


def _fields(reading: Reading) -> Iterator[tuple[str, Any]]:
    yield "layers", list(reading.layers)
    yield "operation", reading.operation
    yield "precision", reading.precision
    yield "broken", list(reading.broken)
    yield "finding", None if reading.finding is None else reading.finding.as_json()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastres.inspect",
        description="Compile every distinct launch of a model's layers, one by one and with blocks "
        "fused, for GPUs that need not be here, and read the machine code: registers, spills, "
        "shared memory, occupancy, matrix instructions, copies, and the main loop's instructions.",
        epilog="Exit status: 0; 1 where a launch breaks a budget or does not compile; 2 for "
        "arguments that cannot be or without Triton's compiler.",
    )
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--depth", type=int, help="a ResNet of fastres.models, e.g. 50")
    which.add_argument(
        "--model",
        metavar="NAME",
        nargs="+",
        default=list(MODELS),
        help=f"{', '.join(models.available()[:3])}, ..., torchvision:NAME, timm:NAME or "
        f"module:function (default: {' '.join(MODELS)})",
    )
    add(
        "--arch",
        nargs="+",
        default=list(DEFAULT_ARCHITECTURES),
        metavar="ARCH",
        help=f"some of {', '.join(ARCHITECTURES)} (default: {' '.join(DEFAULT_ARCHITECTURES)})",
    )
    add("--precision", nargs="+", choices=gpus.PRECISIONS, default=["fp16"], help="default: fp16")
    add("--batch", type=int, default=32, help="images (default: 32)")
    add("--size", type=int, default=224, help="pixels of a side (default: 224)")
    add("--json", action="store_true", help="as JSON")
    return parser
