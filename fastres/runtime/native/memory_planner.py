"""Where a plan's activations lie: buffers by how long their values are read.

A value that is read in another phase than it is made in has room for all images, any other for
those of a sub-batch. Only values of the same layout share a buffer, so that its border stays zero:
borders are zeroed once, with the whole arena.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fastres.runtime.native.layout import LINE, Layout
from fastres.runtime.native.operations import Op, Value
from fastres.runtime.native.plan import Buffer, Phase

PAGE = 4096
SLACK = 8192
"""Bytes behind each buffer that may be read, at least."""


class MemoryPlanner:
    """The places of a plan's values.

    Args:
        slack: bytes behind each buffer that are read, by the rows of AMX's last run that have no
            pixel.

    Attributes:
        places: each value's buffer, which is that of the concatenation that it lies in.
        whole: the values with room for all images.
        buffers, guards, end: see :class:`fastres.runtime.native.plan.Plan`.
    """

    def __init__(self, images: int, slack: int, guarded: bool) -> None:
        self.images, self.slack, self.guarded = images, slack, guarded
        self.places: dict[Value, Buffer] = {}
        self.whole: set[Value] = set()
        self.buffers: list[Buffer] = []
        self.guards: list[tuple[int, int]] = []
        self.end = 0

    def allocate(
        self, phases: Sequence[Phase], ops: Sequence[Op], layouts: Mapping[Value, Layout]
    ) -> None:
        """Give every value a place."""
        last: dict[Value, int] = {}
        made: dict[Value, int] = {}
        for phase_index, phase in enumerate(phases):
            for i in phase.ops:
                op = ops[i]
                for value in _touched(op):
                    last[value] = i
                    if made.setdefault(value, phase_index) != phase_index:
                        self.whole.add(value)
        free: dict[tuple[Layout, bool], list[Buffer]] = {}
        for phase in phases:
            held: list[tuple[tuple[Layout, bool], Buffer]] = []  # whole: free behind the phase
            for i in phase.ops:
                op = ops[i]
                reused = self._in_place(op, i, last, layouts)
                made_here = None if op.output is None else op.output.root[0]
                if made_here is not None and made_here not in self.places:
                    whole = made_here in self.whole
                    key = (layouts[made_here], whole)
                    spare = free.get(key)
                    self.places[made_here] = (
                        spare.pop() if spare else self._buffer(key[0], whole, phase.images)
                    )
                for value in _touched(op):
                    if last[value] != i:
                        continue
                    if reused and value is op.residual:
                        continue
                    key = (layouts[value], value in self.whole)
                    if value in self.whole:
                        held.append((key, self.places[value]))
                    else:
                        free.setdefault(key, []).append(self.places[value])
            for key, buffer in held:
                free.setdefault(key, []).append(buffer)
            # Buffers of one sub-batch have the size of this phase's.
            free = {key: buffers for key, buffers in free.items() if key[1]}

    def _in_place(
        self, op: Op, index: int, last: Mapping[Value, int], layouts: Mapping[Value, Layout]
    ) -> bool:
        """Whether a sum goes where its residual is, which nobody reads later."""
        residual, output = op.residual, op.output
        if residual is None or output is None:
            return False
        others = [value for value in (op.input, op.factor) if value is not None]
        if any(value.root[0] is residual for value in others):  # itself, or a slice of it
            return False
        if residual.whole is not None or output.whole is not None or output in self.places:
            return False
        if last[residual] != index:
            return False
        if layouts[residual] != layouts[output]:
            return False
        if (residual in self.whole) != (output in self.whole):
            return False
        self.places[output] = self.places[residual]
        return True

    def reserve(self, size: int) -> int:
        """The offset of ``size`` bytes that are nobody else's; fenced on request."""
        start = self._start()
        if not self.guarded:
            self.end = start + size + max(self.slack, SLACK)
            return start
        # What is read beyond the end stays in front of the fence.
        self.end = start + math.ceil((size + max(self.slack, LINE)) / PAGE) * PAGE
        self.guards.append((self.end, PAGE))
        self.end += PAGE
        return start

    def _start(self) -> int:
        if not self.guarded:
            # Buffers a multiple of 4 KiB apart would compete for the same sets of a cache.
            return math.ceil(self.end / LINE) * LINE + len(self.buffers) % 8 * 5 * LINE
        fence = math.ceil(self.end / PAGE) * PAGE
        self.guards.append((fence, PAGE))
        return fence + PAGE

    def place(self, value: Value, layout: Layout) -> tuple[int, bool]:
        """Where a value of that layout begins, and whether there is room for all images."""
        root, first = value.root
        block = first // layout.lanes
        return self.places[root].offset + block * layout.plane, root in self.whole

    def _buffer(self, layout: Layout, whole: bool, images: int) -> Buffer:
        count = self.images if whole else images
        buffer = Buffer(layout, count, self.reserve(layout.image * count))
        self.buffers.append(buffer)
        return buffer


def _touched(op: Op) -> list[Value]:
    """The buffers that an operation reads and writes, by the values that they are for."""
    values = op.reads if op.output is None else (*op.reads, op.output)
    return list(dict.fromkeys(value.root[0] for value in values))
