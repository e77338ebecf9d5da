"""Launches that are made up and not made: in a rehearsal, and to be compiled ahead."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from fastres.errors import FastresError
from fastres.kernels.launch.call import KernelCall


def launched(work: Callable[[], object]) -> list[KernelCall]:
    """The launches that work would make; none is made, so that its results mean nothing."""
    found: list[KernelCall] = []
    run = KernelCall.run
    KernelCall.run = lambda call: found.append(call)  # type: ignore[method-assign, assignment]
    try:
        with contextlib.suppress(FastresError):  # a block that fits on no GPU
            work()
    finally:
        KernelCall.run = run  # type: ignore[method-assign]
    return found
