"""Executables by input shape: each built once, the least recently used one dropped when full."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable

from fastres.runtime.executable import Runnable
from fastres.system import forking
from fastres.system.threads import preparing

CAPACITY = 32
"""Executables kept per model. Each holds little of its own: weights are shared by layout."""


class ExecutableCache:
    """Safe for concurrent callers; a hit takes no lock."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self._entries: dict[Hashable, Runnable] = {}
        self._used: dict[Hashable, int] = {}
        self._clock = itertools.count()
        self._lock = forking.lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable, build: Callable[[], Runnable]) -> Runnable:
        """The executable for ``key``, built by ``build`` if there is none.

        Callers that want the same new shape at the same time wait for one build.
        """
        found = self._entries.get(key)
        if found is None:
            with preparing(), self._lock:
                found = self._entries.get(key)
                if found is None:
                    found = build()
                    self._make_room()
                    self._used[key] = next(self._clock)
                    self._entries[key] = found
        self._used[key] = next(self._clock)
        return found

    def clear(self) -> None:
        """Forget every executable, for weights that changed."""
        with self._lock:
            self._entries.clear()
            self._used.clear()

    def _make_room(self) -> None:
        while len(self._entries) >= self.capacity:
            oldest = min(self._entries, key=lambda key: self._used.get(key, -1))
            del self._entries[oldest]
        for key in set(self._used) - set(self._entries):
            del self._used[key]
