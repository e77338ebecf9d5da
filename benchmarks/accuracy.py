"""What a precision costs in accuracy: networks trained here on real images, everybody's answers.

    python -m benchmarks.accuracy                # train, evaluate, print
    python -m benchmarks.accuracy --json PATH    # and write the record
    python -m benchmarks.accuracy --table        # print the record, and run nothing
    python -m benchmarks.accuracy --markdown     # the same as it stands in docs/benchmarks.md
    python -m benchmarks.accuracy --plot PATH    # draw the record as PNG, and run nothing

Every network is trained with a seed to convergence on images of :mod:`benchmarks.labelled_images`.
Then everybody answers the same testing images: torch eager in float32, fastres in float32, bfloat16
and int8 (with each way to choose ranges, and mixed: the layers that lose the most in bfloat16), the
ONNX files of our float32 and int8 models (ONNX Runtime has no bfloat16 convolution on CPUs), and
int8 by NNCF (in OpenVINO) and ONNX Runtime, calibrated on the same training images. Accuracy is the
share of right answers, with its Wilson interval of 95 % (1927); agreement is the share of images
with the first choice of float32.

``outliers`` is no network that was trained: random weights and statistics, behind every BatchNorm
one channel 50 times larger. There the error against float32 tells what ``minmax`` loses. Its ONNX
files are left out: the export holds them to float64 on single images, and ONNX Runtime's float32
sums over channels so far apart do not always come within its bound.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor, nn
from torch.nn import functional as F

import fastres
from benchmarks.labelled_images import IMAGES, SIDE, LabelledImages
from fastres import models
from fastres.bench import record, revision
from fastres.bench.gate import collect, relative_error
from fastres.bench.peers import nncf_peer, onnxruntime_peer
from fastres.bench.peers.peer import Job
from fastres.export import session, to_onnx
from fastres.optimized import OptimizedModule
from fastres.quantization.observers import OBSERVERS
from fastres.system import target

RECORD = Path(__file__).parent / "results" / "accuracy.json"
BATCH = 50
CALIBRATED = 200
"""Training images from which ranges are taken."""
MIXED = 3
"""Layers of the mixed model that stay in bfloat16."""

NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "cifar_resnet20": lambda classes: models.cifar_resnet20(num_classes=classes),
    "resnet18": lambda classes: models.resnet18(num_classes=classes),
}
EPOCHS = {"digits": 12, "photographs": 12}
SEED = 0
OUTLIER = 50.0
OURS, OTHERS = "#d1495b", "#8d99ae"


@dataclass(frozen=True)
class Row:
    """One way to answer.

    Attributes:
        way: who, and in what.
        right: images answered rightly, None for ``outliers``.
        images: there are.
        agreement: share of images with the first choice of float32.
        error: relative root-mean-square error of the logits against torch eager in float32.
    """

    way: str
    right: int | None
    images: int
    agreement: float
    error: float

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, of 95 %."""
        assert self.right is not None
        z, n, share = 1.959964, self.images, self.right / self.images
        middle = (share + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
        return middle - half, middle + half


@dataclass(frozen=True)
class Result:
    """One network on one set of images."""

    network: str
    images: str
    rows: tuple[Row, ...]


def train(model: nn.Module, data: LabelledImages, epochs: int, seed: int) -> nn.Module:
    """SGD with momentum, weight decay and a learning rate that falls by a cosine."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    optimiser = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    steps = epochs * (len(data.training) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(
            len(data.training), generator=generator, dtype=torch.int64, device="cpu"
        )
        for chosen in order.split(BATCH)[: len(data.training) // BATCH]:
            images = _shifted(data.training[chosen], generator)
            loss = F.cross_entropy(model(images), data.training_labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Up to two pixels in any direction, as training images usually are."""
    moves = torch.randint(5, (2,), generator=generator, dtype=torch.int64, device="cpu")
    down, right = (int(move) for move in moves)
    return F.pad(images, (2, 2, 2, 2))[:, :, down : down + SIDE, right : right + SIDE]


def with_outliers(model: nn.Module, seed: int) -> nn.Module:
    """Random statistics, and behind every BatchNorm one channel that is far larger."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0.0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.weight[0] = OUTLIER
                module.bias.normal_(0.0, 0.1, generator=generator)
    return model.eval()


Answer = Callable[[Tensor], Any]


def ways(
    model: nn.Module, calibration: Tensor, folder: Path, exported: bool
) -> Iterator[tuple[str, Callable[[], Answer]]]:
    """Everybody, and what prepares them; who is missing is left out, ONNX if not ``exported``."""
    batches = list(calibration.split(BATCH))

    def ours(**options: Any) -> Callable[[], OptimizedModule]:
        return lambda: fastres.optimize(model, batches[0], **options)

    yield "torch eager fp32", lambda: model
    yield "fastres fp32", ours()
    yield "fastres bf16", ours(precision="bf16")
    for observer in OBSERVERS:
        options = {"precision": "int8", "calibration": batches, "observer": observer}
        yield f"fastres int8, {observer}", ours(**options)
    yield (
        "fastres int8, first and last layer bf16",
        ours(precision="int8", calibration=batches, keep={"conv1": "bf16", "fc": "bf16"}),
    )

    def mixed() -> Answer:
        worst = fastres.sensitivity(model, batches, batches[0])[:MIXED]
        keep = {row.module: "bf16" for row in worst}
        return ours(precision="int8", calibration=batches, keep=keep)()

    yield f"fastres int8, the {MIXED} worst layers bf16", mixed

    def as_onnx(precision: str, **options: Any) -> Callable[[], Answer]:
        def prepare() -> Answer:
            path = folder / f"{precision}.onnx"
            to_onnx(ours(precision=precision, **options)(), path)
            return session(path)

        return prepare

    if exported:
        yield "fastres fp32 as ONNX, in ONNX Runtime", as_onnx("fp32")
        yield "fastres int8 as ONNX, in ONNX Runtime", as_onnx("int8", calibration=batches)
    job = Job(model, batches[0], "int8", target.cpu_threads(), folder, folder, calibration)
    if nncf_peer.missing("cpu") is None:
        yield "NNCF int8, in OpenVINO", lambda: nncf_peer.prepare(job).call
    if onnxruntime_peer.missing("cpu") is None:
        yield "ONNX Runtime int8", lambda: onnxruntime_peer.prepare_quantized(job).call


def evaluate(
    model: nn.Module, calibration: Tensor, images: Tensor, labels: Tensor | None
) -> Iterator[Row]:
    """Everybody's answers to the testing images."""
    batches = images.split(BATCH)
    exact = None
    with tempfile.TemporaryDirectory() as folder:
        for way, prepare in ways(model, calibration, Path(folder), exported=labels is not None):
            with torch.no_grad():
                outputs = collect(prepare(), batches)
            assert outputs.first_choice is not None
            exact = exact or outputs
            assert exact.first_choice is not None
            right = None if labels is None else int((outputs.first_choice == labels).sum())
            agreement = float((outputs.first_choice == exact.first_choice).double().mean())
            yield Row(way, right, len(images), agreement, relative_error(outputs, exact))


def measure(network: str, images: str, console: Console) -> Result:
    """Train a network and let everybody answer."""
    data = IMAGES[images](SEED)
    torch.manual_seed(SEED)
    model = NETWORKS[network](data.classes)
    began = time.perf_counter()
    model = train(model, data, EPOCHS[images], SEED)
    console.print(f"{network} on {images}: trained in {time.perf_counter() - began:.0f} s")
    whole = len(data.testing) // BATCH * BATCH  # peers are for one size of batch
    testing, labels = data.testing[:whole], data.testing_labels[:whole]
    rows = tuple(evaluate(model, data.training[:CALIBRATED], testing, labels))
    return Result(network, images, rows)


def measure_outliers(network: str) -> Result:
    """Random weights with outlying channels on photographs."""
    data = IMAGES["photographs"](SEED)
    torch.manual_seed(SEED)
    model = with_outliers(NETWORKS[network](data.classes), SEED)
    testing = data.testing[: 4 * BATCH]
    rows = tuple(evaluate(model, data.training[:CALIBRATED], testing, None))
    return Result(f"{network}, outliers", "photographs", rows)


def show(results: Sequence[Result], console: Console) -> None:
    """A table for each network."""
    for result in results:
        table = Table(
            "answers of",
            *(Column(name, justify="right") for name in ("accuracy", "agreement", "error")),
            title=f"{result.network} on {result.images}, {result.rows[0].images} images",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        for row in result.rows:
            table.add_row(*_cells(row))
        console.print(table)


def markdown(results: Sequence[Result]) -> str:
    """The tables of ``docs/benchmarks.md``."""
    blocks = []
    for result in results:
        lines = [f"**{result.network} on {result.images}, {result.rows[0].images} images**", ""]
        lines += ["| answers of | accuracy | agreement | error |", "|---|---:|---:|---:|"]
        lines += [f"| {' | '.join(_cells(row))} |" for row in result.rows]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _cells(row: Row) -> tuple[str, str, str, str]:
    accuracy = "-"
    if row.right is not None:
        low, high = row.interval
        accuracy = f"{row.right / row.images:.2%} ({low:.1%} to {high:.1%})"
    return row.way, accuracy, f"{row.agreement:.2%}", f"{row.error:.1e}"


def draw(results: Sequence[Result], path: Path) -> None:
    """A PNG with a panel for each network: accuracies with intervals, or errors of ``outliers``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    most = max(len(result.rows) for result in results)
    figure = Figure(figsize=(9, len(results) * (0.9 + 0.24 * most)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, result in zip(
        figure.subplots(len(results), squeeze=False)[:, 0], results, strict=True
    ):
        names = [row.way for row in result.rows][::-1]  # the first on top
        colours = [OURS if name.startswith("fastres") else OTHERS for name in names]
        rows = result.rows[::-1]
        if result.rows[0].right is None:
            axes.barh(names, [row.error for row in rows], color=colours)
            axes.set_xlabel("relative error of the logits against float32", fontsize=8)
        else:
            for at, (row, colour) in enumerate(zip(rows, colours, strict=True)):
                low, high = (100 * end for end in row.interval)
                axes.hlines(at, low, high, color=colour, linewidth=1.5)
                assert row.right is not None
                axes.plot(100 * row.right / row.images, at, "o", color=colour, markersize=4)
            axes.set_yticks(range(len(names)), names)
            axes.set_xlabel("accuracy in percent, with its Wilson interval of 95 %", fontsize=8)
        axes.set_title(f"{result.network} on {result.images}", fontsize=9, loc="left")
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png", dpi=120)


def write(results: Sequence[Result], path: Path) -> None:
    """The record."""
    record.write_tree(
        {
            "schema": "fastres.accuracy",
            "version": 1,
            "revision": revision.of_fastres(),
            "environment": target.environment(),
            "seed": SEED,
            "calibration_images": CALIBRATED,
            "results": [asdict(result) for result in results],
        },
        path,
    )


def read(path: Path) -> list[Result]:
    """What :func:`write` wrote."""
    tree = json.loads(path.read_text(encoding="utf-8"))
    return [
        Result(each["network"], each["images"], tuple(Row(**row) for row in each["rows"]))
        for each in tree["results"]
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    add = parser.add_argument
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    add("--images", nargs="+", choices=IMAGES, default=list(IMAGES))
    add("--json", type=Path, metavar="PATH", help="write the record there")
    add("--table", action="store_true", help="print the record, and run nothing")
    add("--markdown", action="store_true", help="the same as in docs/benchmarks.md")
    add("--plot", type=Path, metavar="PATH", help="draw the record there, and run nothing")
    options = parser.parse_args(argv)
    console = Console()
    if options.table or options.markdown or options.plot:
        results = read(RECORD)
        if options.markdown:
            print(markdown(results))
        if options.table:
            show(results, console)
        if options.plot:
            draw(results, options.plot)
        return 0
    results = []
    for network in options.networks:
        for images in (*options.images, None):
            results.append(
                measure(network, images, console) if images else measure_outliers(network)
            )
            show(results[-1:], console)
            if options.json is not None:  # as far as it has come
                write(results, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
