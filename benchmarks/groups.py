"""Convolutions in groups, in each way that the native engine has, against OpenVINO.

The ways are ``fr_form`` of ``kernels/cpu/native.h``: whole panels, with zeros between groups, or
units permuted to the channels that read them, or each channel by itself. Which one the engine takes
is decided by `fastres.runtime.native.schedule.form`, by counting instructions; here each is timed,
on layers of ResNeXt, RegNet, MobileNetV2 and EfficientNet, and the ratio of the engine's choice to
the fastest is printed. A layer's time is its own, without the changes of layout around it. All take
turns; times and ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor, nn

import fastres
from benchmarks import native, openvino_layers
from benchmarks.layers import interleaved
from fastres.bench import measure, record, revision
from fastres.dtypes import PRECISIONS
from fastres.kernels.spec import ConvSpec
from fastres.runtime.native import schedule
from fastres.runtime.native.library import Library, load
from fastres.system import target
from fastres.workload import inputs

PRECISIONS_HERE = ("fp32", "bf16")


@dataclass(frozen=True)
class Layer:
    """One of a network's: square images, filters and strides, padded to keep the size.

    Attributes:
        size: of the input.
        groups: as many as channels where it is depthwise.
    """

    network: str
    size: int
    channels: int
    groups: int
    kernel: int = 3
    stride: int = 1

    @property
    def shape(self) -> str:
        """To be read."""
        per_group = self.channels // self.groups
        return (
            f"{self.channels} by {per_group}, {self.kernel}x{self.kernel}/{self.stride}, "
            f"{self.size}x{self.size}"
        )

    def module(self) -> nn.Module:
        """With random weights, under a name, and a ReLU behind it."""
        convolution = nn.Conv2d(
            self.channels, self.channels, self.kernel, self.stride, self.kernel // 2,
            groups=self.groups,
        )  # fmt: skip
        return nn.Sequential(convolution, nn.ReLU()).eval()

    def spec(self, batch: int) -> ConvSpec:
        """For the engine's own choice."""
        half = self.kernel // 2
        return ConvSpec(
            batch, self.channels, self.size, self.size, self.channels, self.kernel, self.kernel,
            (self.stride, self.stride), (half, half, half, half), (1, 1), self.groups,
        )  # fmt: skip


def depthwise(network: str, size: int, channels: int, kernel: int = 3, stride: int = 1) -> Layer:
    """A layer with a group for each channel."""
    return Layer(network, size, channels, channels, kernel, stride)


LAYERS = (
    Layer("ResNeXt-50 32x4d", 56, 128, 32),
    Layer("ResNeXt-50 32x4d", 56, 256, 32, stride=2),
    Layer("ResNeXt-50 32x4d", 28, 256, 32),
    Layer("ResNeXt-50 32x4d", 28, 512, 32, stride=2),
    Layer("ResNeXt-50 32x4d", 14, 512, 32),
    Layer("ResNeXt-50 32x4d", 7, 1024, 32),
    Layer("RegNetX-400MF", 56, 32, 2),
    Layer("RegNetX-400MF", 28, 64, 4),
    Layer("RegNetX-400MF", 14, 160, 10),
    Layer("RegNetX-200MF", 56, 24, 3),
    Layer("RegNetX-200MF", 14, 152, 19),
    Layer("RegNetX-800MF", 14, 288, 18),
    Layer("RegNetX-1.6GF", 28, 168, 7),
    Layer("RegNetX-1.6GF", 14, 408, 17),
    Layer("two channels a group", 28, 128, 64),
    depthwise("MobileNetV2", 112, 32),
    depthwise("MobileNetV2", 112, 96, stride=2),
    depthwise("MobileNetV2", 56, 144),
    depthwise("MobileNetV2", 28, 192),
    depthwise("MobileNetV2", 14, 576),
    depthwise("MobileNetV2", 7, 960),
    depthwise("EfficientNet-B0", 56, 144, 5, 2),
    depthwise("EfficientNet-B0", 14, 480, 5),
    depthwise("EfficientNet-B0", 7, 1152, 5),
    depthwise("ConvNeXt-T", 56, 96, 7),
    depthwise("ConvNeXt-T", 14, 384, 7),
)


@dataclass(frozen=True)
class Row:
    """A layer, and what was measured.

    Attributes:
        chosen: the way that the engine takes.
        multiply_adds: for one image.
        nanoseconds: by way, or "openvino", and round.
        peak: multiply-adds per second, by round.
    """

    network: str
    shape: str
    chosen: str
    multiply_adds: int
    nanoseconds: dict[str, tuple[int, ...]]
    peak: tuple[float, ...]


