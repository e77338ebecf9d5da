"""Python's collector of cyclic garbage, while many objects are made that stay."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from fastres.system import forking

_NEVER = 2**30

_lock = forking.lock()
_inside: list[tuple[int, int, int]] = []
"""The user's thresholds, once for each thread that is inside; the first are restored at the end."""


@contextmanager
def full_collections_later() -> Iterator[None]:
    """Put off collections of the oldest generation, which look at every object of the process.

    With torch and sympy imported that takes a while, and a capture makes so many objects that one
    falls due. Young objects are collected as ever.
    """
    with _lock:
        _inside.append(_inside[0] if _inside else gc.get_threshold())
        first, second, _ = _inside[0]
        gc.set_threshold(first, second, _NEVER)
    try:
        yield
    finally:
        with _lock:
            thresholds = _inside.pop()
            if not _inside:
                gc.set_threshold(*thresholds)
