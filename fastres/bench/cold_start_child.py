"""One peer in a process of its own: cold start and peak memory. Started by `cold_start`.

``python -m fastres.bench.cold_start_child JOB`` reads a `Request` from the file JOB and prints a
line of JSON. The clock starts when the model is in memory and torch is imported, and stops when the
peer has given its first answer (on a GPU, when the GPU has). fastres is imported by then,
because this module is in it; the time for that is added to fastres's own, and what others find
loaded by it (sympy) they have for free.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fastres.bench import device, process_memory
from fastres.bench.peers import catalogue
from fastres.bench.peers.peer import Job
from fastres.workload import model_source

CALLS = 3
"""Calls after the first one, so that memory which only a later call allocates is counted."""


@dataclass(frozen=True)
class Request:
    """What the process is asked to do.

    Attributes:
        model: as for ``--model``.
        seed: of the model's weights where no ``weights`` replace them.
        weights: file with the state that the bench gave to a model with random weights, or None.
        images: file with one batch.
        device: where to compute.
        peer: its name.
        precision, threads: what the peer computes in, and with how many threads.
        folder, cache: where it may write, see `fastres.bench.peers.peer.Job`.
        calibration: file with its calibration images, or None.
    """

    model: str
    seed: int
    weights: str | None
    images: str
    device: str
    peer: str
    precision: str
    threads: int
    folder: str
    cache: str
    calibration: str | None = None


def main(argv: Sequence[str], import_seconds: float = 0.0) -> int:
    """Measure what the request in a file describes, and print the result as JSON.

    Args:
        argv: the file's name.
        import_seconds: what importing fastres took beyond torch; it counts for fastres only.
    """
    warnings.simplefilter("ignore")
    request = Request(**json.loads(Path(argv[0]).read_text()))
    torch.set_num_threads(request.threads)
    model = model_source.build(model_source.parse(request.model), request.seed)
    if request.weights is not None:
        model.load_state_dict(torch.load(request.weights, weights_only=True))
    where = torch.device(request.device)
    images = torch.load(request.images, weights_only=True).to(where)
    calibration = None
    if request.calibration is not None:
        calibration = torch.load(request.calibration, weights_only=True)
    peer = catalogue.find_peer(request.peer)
    job = Job(
        model,
        images,
        request.precision,
        request.threads,
        Path(request.folder),
        Path(request.cache),
        calibration,
    )
    process_memory.reset_peak()
    before = process_memory.resident() if where.type == "cpu" else device.used_bytes(where)
    if where.type == "cuda":
        device.allow_tf32(request.precision == "tf32")
    began = time.perf_counter()
    ready = peer.prepare(job)
    call = device.synchronized(ready.call, request.precision, where)
    call(images)
    seconds = time.perf_counter() - began
    if peer in (catalogue.FASTRES, catalogue.ONEDNN):
        seconds += import_seconds
    for _ in range(CALLS):
        call(images)
    # Allocators on a GPU keep what they once had, so that what is used at the end is the peak.
    peak, counter = (
        process_memory.peak() if where.type == "cpu" else (device.used_bytes(where), "mem_get_info")
    )
    result = {
        "cold_seconds": seconds,
        "export_seconds": ready.export_seconds,
        "peak_bytes": peak,
        "before_bytes": before,
        "counter": counter,
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
