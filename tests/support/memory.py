"""The most memory that each process of a test run held, as a line at the run's end."""

from __future__ import annotations

import resource
import sys
from typing import Any

import pytest

PEAK = "peak_bytes"

_peaks: list[int] = []


def peak_bytes() -> int:
    """Of this process, since it began."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def record(config: pytest.Config) -> None:
    """At the end of a session: a worker tells the process that started it."""
    output: dict[str, Any] | None = getattr(config, "workeroutput", None)
    if output is not None:
        output[PEAK] = peak_bytes()
    elif config.getoption("numprocesses", None) in (None, 0):
        _peaks.append(peak_bytes())


def collect(node: Any) -> None:
    """A worker has ended."""
    output: dict[str, Any] = getattr(node, "workeroutput", {})
    if PEAK in output:  # it is not there when the worker crashed
        _peaks.append(output[PEAK])


def summary() -> str | None:
    """The line, or None where no process has told."""
    if not _peaks:
        return None
    peaks = ", ".join(f"{peak / 1e9:.2f} GB" for peak in sorted(_peaks, reverse=True))
    return f"peak memory of the tests' processes: {peaks}"
