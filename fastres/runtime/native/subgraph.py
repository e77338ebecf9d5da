"""A subgraph of the fused graph as one call: plans, and the library's run on tensors."""

from __future__ import annotations

import ctypes
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fastres.dtypes import BY_DTYPE
from fastres.errors import FastresError, InputError, OutOfMemory
from fastres.runtime.native.abi import COp, COutside
from fastres.runtime.native.describe import described
from fastres.runtime.native.library import Library
from fastres.runtime.native.operations import LoweredSubgraph, Op
from fastres.runtime.native.packed_weights import PackedWeights
from fastres.runtime.native.plan import Plan
from fastres.runtime.native.plan_builder import PlanBuilder
from fastres.runtime.nonfinite import NonFinite
from fastres.system.target import available_memory

UNUSUAL = 3
_FAILURES = {1: "the system refused memory", 2: "the system refused a thread"}


class CompiledPlan:
    """A plan in the library; freed with this object."""

    def __init__(self, library: Library, plan: Plan, outside: Sequence[torch.dtype]) -> None:
        self.plan = plan
        self._set_outside(outside)
        guards = (ctypes.c_int64 * (2 * len(plan.guards)))(
            *(number for pair in plan.guards for number in pair)
        )
        phases = plan.c_phases()
        self.handle = library.plan_create(
            plan.ops, len(plan.ops), phases, len(phases), plan.images, plan.arena_bytes, guards,
            len(plan.guards),
        )  # fmt: skip
        if not self.handle:
            raise OutOfMemory("the system refused memory for a plan of the native engine")
        self._library = library
        self._destroy = weakref.finalize(self, library.plan_destroy, self.handle)
        self._destroy.atexit = False  # a thread may still run it while the process ends
        for buffer in plan.buffers:
            fill = buffer.layout.fill
            if fill and library.plan_fill(self.handle, buffer.offset, buffer.bytes, fill):
                raise OutOfMemory("the system refused memory for a plan of the native engine")
        wrong = library.plan_check(self.handle)
        if wrong >= 0:
            raise FastresError(
                f"operation {wrong} of a plan of the native engine would reach outside its memory, "
                "which is a defect of fastres: please report the model, and use engine='onednn' "
                "until it is mended"
            )

    def release(self) -> None:
        """From now on, give memory back in a run as soon as nothing reads it any more.

        Raises:
            OutOfMemory: the system refused memory for the list.
        """
        for each in self.plan.releases:
            if self._library.plan_release(self.handle, each.operation, each.offset, each.bytes):
                raise OutOfMemory("the system refused memory for a plan of the native engine")

    def _set_outside(self, dtypes: Sequence[torch.dtype]) -> None:
        ops: Sequence[COp] = self.plan.ops
        for op, dtype in zip(ops, dtypes, strict=True):
            op.outside_dtype = BY_DTYPE[dtype].native_code


