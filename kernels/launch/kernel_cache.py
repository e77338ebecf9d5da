"""Where Triton keeps what it compiled: its own folder, or a fresh one if that cannot be made.

Triton makes a folder per kernel in ``TRITON_CACHE_DIR``, else ``~/.triton/cache``, and raises where
it cannot: with a home that is read-only, nothing would run. Kernels that are there already are used
from a folder that cannot be written, too. Importing this module imports Triton.
"""

from __future__ import annotations

import functools
import tempfile
import threading
from pathlib import Path
from typing import Any

import triton
from triton.runtime.cache import FileCacheManager

_LOCK = threading.Lock()


class FallbackCache(FileCacheManager):  # type: ignore[misc]
    """Triton's cache of one kernel, in a folder of this process if Triton cannot make its own."""

    reason: str | None = None
    """Why the last such folder was needed, None if none was; of all kernels together."""

    def __init__(self, key: str, *args: Any, **kwargs: Any) -> None:
        try:
            super().__init__(key, *args, **kwargs)
        except OSError as error:
            FallbackCache.reason = str(error)
            with _LOCK:  # or threads would each make one
                folder = Path(_own_folder().name) / key
            folder.mkdir(parents=True, exist_ok=True)
            self.key = key
            self.cache_dir = str(folder)
            self.lock_path = str(folder / "lock")


def install() -> None:
    """Let Triton use :class:`FallbackCache`, unless somebody gave it a cache of another kind."""
    if triton.knobs.cache.manager_class in (None, FileCacheManager):
        triton.knobs.cache.manager_class = FallbackCache


def note() -> str | None:
    """For the receipt: why compiled kernels do not outlive this process; None where they do."""
    if FallbackCache.reason is None:
        return None
    return (
        f"compiled kernels are kept for this process only: {FallbackCache.reason}; set "
        "TRITON_CACHE_DIR to a folder that can be written"
    )


@functools.cache
def _own_folder() -> tempfile.TemporaryDirectory[str]:
    """Private, and removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="fastres-kernels-")
