"""A plan: what the library runs, in its own structures, and what it is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastres.runtime.native.abi import CPhase
from fastres.runtime.native.layout import Layout
from fastres.runtime.native.operations import Op, Value
from fastres.runtime.native.schedule import Caches


@dataclass(frozen=True)
class Phase:
    """Operations ``first`` to ``end`` run for ``images`` images at a time."""

    first: int
    end: int
    images: int

    @property
    def ops(self) -> range:
        """The numbers of its operations."""
        return range(self.first, self.end)


@dataclass
class Buffer:
    """A value's place in the arena."""

    layout: Layout
    images: int
    offset: int

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.layout.image * self.images


@dataclass(frozen=True)
class Release:
    """Whole pages of the arena that nothing reads behind an operation's last run."""

    operation: int
    offset: int
    bytes: int


@dataclass
class Plan:
    """Everything that the library needs for a number of images, and what must outlive it.

    Attributes:
        caches: the caches that it was made for.
        kinds: what each of ``operations`` runs as.
        layouts: of the values, borders included.
        ops: the library's structures, one for each of ``operations``.
        phases: in order.
        buffers: for tests, which fill and fence them.
        guards: (offset, bytes) of pages that nobody may touch.
        releases: what can be given back to the system during a run.
        live_bytes: what is in use at once at most, if it is.
    """

    images: int
    isa: str
    caches: Caches
    operations: list[Op]
    kinds: list[str]
    layouts: dict[Value, Layout]
    ops: Any
    phases: list[Phase]
    buffers: list[Buffer]
    arena_bytes: int
    guards: list[tuple[int, int]]
    kept: list[Any] = field(default_factory=list)
    releases: list[Release] = field(default_factory=list)
    live_bytes: int = 0

    def c_phases(self) -> Any:
        """The library's structures for the phases."""
        return (CPhase * len(self.phases))(
            *(CPhase(p.first, p.end - p.first, p.images) for p in self.phases)
        )
