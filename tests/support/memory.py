"""The memory that a test run takes: given back between tests, and its peak as a line at the end.

Captured graphs are cycles of objects, so weights stay until Python looks for cycles. It does so
seldom: it counts objects, and a network of a gigabyte is few of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from pathlib import Path
from typing import Any

import pytest

PEAK = "peak_bytes"

LARGE = 1_100_000_000
"""Bytes from which on a process looks for what it can give back; torch alone takes 700 MB."""

GROWN = 150_000_000
"""By how much it has to have grown since then to look again, which takes a third of a second."""

STATM = Path("/proc/self/statm")

_peaks: list[int] = []
_held = [0]
"""What was left when it last gave back."""


def give_back() -> None:
    """Free what nobody refers to, and return it to the system, where this process is large."""
    if resident_bytes() < max(LARGE, _held[0] + GROWN):
        return
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc's alone
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    _held[0] = resident_bytes()


def resident_bytes() -> int:
    """What this process holds at present; 0 where the system does not tell."""
    if not STATM.exists():
        return 0
    return int(STATM.read_text().split()[1]) * resource.getpagesize()


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
