"""A subgraph's memory, poisoned before a run and examined after it.

A plan relies on zeros in the borders of its buffers and in lanes without a channel; of uint8 on the
borders alone, which hold what stands for zero. Whatever else its memory holds, it must be written
before it is read; and nothing outside the buffers is written.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastres.runtime.native.abi import KINDS, OUTPUT, COp, COutside, CPhase, CTensor
from fastres.runtime.native.layout import LINE, Layout
from fastres.runtime.native.plan import Plan
from fastres.runtime.native.subgraph import UNUSUAL, NativeSubgraph, _outside, _strides

Bytes = NDArray[np.uint8]
Mask = NDArray[np.bool_]

POISON = 0xFF
"""Bytes of which float32 and bfloat16 numbers are NaN."""


@dataclass
class Places:
    """What each byte of a plan's memory is for.

    Attributes:
        zeros: borders, and lanes without a channel that have to be zero.
        wanted: what every byte holds that is one of them.
        strangers: of no buffer, and of no thread's scratch memory.
    """

    zeros: Mask
    wanted: Bytes
    strangers: Mask


def places(plan: Plan, threads: int) -> Places:
    """The places of a plan that as many threads run together."""
    zeros, strangers = np.zeros(plan.arena_bytes, np.bool_), np.ones(plan.arena_bytes, np.bool_)
    wanted = np.zeros(plan.arena_bytes, np.uint8)
    for buffer in plan.buffers:
        at = slice(buffer.offset, buffer.offset + buffer.bytes)
        assert strangers[at].all(), "two buffers share memory"
        strangers[at] = False
        zeros[at] = np.tile(_zeros_of_image(buffer.layout), buffer.images)
        wanted[at] = buffer.layout.fill
    for op in plan.ops:
        scratch = slice(op.scratch_offset, op.scratch_offset + op.scratch_bytes * threads)
        assert strangers[scratch].all(), "scratch memory lies in a buffer"
    for op in plan.ops:
        strangers[op.scratch_offset : op.scratch_offset + op.scratch_bytes * threads] = False
    return Places(zeros, wanted, strangers)


def _zeros_of_image(layout: Layout) -> Mask:
    mask = np.ones((layout.blocks, layout.plane), np.bool_)
    is_uint8 = layout.dtype == torch.uint8
    top, left, bottom, right = layout.border
    rows, columns = top + layout.height + bottom, left + layout.width + right
    for block in range(layout.blocks):
        pixels = mask[block, : rows * layout.row].reshape(rows, columns, layout.pixel)
        lanes = layout.channels if layout.small else layout.channels - block * layout.lanes
        used = min(lanes, layout.lanes, layout.pixel // layout.dtype.itemsize)
        inside = pixels[top : top + layout.height, left : left + layout.width]
        inside[..., : layout.pixel if is_uint8 else used * layout.dtype.itemsize] = False
    return mask.reshape(-1)


def ranges(mask: Mask) -> list[tuple[int, int]]:
    """(first, count) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.view(np.int8), [0]])))
    return [(int(a), int(b - a)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


class Examined:
    """A subgraph with one plan, whose memory can be poisoned and read.

    Args:
        threads: as the subgraph was made for; its batch must be smaller, if there are several.
    """

    def __init__(self, subgraph: NativeSubgraph, threads: int) -> None:
        alone, compiled = subgraph.plans
        assert alone is None and compiled is not None, "threads have images of their own"
        self._subgraph, self._threads, self._library = subgraph, threads, subgraph._library
        self.plan = plan = compiled.plan
        assert not plan.guards
        self.places = places(plan, threads)
        lines = math.ceil(plan.arena_bytes / LINE)
        spy = COp(kind=KINDS.index("export"), isa=plan.ops[0].isa, images=plan.images)
        spy.input = CTensor(pixel=LINE, channels=16, height=1, width=lines)
        spy.output = CTensor(
            space=OUTPUT, index=len(subgraph.lowered.outputs), whole=1, channels=16, height=1,
            width=lines,
        )  # fmt: skip
        ops = (COp * (len(plan.ops) + 1))(*plan.ops, spy)
        phases = [*plan.c_phases(), CPhase(len(plan.ops), 1, plan.images)]
        self._handle = self._library.plan_create(
            ops, len(ops), (CPhase * len(phases))(*phases), len(phases), plan.images,
            plan.arena_bytes, None, 0,
        )  # fmt: skip
        assert self._handle
        for buffer in plan.buffers:
            fill = (buffer.offset, buffer.bytes, buffer.layout.fill)
            assert self._library.plan_fill(self._handle, *fill) == 0
        self._memory = torch.zeros(lines, 16)

    def close(self) -> None:
        """Free the plan."""
        self._library.plan_destroy(self._handle)

    def poison(self, byte: int = POISON) -> None:
        """Fill everything that is not zero by contract."""
        pairs = ranges(~self.places.zeros)
        numbers = (ctypes.c_int64 * (2 * len(pairs)))(*(n for pair in pairs for n in pair))
        assert self._library.plan_poison(self._handle, numbers, len(pairs), byte) == 0

    def run(self, inputs: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], Bytes]:
        """The outputs, and the memory behind the last operation."""
        subgraph = self._subgraph
        outputs = tuple(
            torch.empty_strided(shape, _strides(shape), dtype=dtype)
            for shape, dtype in zip(subgraph._shapes, subgraph.lowered.output_dtypes, strict=True)
        )
        strides = (ctypes.c_int64 * 4)(0, 1, 0, 16)
        dump = COutside(self._memory.data_ptr(), 0, strides)
        to: list[Any] = [*map(_outside, outputs), dump]
        status = self._library.run(
            None, self._handle, self._threads,
            (COutside * len(inputs))(*map(_outside, inputs)), len(inputs),
            (COutside * len(to))(*to), len(to), None,
        )  # fmt: skip
        assert status in (0, UNUSUAL)  # the memory that is copied out holds NaN
        memory = self._memory.numpy().view(np.uint8).reshape(-1)[: self.plan.arena_bytes]
        return outputs, memory.copy()

    def _keeps(self, memory: Bytes) -> bool:
        zeros = self.places.zeros
        return bool((memory[zeros] == self.places.wanted[zeros]).all())

    def check(self, inputs: Sequence[Tensor]) -> None:
        """Run on zeroed and on poisoned memory, twice each.

        Raises:
            AssertionError: results differ; a border or a lane without a channel does not hold what
                it should; a byte of nobody's was written.
        """
        clean, memory = self.run(inputs)
        assert self._keeps(memory), "written: a border or a lane without a channel"
        assert not memory[self.places.strangers].any(), "written: what belongs to no buffer"
        for byte in (POISON, 0x7F):
            self.poison(byte)
            for _ in range(2):
                results, memory = self.run(inputs)
                for one, other in zip(results, clean, strict=True):
                    assert torch.equal(one, other), "the result depends on what memory held"
                assert self._keeps(memory), "written: a border or an empty lane"
                assert (memory[self.places.strangers] == byte).all(), "written: nobody's memory"
