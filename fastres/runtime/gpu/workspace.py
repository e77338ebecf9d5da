"""Memory that the executables of one engine take turns with."""

from __future__ import annotations

import threading
import weakref

from torch import Tensor

from fastres.runtime.gpu.device import Device


class Workspace:
    """One device, one order of work, and the arenas of all shapes in the same memory.

    An executable copies its arguments in and its results out while it holds the lock, and the
    device works in one order, so nothing in an arena outlives a call. A new executable therefore
    takes an arena that exists, if it is large enough; memory goes back with the last executable
    that uses it.

    Attributes:
        device: what the executables run on.
        lock: held by whoever uses an arena.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.lock = threading.Lock()
        self._arenas: weakref.WeakSet[Arena] = weakref.WeakSet()

    def arena(self, nbytes: int) -> Arena:
        """The smallest arena of at least that size, or a new one.

        Raises:
            torch.OutOfMemoryError: the device has no room for a new one.
        """
        fitting = [arena for arena in self._arenas if arena.memory.numel() >= nbytes]
        if fitting:
            return min(fitting, key=lambda arena: arena.memory.numel())
        arena = Arena(self.device.allocate(nbytes))
        self._arenas.add(arena)
        return arena


class Arena:
    """Bytes on the device, alive as long as somebody holds this."""

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
