"""Memory that the executables of one engine take turns with."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable

from torch import Tensor

from fastres.runtime.triton.device import Device


class Workspace:
    """One device, one order of work, and the arenas of all shapes in the same memory.

    An executable copies its arguments in and its results out while it holds the lock, and the
    device works in one order, so nothing in an arena outlives a call. A new executable therefore
    takes an arena that exists, if it is large enough; memory goes back with the last executable
    that uses it.

    Args:
        device: what the executables run on.
        kept: what recordings of the caller's read; lives as long as the model, also when its
            weights are replaced.

    Attributes:
        lock: held by whoever uses an arena.
    """

    def __init__(self, device: Device, kept: dict[int, object] | None = None) -> None:
        self.device = device
        self.lock = threading.Lock()
        self._arenas: weakref.WeakSet[Arena] = weakref.WeakSet()
        self._kept = {} if kept is None else kept

    def keep(self, things: Iterable[object]) -> None:
        """Hold what a recording of the caller's has the addresses of."""
        self._kept.update((id(thing), thing) for thing in things)

    def present(self, nbytes: int) -> int:
        """Bytes that an arena of that size need not be given, since one is there."""
        return nbytes if self._fitting(nbytes) else 0

    def arena(self, nbytes: int) -> Arena:
        """The smallest arena of at least that size, or a new one.

        Raises:
            torch.OutOfMemoryError: the device has no room for a new one.
        """
        arena = self._fitting(nbytes)
        if arena is None:
            arena = Arena(self.device.allocate(nbytes))
            self._arenas.add(arena)
        return arena

    def _fitting(self, nbytes: int) -> Arena | None:
        fitting = [arena for arena in self._arenas if arena.memory.numel() >= nbytes]
        return min(fitting, key=lambda arena: arena.memory.numel(), default=None)


class Arena:
    """Bytes on the device, alive as long as somebody holds this."""

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
