"""The command ``python -m fastres.roofline``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from fastres import models
from fastres.dtypes import PRECISIONS
from fastres.errors import FastresError, OptionError
from fastres.kernels.tuning import gpus
from fastres.kernels.tuning.fusing import why_library
from fastres.kernels.tuning.gpus import Gpu
from fastres.roofline.layers import graph_of, layers_of
from fastres.roofline.table import lines
from fastres.roofline.view import View, view
from fastres.runtime.triton.fuse_blocks import FusionPolicy
from fastres.runtime.triton.fusion_policy import by_model, filling_pays, wherever_it_fits
from fastres.workload import model_source


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the program's name; None takes them from ``sys.argv``.

    Returns:
        0, or 2 for arguments that cannot be.
    """
    options = _parser().parse_args(argv)
    try:
        _run(options)
    except FastresError as error:
        print(f"fastres roofline: {error}", file=sys.stderr)
        return 2
    return 0


def _run(options: argparse.Namespace) -> None:
    if min(options.batch) < 1 or options.size < 1:
        raise OptionError("--batch and --size: expected positive numbers")
    gpu = gpus.by_name(options.gpu)
    precision = gpu.architecture.computed_in(options.precision)
    chosen = model_source.from_options(options.depth, options.model)
    quantized = PRECISIONS[precision].quantized
    module = graph_of(model_source.build(chosen, seed=0), quantized=quantized)
    views: dict[str, FusionPolicy | None] = {
        "none": None,
        "blocks": by_model(precision, gpu),
        "all blocks": wherever_it_fits(precision, gpu),
    }
    filling = filling_pays(precision, gpu)
    found: list[View] = []
    for batch in options.batch:
        for fusion, policy in views.items():
            layers = layers_of(module, batch, options.size, policy, filling)
            found.append(view(layers, fusion, batch, precision, gpu))
    notes = precision
    if precision != options.precision:
        notes += f" ({gpu.architecture.name} has no {options.precision})"
    title = f"{chosen} in {notes}, {options.size}x{options.size} pixels, on {_notes(gpu)}"
    if options.json:
        print(json.dumps(_record(title, options, precision, str(chosen), gpu, found), indent=2))
        return
    for line in lines(title, found, why_library(gpu)):
        print(line)


def _notes(gpu: Gpu) -> str:
    return f"{gpu.name} ({gpu.title}, {gpu.architecture.name})"


def _record(
    title: str,
    options: argparse.Namespace,
    precision: str,
    model: str,
    gpu: Gpu,
    views: Sequence[View],
) -> dict[str, object]:
    return {
        "title": f"modelled, not measured: {title}",
        "model": model,
        "precision": precision,
        "size": options.size,
        "gpu": gpu.name,
        "peak_flops": gpu.flops[precision],
        "memory_bytes_per_second": gpu.memory_bytes_per_s,
        "library": why_library(gpu),
        "views": [{"batch": each.batch, **each.as_json()} for each in views],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastres.roofline",
        description="What a GPU's data sheet allows for each operator of a model, and the modelled "
        "time of the kernels that would be launched, without and with blocks fused.",
        epilog="Nothing is measured and no GPU is needed. Exit status: 0, or 2 for arguments that "
        "cannot be.",
    )
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--depth", type=int, help="a ResNet of fastres.models, e.g. 50")
    which.add_argument(
        "--model",
        metavar="NAME",
        help=f"{', '.join(models.available()[:3])}, ..., torchvision:NAME, timm:NAME or "
        "module:function (default: resnet50)",
    )
    add("--gpu", required=True, help=f"one of {', '.join(gpus.GPUS)}")
    add("--batch", type=int, nargs="+", default=[1, 32, 256], help="default: 1 32 256")
    add("--precision", choices=gpus.PRECISIONS, default="fp16", help="default: fp16")
    add("--size", type=int, default=224, help="pixels of a side (default: 224)")
    add("--json", action="store_true", help="as JSON")
    return parser