class NativeSubgraph:
    """A subgraph, compiled for one set of shapes; safe for concurrent calls.

    Attributes:
        returns_fresh: its results are new memory, for :func:`fastres.ir.graph.aliases`.
        checks_itself: for NaN and infinity, as :mod:`fastres.runtime.nonfinite` does.
        arena_bytes: what one call needs at once beside its outputs.
    """

    returns_fresh = True
    checks_itself = True

    def __init__(
        self,
        lowered: LoweredSubgraph,
        sources: Sequence[torch.dtype],
        facts: Mapping[fx.Node, Any],
        library: Library,
        packed: PackedWeights,
        isa: str | Mapping[torch.dtype, str],
        threads: int,
        guarded: bool = False,
    ) -> None:
        self.__name__ = self.__qualname__ = "native"
        self.lowered = lowered
        self._library = library
        self._threads = threads
        self._shapes = [tuple(facts[node].shape) for node in lowered.outputs]
        batch = facts[lowered.inputs[0]].shape[0]
        each, rest = divmod(batch, threads) if threads > 1 else (0, batch)
        self.plans: list[CompiledPlan | None] = []
        for images, team in ((each, 1), (rest, threads)):
            if not images:
                self.plans.append(None)
                continue
            plan = PlanBuilder(lowered, images, team, isa, packed, threads // team, guarded).plan()
            outside = [
                sources[op.outside]
                if op.kind == "import"
                else lowered.output_dtypes[op.outside]
                if op.kind == "export"
                else op.output.layout.dtype
                if op.kind == "convert" and op.output is not None
                else torch.float32
                for op in plan.operations
            ]
            self.plans.append(CompiledPlan(library, plan, outside))
        self._handles = [None if plan is None else plan.handle for plan in self.plans]
        self.arena_bytes = self._of_each(lambda plan: plan.arena_bytes)
        if self.arena_bytes > library.kept:  # not kept between calls: no page is faulted in twice
            self.arena_bytes = self._of_each(lambda plan: plan.live_bytes)
            for compiled in self.plans:
                if compiled is not None:
                    compiled.release()
        self._refuse_if_too_large()

    def _of_each(self, size: Callable[[Plan], int]) -> int:
        alone, together = (0 if each is None else size(each.plan) for each in self.plans)
        return alone * self._threads + together

    def _refuse_if_too_large(self) -> None:
        free = available_memory()
        if self.arena_bytes > free and self._library.let_go():
            free = available_memory()
        if self.arena_bytes > free:
            raise OutOfMemory(
                f"this batch needs {self.arena_bytes / 2**30:.1f} GiB for activations, "
                f"{free / 2**30:.1f} GiB are available: use a smaller batch or image"
            )

    def shape_formula(self, *inputs: Tensor) -> Any:
        """What a call would return, without memory; for :mod:`fastres.ir.shapes`."""
        results = tuple(
            torch.empty_strided(shape, _strides(shape), dtype=dtype, device=inputs[0].device)
            for shape, dtype in zip(self._shapes, self.lowered.output_dtypes, strict=True)
        )
        return results[0] if len(results) == 1 else results

    def __call__(self, *inputs: Tensor) -> Any:
        """The outputs, images channels-last; one tensor, or a tuple of several.

        Raises:
            NonFinite: a number that goes in or comes out is NaN, infinite or huge.
        """
        results = self._run(inputs, None)
        return results[0] if len(results) == 1 else results

    def describe(self) -> list[str]:
        """Its plans in words, line by line."""
        alone, together = self.plans
        lines = (
            []
            if alone is None
            else described(alone.plan, f"each of {self._threads} threads by itself")
        )
        if together is not None:
            lines += described(together.plan, f"{self._threads} threads together")
        return lines

    def timed(self, *inputs: Tensor) -> tuple[Any, list[tuple[str, str, int]]]:
        """The same with (module, operation, nanoseconds) for each operation.

        Where threads work on images of their own, the times are those of the first.
        """
        compiled = next(plan for plan in self.plans if plan is not None)
        operations = compiled.plan.operations
        times = (ctypes.c_int64 * len(operations))()
        began = time.perf_counter_ns()
        results = self._run(inputs, times)
        rest = time.perf_counter_ns() - began - sum(times)
        rows = [("", "start and wait for threads", max(rest, 0))]
        rows += [
            (str(op.node.meta.get("module") or ""), _operation(op), took)
            for op, took in zip(operations, times, strict=True)
        ]
        return (results[0] if len(results) == 1 else results), rows

    def _run(self, inputs: Sequence[Tensor], times: Any) -> tuple[Tensor, ...]:
        outputs = tuple(
            torch.empty_strided(shape, _strides(shape), dtype=dtype, device="cpu")
            for shape, dtype in zip(self._shapes, self.lowered.output_dtypes, strict=True)
        )
        alone, together = self._handles
        status = self._library.run(
            alone, together, self._threads,
            (COutside * len(inputs))(*map(_outside, inputs)), len(inputs),
            (COutside * len(outputs))(*map(_outside, outputs)), len(outputs), times,
        )  # fmt: skip
        if status == UNUSUAL:
            raise NonFinite
        if status:
            raise MemoryError(f"{_FAILURES[status]} for a call of the native engine")
        return outputs


def _operation(op: Op) -> str:
    """Its name in profiles: the fused graph's operator."""
    if op.kind in ("import", "export"):
        return "into lines" if op.kind == "import" else "out of lines"
    return str(op.node.target).removesuffix(".default")


def _outside(tensor: Tensor) -> COutside:
    address = tensor.data_ptr()
    if not address:  # what comes in was checked, and torch's own results lie in memory
        raise InputError(
            f"a {type(tensor).__name__} {list(tensor.shape)} without memory reached the native "
            "engine: call the optimised model with plain tensors"
        )
    strides = tensor.stride()
    if tensor.dim() == 3:  # a vector for each image: [N, 1, C] or [N, C, 1]
        strides = (strides[0], strides[1 if tensor.shape[2] == 1 else 2])
    strides = (*strides, *(0,) * (4 - len(strides)))
    return COutside(address, strides[0] * tensor.element_size(), (ctypes.c_int64 * 4)(*strides))


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 2:
        return (shape[1], 1)
    if len(shape) == 3:
        return (shape[1] * shape[2], shape[2], 1)
    _, c, h, w = shape
    return (c * h * w, 1, c * w, c)
