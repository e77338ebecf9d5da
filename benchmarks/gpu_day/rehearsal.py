"""What takes the place of a GPU in a rehearsal, and in preparing for one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import triton

from fastres.errors import FastresError
from fastres.kernels.call import KernelCall


def why_not_interpreted() -> str | None:
    """Why Triton's interpreter cannot run kernels here, or None."""
    older = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7)
    if older and tuple(map(int, np.__version__.split(".")[:2])) >= (2, 4):
        return (
            f"cannot be rehearsed: the interpreter of Triton {triton.__version__} takes numpy "
            f"before 2.4, this is {np.__version__}"
        )
    return None


def launched(work: Callable[[], object]) -> list[KernelCall]:
    """The launches that work would make; none is made, so that its results mean nothing."""
    found: list[KernelCall] = []
    run = KernelCall.run
    KernelCall.run = lambda call: found.append(call)  # type: ignore[method-assign]
    try:
        with contextlib.suppress(FastresError):  # a block that fits on no GPU
            work()
    finally:
        KernelCall.run = run  # type: ignore[method-assign]
    return found
