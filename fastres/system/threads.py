"""How many threads a call may use: by affinity and quota of the process, not cores of the host."""

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
        self._available = cpu_threads()

    @property
    def threads(self) -> int:
        """Threads that a call from the current thread would use."""
        return self._fixed or min(_user_setting(), self._available)

    def __call__(self) -> contextlib.AbstractContextManager[None]:
        """A context in which torch has that many threads; its setting is restored afterwards."""
        current = torch.get_num_threads()
        threads = 1 if orphaned() else self._fixed or min(current, self._available)
        return _NO_CHANGE if threads == current else _with_threads(threads, current)


@contextlib.contextmanager
def safe_threads() -> Iterator[None]:
    """A context in which torch has one thread if this process was forked, and else its own number.

    Also a decorator, for functions that compute, copy or compare tensors outside of a call.
    """
    current = torch.get_num_threads()
    with _with_threads(1, current) if orphaned() and current > 1 else _NO_CHANGE:
        yield


@contextlib.contextmanager
def preparing() -> Iterator[None]:
    """A context for work that no fork may interrupt, with a safe number of threads in a child.

    Raises:
        TargetError: see :func:`fastres.system.forking.preparing`.
    """
    with forking.preparing(), safe_threads():
        yield


_thread_local = threading.local()


def _user_setting() -> int:
    """torch's number of threads as the user set it, also inside of :func:`_with_threads`."""
    return getattr(_thread_local, "user_threads", None) or torch.get_num_threads()


@contextlib.contextmanager
def _with_threads(threads: int, current: int) -> Iterator[None]:
    outer = getattr(_thread_local, "user_threads", None)
    _thread_local.user_threads = outer or current
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(current)
        _thread_local.user_threads = outer


_NO_CHANGE: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
