"""How many threads a call may use: what the process is granted, not what the host has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from fastres.target import cpu_threads


class ThreadLimit:
    """A bound on torch's threads during a call.

    torch sizes its pool by the machine. In a container with two processors' worth of quota on a
    64-core host that is 62 threads too many. ``threads=None`` takes the smaller of torch's setting
    and what affinity and cgroup quota grant, so a caller's own ``torch.set_num_threads`` is kept.
    """

    def __init__(self, threads: int | None) -> None:
        self._fixed = threads
        self._granted = cpu_threads()

    @property
    def threads(self) -> int:
        """Threads that a call from the current thread would use."""
        return self._fixed or min(torch.get_num_threads(), self._granted)

    @contextlib.contextmanager
    def _changed(self, wanted: int, current: int) -> Iterator[None]:
        torch.set_num_threads(wanted)
        try:
            yield
        finally:
            torch.set_num_threads(current)

    def __call__(self) -> contextlib.AbstractContextManager[None]:
        """A context that holds the bound and gives the setting back."""
        current = torch.get_num_threads()
        wanted = self._fixed or min(current, self._granted)
        return _NOTHING if wanted == current else self._changed(wanted, current)


_NOTHING: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
