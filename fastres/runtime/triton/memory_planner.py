"""Where each buffer of a plan lies in one arena: offsets from sizes and lifetimes, and their check.

Best fit, largest first: each buffer takes the smallest gap that is free for its whole life. Nothing
here touches memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

ALIGNMENT = 256
"""Bytes; what ``cudaMalloc`` gives, and more than any vector load asks for."""


@dataclass(frozen=True)
class Buffer:
    """A stretch of memory and when it holds something.

    Attributes:
        nbytes: its size.
        first: the step that writes it first.
        last: the last step that reads or writes it, included.
    """

    nbytes: int
    first: int
    last: int

    def meets(self, other: Buffer) -> bool:
        """Whether both are alive at some step."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Arena:
    """Offsets of the buffers, in their order, and the bytes they need together."""

    offsets: tuple[int, ...]
    nbytes: int


def assign(buffers: Sequence[Buffer]) -> Arena:
    """Offsets at multiples of :data:`ALIGNMENT` at which no two live buffers overlap."""
    offsets = [0] * len(buffers)
    placed: list[int] = []
    for index in sorted(range(len(buffers)), key=lambda i: (-buffers[i].nbytes, i)):
        buffer = buffers[index]
        occupied = sorted(
            (offsets[other], _end(offsets[other], buffers[other]))
            for other in placed
            if buffers[other].meets(buffer)
        )
        offsets[index] = _best_gap(occupied, buffer.nbytes)
        placed.append(index)
    ends = [_end(offset, buffer) for offset, buffer in zip(offsets, buffers, strict=True)]
    return Arena(tuple(offsets), max(ends, default=0))


def _end(offset: int, buffer: Buffer) -> int:
    """The next aligned byte behind a buffer."""
    return offset + -(-buffer.nbytes // ALIGNMENT) * ALIGNMENT


def _best_gap(occupied: Sequence[tuple[int, int]], nbytes: int) -> int:
    """Start of the smallest gap of ``nbytes`` between taken stretches; else behind them all."""
    best: tuple[int, int] | None = None
    free = 0
    for start, end in occupied:
        size = start - free
        if size >= nbytes and size > 0 and (best is None or size < best[0]):
            best = (size, free)
        free = max(free, end)
    return free if best is None else best[1]


def clashes(buffers: Sequence[Buffer], arena: Arena) -> Iterator[tuple[int, int]]:
    """Pairs of buffers that share bytes while both are alive: none in a right arena.

    A buffer that reaches beyond the arena, or starts at no multiple of the alignment, clashes with
    itself.
    """
    for i, (offset, buffer) in enumerate(zip(arena.offsets, buffers, strict=True)):
        if offset % ALIGNMENT or offset < 0 or offset + buffer.nbytes > arena.nbytes:
            yield i, i
        for j in range(i):
            other, start = buffers[j], arena.offsets[j]
            shares = offset < start + other.nbytes and start < offset + buffer.nbytes
            if shares and buffer.meets(other):
                yield j, i
