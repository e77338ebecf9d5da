"""Starts the processes of :mod:`fastres.bench.cold_start_child`: cold start and peak memory."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from fastres.bench.cold_start_child import Request
from fastres.bench.peers.peer import Job
from fastres.bench.record import ColdStart, anonymous
from fastres.workload.model_source import Source

TIMEOUT = 900
"""Seconds after which a process is given up."""

# fastres itself must not get its own import for free: it is timed, torch's is not.
_START = """
import sys, time, torch
began = time.perf_counter()
import fastres
seconds = time.perf_counter() - began
from fastres.bench.cold_start_child import main
sys.exit(main(sys.argv[1:], seconds))
"""


class ColdStartFailed(Exception):
    """The process ended without an answer."""


def save(
    model: nn.Module,
    source: Source,
    images: torch.Tensor,
    seed: int,
    folder: Path,
    calibration: torch.Tensor | None = None,
) -> Request:
    """Write what every such process needs into files.

    Args:
        model: whose weights the processes load, unless the user's own function makes them.
        source: where the model comes from.
        images: one batch.
        seed: of random weights.
        folder: where the files go.
        calibration: images for the precisions that need some.

    Returns:
        A request that still names no peer.
    """
    weights = None
    if source.has_random_weights:
        weights = str(folder / "weights.pt")
        torch.save(model.state_dict(), weights)
    path = folder / "images.pt"
    torch.save(images, path)
    ranges = None
    if calibration is not None:
        ranges = str(folder / "calibration.pt")
        torch.save(calibration, ranges)
    return Request(str(source), seed, weights, str(path), "", "", "", 0, "", "", ranges)


def measure(request: Request, name: str, job: Job) -> ColdStart:
    """Run a peer in a new process, and in a second one if the first left a cache.

    Args:
        request: from `save`.
        name: of the peer.
        job: that the peer will be prepared for in this process, too; its cache is still empty.

    Raises:
        FreshFailed: it ended without an answer; the last line that it wrote is in the message.
    """
    request = replace(
        request,
        device=str(job.device),
        peer=name,
        precision=job.precision,
        threads=job.threads,
        folder=str(job.folder),
        cache=str(job.cache),
        calibration=request.calibration if job.calibration is not None else None,
    )
    path = job.folder / "request.json"
    path.write_text(json.dumps(asdict(request)))
    first = _run(path)
    cached = _run(path).cold_seconds if job.cache.exists() else None
    return replace(first, cached_seconds=cached)


def _run(request: Path) -> ColdStart:
    command = [sys.executable, "-c", _START, str(request)]
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ColdStartFailed(f"no answer after {TIMEOUT} s") from error
    if process.returncode:
        lines = process.stderr.strip().splitlines() or [f"exit status {process.returncode}"]
        raise ColdStartFailed(anonymous(lines[-1]))
    result = json.loads(process.stdout.splitlines()[-1])
    return ColdStart(
        cold_seconds=result["cold_seconds"],
        cached_seconds=None,
        export_seconds=result["export_seconds"],
        peak_bytes=result["peak_bytes"],
        before_bytes=result["before_bytes"],
        counter=result["counter"],
    )
