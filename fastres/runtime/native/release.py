"""Memory that a run can give back before it ends.

Buffers of different layouts never share memory (:mod:`fastres.runtime.native.memory_planner`), so
that a plan's arena is larger than what is in use at once. Where arenas are not kept between calls,
pages are given back behind the last operation that touches them; the system has them zeroed when
they are next touched, borders included; a plan whose borders hold other bytes has them filled again
before its next run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from fastres.runtime.native.memory_planner import PAGE
from fastres.runtime.native.operations import Op, Value
from fastres.runtime.native.plan import Buffer, Phase, Release

LEAST = 1 << 20
"""Bytes; giving back less is not worth a call of the system."""


def releases(
    buffers: Sequence[Buffer],
    phases: Sequence[Phase],
    ops: Sequence[Op],
    places: Mapping[Value, Buffer],
    images: int,
) -> tuple[list[Release], int]:
    """What can be given back, and the bytes of it that are in use at once at most."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for index, op in enumerate(ops):
        for value in (*op.reads, *(() if op.output is None else (op.output,))):
            place = id(places[value.root[0]])
            first.setdefault(place, index)
            last[place] = index
    found = []
    changes = [0] * (len(ops) + 1)
    for buffer in buffers:
        start = math.ceil(buffer.offset / PAGE) * PAGE
        size = (buffer.offset + buffer.bytes) // PAGE * PAGE - start
        if size < LEAST:
            continue
        begin, end = first[id(buffer)], last[id(buffer)]
        found.append(Release(end, start, size))
        for phase in phases:  # in a phase of several rounds, what one gave back the next would need
            if phase.images < images:
                begin = phase.first if begin in phase.ops else begin
                end = phase.end - 1 if end in phase.ops else end
        changes[begin] += size
        changes[end + 1] -= size
    return found, max(itertools.accumulate(changes), default=0)
