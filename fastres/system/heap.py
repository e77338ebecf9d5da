"""The C library's heap."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


def give_back() -> None:
    """Give the system the memory that was freed and is kept by the C library for later.

    Between two stages that each need a few large tensors, that can be as much as they need
    together, and the process's peak has both. Only glibc keeps so much, and is asked.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # no C library is found under no name, as on Windows
        return None
    return trim
