"""The command ``python -m fastres.export``: an ONNX file, written if its answers agree."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from fastres.errors import FastresError, OptionError, VerificationError
from fastres.export import OnnxReport, to_onnx
from fastres.export.conversion import OPSET, OPSETS, PRECISIONS
from fastres.models import checkpoint
from fastres.models import labels as label_files
from fastres.system.progress import Progress
from fastres.workload import inputs, model_source


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the program's name; None takes them from ``sys.argv``.

    Returns:
        0, or 1 if the file's answers were not the model's, or 2 for arguments that cannot be.
    """
    options = _parser().parse_args(argv)
    try:
        report, random = _run(options)
    except VerificationError as error:
        print(f"fastres export: {error}", file=sys.stderr)
        return 1
    except FastresError as error:
        print(f"fastres export: {error}", file=sys.stderr)
        return 2
    Console().print(table(report))
    if random:
        print("The weights are random: give a trained model's with --weights.")
    return 0


def _run(options: argparse.Namespace) -> tuple[OnnxReport, bool]:
    chosen = model_source.from_options(options.depth, options.model)
    if options.classes is not None and options.classes < 1:
        raise OptionError(f"--classes {options.classes}: expected a number of at least 1")
    if options.precision == "int8":
        raise OptionError(
            "--precision int8: its ranges come from images, which this command does not take. In "
            "Python: fast = fastres.optimize(model, precision='int8', calibration=...), then "
            "fastres.export.to_onnx(fast, path)"
        )
    labels = None if options.labels is None else label_files.read(options.labels)
    with Progress() as progress:
        progress.show(f"building {chosen}", 0.05)
        model = model_source.build(chosen, options.seed, options.classes)
        if options.weights is not None:
            checkpoint.load_into(model, options.weights)
        progress.show("optimising, writing and checking", 0.2)
        report = to_onnx(
            model,
            options.out,
            example_input=_example(model, options.size),
            dynamic_size=options.dynamic_size or None,
            opset=options.opset,
            precision=options.precision,
            float32_io=options.float32_io,
            external_data=options.external_data,
            labels=labels,
            openvino=options.openvino,
        )
    return report, chosen.has_random_weights and options.weights is None


def _example(model: nn.Module, size: int) -> torch.Tensor:
    if size < 1:
        raise OptionError(f"--size {size}: expected a number of pixels of at least 1")
    return torch.zeros(
        (1, inputs.input_channels(model), size, size), dtype=torch.float32, device="cpu"
    )


def table(report: OnnxReport) -> Table:
    """What was written and what was checked."""
    shown = Table(title=escape(str(report.path)), title_justify="left", show_header=False)
    shown.add_column(style="bold")
    shown.add_column(overflow="fold")
    weight = "" if report.data is None else f", weights in {report.data.name}"
    shown.add_row("file", f"{report.bytes / 1e6:.1f} MB, opset {report.opset}{weight}")
    shown.add_row("computes in", report.precision)
    for title, places in (("takes", report.inputs), ("gives", report.outputs)):
        shown.add_row(title, escape("\n".join(places)))
    counted = ", ".join(f"{count} {name}" for name, count in report.operators.items())
    shown.add_row("operators", counted)
    for name, (error, eager, ratio) in report.errors.items():
        shown.add_row(
            escape(f"error of {name}"),
            f"{error:.2e} against float64, {ratio:.2f}x PyTorch's own {eager:.2e}",
        )
    if report.images:
        shown.add_row("first choice", f"float64's on {report.agreeing} of {report.images} images")
    shown.add_row("checked", "\n".join(report.checks))
    if report.notes:
        shown.add_row("notes", escape("\n".join(report.notes)))
    shown.add_row("weights", f"sha256 {report.source_sha256}")
    took = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in report.seconds.items())
    shown.add_row("seconds", took)
    return shown


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastres.export",
        description="Write a model as an ONNX file of standard operators, if its answers agree.",
        epilog="Exit status: 0, or 1 if the file's answers were not the model's (then nothing is "
        "written), or 2 for arguments that cannot be.",
    )
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--depth", type=int, help="a ResNet of fastres.models, e.g. 50")
    which.add_argument(
        "--model", metavar="NAME", help="own name, torchvision:NAME, timm:NAME or module:function"
    )
    add("--out", type=Path, required=True, metavar="PATH", help="the file to write")
    add(
        "--weights",
        type=Path,
        metavar="PATH",
        help="a state dict: .safetensors, or .pth and .pt, of which only tensors are read",
    )
    add("--classes", type=int, metavar="N", help="of the model, where it is not its default")
    add("--precision", choices=PRECISIONS, help="default: the model's own (int8: only in Python)")
    add("--float32-io", action="store_true", help="with fp16: take and give float32")
    add("--size", type=int, default=224, help="pixels of a side (default: 224)")
    add("--dynamic-size", action="store_true", help="leave height and width open, too")
    add(
        "--opset",
        type=int,
        default=OPSET,
        help=f"version of the operators, {OPSETS[0]} to {OPSETS[-1]} (default: {OPSET})",
    )
    add("--external-data", action="store_true", help="keep the weights in a file of their own")
    add("--labels", type=Path, metavar="PATH", help="classes' names: a line each, or JSON")
    add("--openvino", action="store_true", help="check the answers in OpenVINO, too")
    add("--seed", type=int, default=0, help="of random weights (default: 0)")
    return parser
