"""``os.fork()``: what a child may do, which has the one thread that forked and a copy of all else.

A lock that another thread held is never released in the child, and whatever that thread was in the
middle of stays so: torch's registries, a half-imported module. Forking therefore waits until no
other thread of ours prepares anything (captures, builds, loads). Where it has waited long enough
and goes on, the child's calls of what is prepared still answer; preparing anything raises there.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastres.errors import TargetError

PATIENCE = 30.0
"""Seconds that a fork waits for other threads."""


class _Gate:
    """Threads that prepare something exclude forks, and a fork excludes new ones.

    Attributes:
        changed: notified whenever one of the other two changes.
        inside: thread ident -> how often it entered; several threads may be inside.
        forking: forks that wait or are under way.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.inside: dict[int, int] = {}
        self.forking = 0

    def enter(self, thread: int) -> None:
        with self.changed:
            if thread not in self.inside:
                self.changed.wait_for(lambda: not self.forking)
            self.inside[thread] = self.inside.get(thread, 0) + 1

    def leave(self, thread: int) -> None:
        with self.changed:
            self.inside[thread] -= 1
            if not self.inside[thread]:
                del self.inside[thread]
            self.changed.notify_all()

    def close(self, thread: int) -> None:
        """Before a fork: admit no thread any more, and wait until all others have left."""
        with self.changed:
            self.forking += 1
            if thread not in self.inside:  # others may wait for what this thread holds
                self.changed.wait_for(lambda: not self.inside, PATIENCE)

    def open(self) -> None:
        with self.changed:
            self.forking -= 1
            self.changed.notify_all()

    def forked(self, thread: int) -> bool:
        """In the child, where only this thread exists: whether another one was inside."""
        others = set(self.inside) - {thread}
        self.changed = threading.Condition()
        self.inside = {ident: depth for ident, depth in self.inside.items() if ident == thread}
        self.forking = 0
        return bool(others)


_gate = _Gate()
_cut_off = False
_orphaned = False
_locks: weakref.WeakSet[Any] = weakref.WeakSet()


def lock() -> threading.Lock:
    """A lock that is free in a child, whichever thread of the parent held it."""
    new = threading.Lock()
    _locks.add(new)
    return new


def rlock() -> threading.RLock:
    """A reentrant lock, also free in a child."""
    new = threading.RLock()
    _locks.add(new)
    return new


@contextlib.contextmanager
def preparing() -> Iterator[None]:
    """A context for work that no fork may interrupt; reentrant.

    Raises:
        TargetError: this process is a child that was forked from such a context of another thread.
    """
    if _cut_off:
        raise TargetError(
            "this process was forked while another thread was preparing a model, and what that "
            "thread held is lost here: shapes that were prepared before still run, nothing new can "
            "be prepared. Fork before or after, or start processes with 'spawn'"
        )
    thread = threading.get_ident()
    _gate.enter(thread)
    try:
        yield
    finally:
        _gate.leave(thread)


def cut_off() -> bool:
    """Whether this process was forked while another thread was preparing something."""
    return _cut_off


def orphaned() -> bool:
    """Whether this process was forked from one with other threads.

    An OpenMP runtime takes them for still there, and waits for them whenever it needs more than one
    (GCC's does, and with it torch).
    """
    return _orphaned


def _threads() -> int:
    """How many threads this process has; 2 where the system does not tell."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.exists() else 2


def _before() -> None:
    global _threads_before
    _gate.close(threading.get_ident())
    _threads_before = _threads()


def _after_in_parent() -> None:
    _gate.open()


def _after_in_child() -> None:
    global _cut_off, _orphaned
    _cut_off = _gate.forked(threading.get_ident()) or _cut_off
    _orphaned = _threads_before > 1 or _orphaned
    for each in _locks:
        each._at_fork_reinit()


_threads_before = 0
if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(
        before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
    )
