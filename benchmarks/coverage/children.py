"""Runs one architecture in a process of its own: whatever becomes of that, there is a row."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.coverage.architectures import Architecture
from benchmarks.coverage.measuring import Request
from benchmarks.coverage.record import Row, read_row, write_row
from fastres.bench.record import anonymous

MODULE = "benchmarks.coverage.measuring"


def run(
    architecture: Architecture,
    known: Row | None,
    precisions: tuple[str, ...],
    batches: tuple[int, ...],
    threads: int,
    seconds: float,
    limit: float,
    module: str = MODULE,
) -> Row:
    """Measure what ``known`` lacks.

    Args:
        architecture: which.
        known: what was measured before, or None.
        precisions, batches: of coverage and of speed.
        threads: per call.
        seconds: that contenders take turns.
        limit: seconds after which the process is ended.
        module: what runs, given the request's file.
    """
    with tempfile.TemporaryDirectory(prefix="fastres-coverage-") as name:
        folder = Path(name)
        path = folder / "row.json"
        if known is not None:
            write_row(replace(known, failed=None), path)
        request = Request(architecture.name, str(path), precisions, batches, threads, seconds)
        (folder / "request.json").write_text(json.dumps(asdict(request)), encoding="utf-8")
        failed = _failure([sys.executable, "-m", module, str(folder / "request.json")], limit)
        row = Row(architecture.name, architecture.origin, architecture.size)
        if path.exists():
            row = read_row(path)
        if failed is not None:
            failed = f"{failed}, while {row.stage or 'starting'}"
        return replace(row, failed=failed)


def _failure(command: list[str], limit: float) -> str | None:
    """Why a process ended before its time, or None: it did what it was to do."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        # A session of its own, so that what the process started ends with it.
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"ended after {limit:g} seconds"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if status == 0:
            return None
        if status < 0:
            memory = " (the system's way when memory is short)" if status == -signal.SIGKILL else ""
            return f"ended by {signal.Signals(-status).name}{memory}"
        errors.seek(0)
        lines = errors.read().strip().splitlines() or [f"exit status {status}"]
        return anonymous(lines[-1])
