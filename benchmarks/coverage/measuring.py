"""One architecture, measured in this process: ``python -m benchmarks.coverage.measuring``.

The parent gives the request as JSON; the row is written anew after each thing that is measured, so
that a crash loses nothing but what it interrupts.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

import fastres
from benchmarks.coverage.architectures import Architecture, chosen
from benchmarks.coverage.operators import parts_of
from benchmarks.coverage.record import Contender, Coverage, Row, Speed, read_row, write_row
from fastres.bench import compare, gate, revision, settings
from fastres.bench.record import anonymous
from fastres.system.progress import Progress
from fastres.workload import inputs, model_source

IMAGES = 8
"""Synthetic images that BatchNorm's statistics are taken from, and as many others for int8.

At least so many are compared with float64 before contenders are timed.
"""

SAMPLE = 2
"""Images that ``optimize`` compares with float64; it tries one alone, too."""

PEERS = ("channels-last", "compile", "openvino")
TIMED = ("fp32", "bf16")
"""Precisions in which contenders are timed: those that all have."""


@dataclass(frozen=True)
class Request:
    """What is to be measured.

    Attributes:
        name: of the architecture.
        row: the file of the row: begun there already, or not there yet.
        precisions, batches: of coverage and of speed.
        threads: per call.
        seconds: that contenders take turns.
    """

    name: str
    row: str
    precisions: tuple[str, ...]
    batches: tuple[int, ...]
    threads: int
    seconds: float


def measure(request: Request) -> None:
    """Measure what the row lacks, and write it after each step."""
    (architecture,) = chosen([request.name])
    path = Path(request.row)
    row = read_row(path) if path.exists() else _new(architecture)
    row = replace(row, revision=revision.of_fastres(), failed=None)
    parent = os.getppid()

    def begin(stage: str) -> None:
        nonlocal row
        if os.getppid() != parent:
            raise SystemExit("whoever asked for this has ended")
        row = replace(row, stage=stage)
        write_row(row, path)

    torch.set_num_threads(request.threads)
    begin("building it")
    model, images = built(architecture)
    row = replace(row, parameters=sum(each.numel() for each in model.parameters()))
    for precision in request.precisions:
        if precision not in row.coverage:
            begin(f"coverage in {precision}")
            found = covered(model, images, precision, request.threads)
            row = replace(row, coverage={**row.coverage, precision: found})
    timed = [precision for precision in request.precisions if precision in TIMED]
    for batch in request.batches:
        if batch not in row.speed:
            begin(f"speed at batch {batch}")
            speed = raced(architecture, model, images, batch, timed, request)
            row = replace(row, speed={**row.speed, batch: speed})
    begin("")


def built(architecture: Architecture) -> tuple[nn.Module, Tensor]:
    """The network with plausible random weights, and the images that they are fitted to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's, about its slow initialisers
        model = model_source.build(architecture.source, seed=0)
    images = inputs.synthetic_images(IMAGES, 3, architecture.size, seed=0)
    inputs.calibrate_random_weights(model, images, seed=0)
    return model, images


def covered(model: nn.Module, images: Tensor, precision: str, threads: int) -> Coverage:
    """Optimise in a precision, which compares with float64, and look at what runs where."""
    calibration = None
    if precision == "int8":
        seed = inputs.CALIBRATION_SEED
        calibration = [inputs.synthetic_images(IMAGES, 3, images.shape[-1], seed)]
    began = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", fastres.errors.FastresWarning)
            fast = fastres.optimize(
                model,
                images[:SAMPLE],
                precision=precision,
                threads=threads,
                calibration=calibration,
            )
        took = time.perf_counter() - began
        parts = parts_of(fast, [images[:1]])
    except Exception as error:  # noqa: BLE001 - the row says what went wrong
        return Coverage(failed=sentence(error))
    check = fast.report.check
    assert check is not None
    return Coverage(
        engine=fast.internals.runner.finite_executable([images[:1]]).engine,
        parts=parts,
        error=gate.finite(check.error),
        error_ratio=gate.finite(check.ratio),
        seconds=took,
    )


def raced(
    architecture: Architecture,
    model: nn.Module,
    images: Tensor,
    batch: int,
    precisions: Sequence[str],
    request: Request,
) -> Speed:
    """Time fastres and its peers at a batch size, taking turns, after checking their answers."""
    checked = inputs.images_checked(batch, IMAGES)
    pool = images.repeat(-(-checked // len(images)), 1, 1, 1)[:checked]
    words = ["--model", str(architecture.source), "--batch", str(batch)]
    words += ["--size", str(architecture.size), "--seconds", str(request.seconds)]
    words += ["--threads", str(request.threads), "--cold", "none", "--precision", *precisions]
    words += ["--peers", *PEERS]
    asked = settings.parse(words)
    try:
        with Progress() as progress, tempfile.TemporaryDirectory() as folder:
            expected = gate.float64_outputs(model, pool)
            setup = compare.Setup(asked, model, pool, expected, Path(folder))
            entries = compare.entries(asked)
            found = compare.run_batch(setup, entries, batch, cold=False, progress=progress)
    except Exception as error:  # noqa: BLE001 - the row says what went wrong
        return Speed(failed=sentence(error))
    contenders = tuple(
        Contender(row.name, row.title, row.precision, row.reason, row.error_ratio, row.samples_ns)
        for row in found.rows
    )
    return Speed(None, len(pool), found.others_share, contenders)


def sentence(error: Exception) -> str:
    """An exception's type and the first line of its text, without absolute paths."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return anonymous(f"{type(error).__name__}: {line}" if line else type(error).__name__)


def _new(architecture: Architecture) -> Row:
    return Row(architecture.name, architecture.origin, architecture.size)


def main(argv: Sequence[str]) -> int:
    """Do what the request in the file of the first argument says."""
    tree = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    tree |= {name: tuple(tree[name]) for name in ("precisions", "batches")}
    measure(Request(**tree))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
