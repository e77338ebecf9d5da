"""How many threads a call may use: what the process is granted, not what the host has."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

from fastres.system import forking
from fastres.system.forking import orphaned
from fastres.system.target import cpu_threads


class ThreadLimit:
    """A bound on torch's threads during a call.

    torch sizes its pool by the machine. In a container with two processors' worth of quota on a
    64-core host that is 62 threads too many. ``threads=None`` takes the smaller of torch's setting
    and what affinity and cgroup quota grant, so a caller's own ``torch.set_num_threads`` is kept.

    In a child after ``fork()`` torch itself gets one thread, which is all it can use there; the
    native engine has threads of its own.
    """

    def __init__(self, threads: int | None) -> None:
        self._fixed = threads
        self._granted = cpu_threads()

    @property
    def threads(self) -> int:
        """Threads that a call from the current thread would use."""
        return self._fixed or min(_asked(), self._granted)

    def __call__(self) -> contextlib.AbstractContextManager[None]:
        """A context that holds the bound and gives the setting back."""
        current = torch.get_num_threads()
        wanted = 1 if orphaned() else self._fixed or min(current, self._granted)
        return _NOTHING if wanted == current else _holding(wanted, current)


@contextlib.contextmanager
def safe_threads() -> Iterator[None]:
    """A context in which torch has no more threads than it can use: in a child, one.

    A decorator too, for whatever lets torch compute, copy or compare tensors outside of a call.
    """
    current = torch.get_num_threads()
    with _holding(1, current) if orphaned() and current > 1 else _NOTHING:
        yield


@contextlib.contextmanager
def preparing() -> Iterator[None]:
    """A context for work that a fork must not cut in two, and that runs in children, too.

    Raises:
        TargetError: see :func:`fastres.system.forking.preparing`.
    """
    with forking.preparing(), safe_threads():
        yield


_setting = threading.local()


def _asked() -> int:
    """torch's setting in this thread as its user made it, whatever is held to at the moment."""
    return getattr(_setting, "asked", None) or torch.get_num_threads()


@contextlib.contextmanager
def _holding(wanted: int, current: int) -> Iterator[None]:
    outer = getattr(_setting, "asked", None)
    _setting.asked = outer or current
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(current)
        _setting.asked = outer


_NOTHING: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