@contextmanager
def forced(form: str) -> Iterator[None]:
    """What is planned meanwhile takes this way."""
    before = schedule.form
    schedule.form = lambda conv, unit, isa: form
    try:
        yield
    finally:
        schedule.form = before


def layer_time(fast: fastres.OptimizedModule, images: Tensor) -> Callable[[], dict[str, int]]:
    """A call of the layer alone, whose module is "0": changes of layout are not counted."""
    executable = fast.internals.runner.finite_executable([images])

    def call() -> dict[str, int]:
        with torch.no_grad(), fast.internals.runner.limit():
            rows = executable.timed([images])
        return {module: took for module, name, took in rows if name.startswith("fastres.conv2d")}

    return call


def measure_layer(
    layer: Layer, batch: int, precision: str, threads: int, plan: measure.Plan
) -> Row:
    """All ways of one layer."""
    library = load()
    assert isinstance(library, Library)
    isa = native.instruction_set(library, precision)
    assert isa is not None
    row = PRECISIONS[precision]
    model = layer.module()
    images = torch.randn(
        batch, layer.channels, layer.size, layer.size, dtype=torch.float32, device="cpu"
    )
    is_depthwise = layer.groups == layer.channels
    calls: dict[str, Callable[[], Any]] = {"peak": lambda: library.peak(isa, row.dtype, threads, 2)}
    for form in ("depthwise", "grouped") if is_depthwise else ("panels", "grouped"):
        with forced(form):
            fast = fastres.optimize(
                model, images, engine="native", precision=precision, threads=threads
            )
            calls[form] = layer_time(fast, images)
            calls[form]()
    if openvino_layers.why_unavailable(precision) is None:
        calls["openvino"] = openvino_layers.profiled(model, images, precision, threads)
    returned = interleaved(calls, plan)
    peak = tuple(returned.pop("peak"))
    times = {name: tuple(each.get("0", 0) for each in found) for name, found in returned.items()}
    spec = layer.spec(batch)
    return Row(
        layer.network, layer.shape, schedule.form(spec, row.group, isa),
        spec.p * spec.q * spec.k * spec.c // spec.groups * spec.r * spec.s, times, peak,
    )  # fmt: skip


def show(rows: Sequence[Row], title: str, batch: int, console: Console) -> None:
    """Print a table."""
    table = Table(
        "layer",
        "channels",
        "way",
        *(
            Column(name, justify="right", no_wrap=True)
            for name in ("ms", "% of peak", "to the other way", "OpenVINO")
        ),
        title=title,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for row in rows:
        chosen = row.nanoseconds[row.chosen]
        (other,) = set(row.nanoseconds) - {row.chosen, "openvino"}
        ratios = [
            f"{measure.paired_ratio(row.nanoseconds[name], chosen).median:.2f}x"
            if all(row.nanoseconds.get(name, ())) and row.nanoseconds.get(name)
            else "-"
            for name in (other, "openvino")
        ]
        took = statistics.median(chosen)
        rate = row.multiply_adds * batch * 1e9 / took / statistics.median(row.peak)
        table.add_row(
            row.network, row.shape, row.chosen, f"{took / 1e6:.3f}", f"{rate:.0%}", *ratios
        )
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table per precision; the exit status is 1 where there is no native engine for any."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.groups", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS_HERE, default=PRECISIONS_HERE)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="per layer")
    parser.add_argument("--only", default="", help="layers of networks whose names contain this")
    parser.add_argument("--json", type=Path, help="write the record")
    options = parser.parse_args(argv)
    torch.manual_seed(inputs.CALIBRATION_SEED)
    console = Console(width=None if sys.stdout.isatty() else 120)
    plan = measure.Plan(seconds=options.seconds)
    found: dict[str, list[Row]] = {}
    for precision in dict.fromkeys(options.precision):
        reason = native.why_unavailable(precision)
        if reason is not None:
            print(f"{precision}: {reason}")
            continue
        found[precision] = [
            measure_layer(layer, options.batch, precision, options.threads, plan)
            for layer in LAYERS
            if options.only in layer.network
        ]
        title = f"{precision}, batch {options.batch}, {options.threads} threads"
        show(found[precision], title, options.batch, console)
    if options.json is not None:
        tree = {
            "schema": "fastres.groups",
            "version": 1,
            "batch": options.batch,
            "threads": options.threads,
            "revision": revision.of_fastres(),
            "environment": target.environment(),
            "precisions": {name: [asdict(row) for row in rows] for name, rows in found.items()},
        }
        record.write_tree(tree, options.json)
    return int(not found)


if __name__ == "__main__":
    sys.exit(main())
