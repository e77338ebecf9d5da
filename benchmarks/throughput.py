"""Images one after another, as many a second as will go: in turn, in streams, and in OpenVINO's.

Each image is a call of its own, of batch 1. In turn, a call has all threads; in streams, each has
one, and there are as many as threads (``streams=``; OpenVINO's throughput hint and asynchronous
queue). All take turns, round by round, on the same images; speeds are medians over the rounds, and
so are the ratios, which are taken within a round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor, nn

import fastres
from fastres.bench import record, revision
from fastres.bench.peers import openvino_peer
from fastres.bench.peers.peer import Job
from fastres.system import target
from fastres.workload import inputs

IN_TURN, STREAMS, OPENVINO = "fastres, in turn", "fastres, streams", "OpenVINO, streams"
PRECISIONS = ("fp32", "bf16")

Answers = list[Tensor]


def ways(
    model: nn.Module, images: Sequence[Tensor], precision: str, threads: int
) -> dict[str, Callable[[], Answers]]:
    """Ways to answer all images, each on so many threads in all."""
    in_turn = fastres.optimize(model, images[0], precision=precision, threads=threads)
    streams = fastres.optimize(model, images[0], precision=precision, streams=threads)
    made: dict[str, Callable[[], Answers]] = {
        IN_TURN: lambda: [in_turn(image) for image in images],
        STREAMS: lambda: list(streams.map(images)),
    }
    if not openvino_peer.missing("cpu") and not openvino_peer.refuses(precision, "cpu"):
        made[OPENVINO] = _openvino(model, images, precision, threads)
    return made


def _openvino(
    model: nn.Module, images: Sequence[Tensor], precision: str, threads: int
) -> Callable[[], Answers]:
    import openvino

    job = Job(model, images[0], precision, threads, Path(), Path())
    compiled = openvino_peer.compile_model(
        openvino_peer.converted(model, images[0]), job, len(images[0]), threads
    )
    queue = openvino.AsyncInferQueue(compiled, threads)
    answers: list[Tensor | None] = [None] * len(images)

    def keep(request: Any, index: int) -> None:
        answers[index] = torch.from_numpy(request.get_output_tensor(0).data.copy())

    queue.set_callback(keep)

    def call() -> Answers:
        for index, image in enumerate(images):
            queue.start_async([image.numpy()], index, share_inputs=True)
        queue.wait_all()
        return [answer for answer in answers if answer is not None]

    return call


def measure(
    model: nn.Module, images: Sequence[Tensor], precision: str, threads: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds of every round, by way.

    Raises:
        RuntimeError: two ways of fastres's gave different bits.
    """
    calls = ways(model, images, precision, threads)
    warm = {name: call() for name, call in calls.items()}
    if not all(map(torch.equal, warm[IN_TURN], warm[STREAMS])):
        raise RuntimeError("the answers in streams are not those in turn")
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def show(tree: dict[str, Any], console: Console) -> None:
    """Print a table of a record."""
    numbers = [Column(name, justify="right") for name in ("img/s", "streams against it")]
    table = Table("precision", "way", *numbers, box=box.MARKDOWN)
    for precision, seconds in tree["seconds"].items():
        for name, times in seconds.items():
            ratio = statistics.median(
                mine / theirs for mine, theirs in zip(times, seconds[STREAMS], strict=True)
            )
            speed = tree["images"] / statistics.median(times)
            table.add_row(precision, name, f"{speed:.1f}", f"{ratio:.2f}x")
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, and write a record where asked."""
    parser = argparse.ArgumentParser("python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=target.cpu_threads())
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", default=list(PRECISIONS))
    parser.add_argument("--json", type=Path, help="file to write the record to")
    parser.add_argument("--from-record", type=Path, help="print that one and measure nothing")
    options = parser.parse_args(argv)
    console = Console(width=100)
    if options.from_record is not None:
        show(json.loads(options.from_record.read_text(encoding="utf-8")), console)
        return 0
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = fastres.models.build(options.model).eval()
    images = inputs.synthetic_images(options.images, 3, options.size, seed=0)
    inputs.calibrate_random_weights(model, images, seed=0)
    tree = {
        "schema": "fastres.throughput",
        "version": 1,
        "model": options.model,
        "images": options.images,
        "size": options.size,
        "threads": options.threads,
        "revision": revision.of_fastres(),
        "environment": target.environment(),
        "seconds": {
            precision: measure(model, images.split(1), precision, options.threads, options.rounds)
            for precision in options.precision
        },
    }
    show(tree, console)
    if options.json is not None:
        record.write_tree(tree, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
