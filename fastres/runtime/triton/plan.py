"""A plan: the steps of one call in order, and where every value lives. Data only; nothing runs.

Values that kernels write lie in the arena, at offsets from
:mod:`fastres.runtime.triton.memory_planner`. What torch computes lies in torch's memory and is
dropped after its last use. Time counts steps: inputs are copied in at 0, steps run at 1, 2, ...,
and results are copied out after the last one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fastres.kernels.launch.call import KernelCall
from fastres.report import Remark
from fastres.runtime.triton.memory_planner import Arena, Buffer, assign

Tensors: TypeAlias = Mapping[str, Any]
"""Values by name, as tensors."""


@dataclass(frozen=True)
class Value:
    """A tensor of known layout, in the arena unless it is a constant."""

    name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes from its first to its last element."""
        if 0 in self.shape:
            return 0
        last = sum((size - 1) * step for size, step in zip(self.shape, self.strides, strict=True))
        return (last + 1) * self.dtype.itemsize

    def within(self, memory: Tensor, offset: int) -> Tensor:
        """The tensor at a byte offset of ``memory``, or on "meta" if that is there."""
        if memory.is_meta:
            return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device="meta")
        part = memory[offset : offset + self.nbytes].view(self.dtype)
        return part.as_strided(self.shape, self.strides)


def dense(name: str, shape: Sequence[int], dtype: torch.dtype) -> Value:
    """A value without gaps: channels-last if it has four axes, else row-major."""
    sizes = tuple(int(size) for size in shape)
    if len(sizes) == 4:
        _, c, h, w = sizes
        return Value(name, sizes, (c * h * w, 1, c * w, c), dtype)
    return row_major(name, sizes, dtype)


def row_major(name: str, shape: Sequence[int], dtype: torch.dtype) -> Value:
    """A value without gaps, the last axis innermost."""
    sizes = tuple(int(size) for size in shape)
    strides = tuple(math.prod(sizes[axis + 1 :]) for axis in range(len(sizes)))
    return Value(name, sizes, strides, dtype)


@dataclass(frozen=True)
class Constant:
    """A weight as a kernel reads it.

    Attributes:
        name: what steps call it.
        sources: buffers of the module that it is made from.
        form: names what ``make`` does; equal forms of equal sources are kept once.
        nbytes: its size.
        make: from the buffers to the tensor; also on "meta".
    """

    name: str
    sources: tuple[str, ...]
    form: str
    nbytes: int
    make: Callable[..., Tensor] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Ref:
    """A value among the arguments of a torch step."""

    name: str


def fetch(tree: Any, tensors: Tensors) -> Any:
    """Arguments with the tensors in place of the references."""
    if isinstance(tree, Ref):
        return tensors[tree.name]
    if isinstance(tree, (tuple, list)):
        items = [fetch(item, tensors) for item in tree]
        return tuple(items) if isinstance(tree, tuple) else items
    if isinstance(tree, dict):
        return {name: fetch(item, tensors) for name, item in tree.items()}
    return tree


@dataclass(frozen=True)
class KernelStep:
    """Launches of our kernels on behalf of one operator.

    Attributes:
        module, operation: for profiles, the user's module and the operator.
        reads: activations, by name.
        writes: results, in the arena.
        scratch: memory that only this step uses, in the arena.
        zeroed: memory of its own, all zero before the step and after it.
        constants: weights.
        calls: launches for the tensors behind all of those names.
        overwrites: activations in whose memory the first result may lie, best first.
        tactic: the configuration, in words.
    """

    module: str
    operation: str
    reads: tuple[str, ...]
    writes: tuple[Value, ...]
    calls: Callable[[Tensors], list[KernelCall]] = field(repr=False)
    constants: tuple[Constant, ...] = ()
    scratch: tuple[Value, ...] = ()
    overwrites: tuple[str, ...] = ()
    tactic: str = ""
    zeroed: tuple[Value, ...] = ()


@dataclass(frozen=True)
class TorchStep:
    """One call of a torch function on behalf of one operator; its result lies in torch's memory.

    Attributes:
        args, kwargs: with a :class:`Ref` for each value.
        reads: the names behind the references.
        constants: weights behind the references.
        result: the result's name.
        may_alias: whether the result may be a view of an argument.
        synchronises: whether the host waits for its result, as for a size that depends on values.
        nbytes: of the result, from its shape.
        tactic: how it runs, in words.
    """

    module: str
    operation: str
    function: Callable[..., Any] = field(repr=False)
    args: tuple[Any, ...] = field(repr=False)
    kwargs: Mapping[str, Any] = field(repr=False)
    reads: tuple[str, ...]
    constants: tuple[Constant, ...]
    result: str
    may_alias: bool
    nbytes: int
    tactic: str = "torch"
    synchronises: bool = False


Step: TypeAlias = "KernelStep | TorchStep"


@dataclass(frozen=True)
class Stretch:
    """Steps that follow each other, by number, all of which can be recorded or none."""

    recordable: bool
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Result:
    """One result of the call.

    Attributes:
        kind: ``value`` of the plan, ``argument`` of the call, ``constant`` of the model, or
            ``plain`` (no tensor).
        source: the value's or constant's name, the argument's number, or the plain result itself.
        value: shape, strides and dtype that it is copied out as; None for a plain one. One with
            four axes is laid out like the model's input image instead, if there is one.
    """

    kind: str
    source: Any
    value: Value | None = None


@dataclass
class Plan:
    """Everything about one call that is known before memory is allocated.

    Attributes:
        inputs: (number of an argument, the value that it is copied into), in the value's dtype.
        image: number of the argument whose memory format results follow, None without an image.
        steps: in order.
        results: what the call returns.
        constants: weights that results consist of.
        remarks, notes: for the receipt.
        filled: those of the inputs that have more channels than their arguments, of zeros; they
            have memory of their own, since nothing else may be written there.
    """

    inputs: list[tuple[int, Value]]
    image: int | None
    steps: list[Step]
    results: list[Result]
    constants: list[Constant] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    filled: frozenset[str] = frozenset()

    @cached_property
    def values(self) -> dict[str, Value]:
        """All values in the arena, scratch included, and those with memory of their own."""
        found = {value.name: value for _, value in self.inputs}
        for step in self.steps:
            if isinstance(step, KernelStep):
                every = (*step.writes, *step.scratch, *step.zeroed)
                found.update({value.name: value for value in every})
        return found

    @cached_property
    def zeroed(self) -> frozenset[str]:
        """The values that have memory of their own, zero when it is allocated."""
        steps = (step for step in self.steps if isinstance(step, KernelStep))
        return self.filled.union(value.name for step in steps for value in step.zeroed)

    @cached_property
    def behind(self) -> dict[str, set[str]]:
        """The values whose memory each of torch's results may be."""
        found: dict[str, set[str]] = {}
        for step in self.steps:
            if isinstance(step, TorchStep):
                viewed = set(step.reads).union(*(found.get(n, set()) for n in step.reads))
                found[step.result] = viewed if step.may_alias else set()
        return found

    @cached_property
    def last_use(self) -> dict[str, int]:
        """When each value, of torch's too, is needed last: itself, or something that views it."""
        end = len(self.steps) + 1
        last: dict[str, int] = dict.fromkeys(self.values, 0)
        behind = self.behind
        for time, step in enumerate(self.steps, start=1):
            for name in step.reads:
                for each in (name, *behind.get(name, ())):
                    last[each] = time
            if isinstance(step, TorchStep):
                last.setdefault(step.result, time)
            else:
                for value in (*step.writes, *step.scratch):
                    last[value.name] = max(last[value.name], time)
        for result in self.results:
            if result.kind == "value":
                for each in (result.source, *behind.get(result.source, ())):
                    last[each] = end
        return last

    @cached_property
    def homes(self) -> dict[str, int]:
        """Number of the buffer in which each value lies; two share one where one overwrites."""
        copied = [value.name for _, value in self.inputs if value.name not in self.filled]
        homes = {name: number for number, name in enumerate(copied)}
        count = len(homes)
        for time, step in enumerate(self.steps, start=1):
            if isinstance(step, TorchStep):
                continue
            for index, value in enumerate((*step.writes, *step.scratch)):
                overwritten = self._overwritten(step, value, time, homes) if index == 0 else None
                if overwritten is None:
                    homes[value.name], count = count, count + 1
                else:
                    homes[value.name] = homes[overwritten]
        return homes

    def _overwritten(
        self, step: KernelStep, value: Value, time: int, homes: Mapping[str, int]
    ) -> str | None:
        """The argument in whose memory a step's first result lies, None for memory of its own."""
        for name in step.overwrites:
            old = self.values.get(name)  # torch's memory is not ours to write into
            if old is None or (old.shape, old.strides, old.dtype) != (
                value.shape,
                value.strides,
                value.dtype,
            ):
                continue
            # A kernel may read any pixel of its other arguments when it writes.
            readers = sum(name in (each, *self.behind.get(each, ())) for each in step.reads)
            if self.last_use[name] == time and readers == 1 and name not in self.filled:
                return name
        return None

    @cached_property
    def stretches(self) -> list[Stretch]:
        """The steps in order, those that can be recorded together in one stretch.

        What the host waits for cannot be recorded, and neither can what reads a result of that:
        it lies somewhere else in every call. What our kernels write has its place.
        """
        found: list[Stretch] = []
        moving: set[str] = set()
        for number, step in enumerate(self.steps):
            recordable = moving.isdisjoint(step.reads)
            if isinstance(step, TorchStep):
                recordable = recordable and not step.synchronises
                if not recordable:
                    moving.add(step.result)
            if found and found[-1].recordable == recordable:
                found[-1] = Stretch(recordable, (*found[-1].numbers, number))
            else:
                found.append(Stretch(recordable, (number,)))
        return found

    def waits_in(self, stretch: Stretch) -> list[str]:
        """``module: operator`` of the steps in it that the host waits for."""
        steps = (self.steps[number] for number in stretch.numbers)
        return [
            f"{step.module or '(model)'}: {step.operation}"
            for step in steps
            if isinstance(step, TorchStep) and step.synchronises
        ]

    def launches_nothing(self, stretch: Stretch) -> bool:
        """Whether its steps are views: a recording of them would be empty, which is an error."""
        steps = [self.steps[number] for number in stretch.numbers]
        return all(isinstance(step, TorchStep) and step.may_alias for step in steps)

    @cached_property
    def buffers(self) -> list[Buffer]:
        """Size and lifetime of each buffer, by its number."""
        born = {value.name: 0 for _, value in self.inputs}
        for time, step in enumerate(self.steps, start=1):
            if isinstance(step, KernelStep):
                born.update({value.name: time for value in (*step.writes, *step.scratch)})
        members: dict[int, list[str]] = {}
        for name, home in self.homes.items():
            members.setdefault(home, []).append(name)
        return [
            Buffer(
                max(self.values[name].nbytes for name in names),
                min(born[name] for name in names),
                max(self.last_use[name] for name in names),
            )
            for _, names in sorted(members.items())
        ]

    @cached_property
    def arena(self) -> Arena:
        """Where each buffer lies."""
        return assign(self.buffers)

    @property
    def peak_bytes(self) -> int:
        """The arena, and the most of torch's own results alive at once."""
        live = peak = 0
        freed: Counter[int] = Counter()
        for time, step in enumerate(self.steps, start=1):
            if isinstance(step, TorchStep):
                live += step.nbytes
                freed[self.last_use[step.result]] += step.nbytes
            peak = max(peak, live)
            live -= freed[time]
        return self.arena.nbytes + sum(self.values[name].nbytes for name in self.zeroed) + peak

    def bytes_moved(self, step: Step) -> int:
        """Bytes that a step reads and writes, each tensor once and whole."""
        torchs = {each.result: each.nbytes for each in self.steps if isinstance(each, TorchStep)}
        read = sum(
            self.values[name].nbytes if name in self.values else torchs[name]
            for name in set(step.reads)
        )
        read += sum(constant.nbytes for constant in step.constants)
        if isinstance(step, TorchStep):
            return 0 if step.may_alias else read + step.nbytes
        # Scratch is written by one launch and read by the next.
        scratch = sum(value.nbytes for value in step.scratch)
        return read + 2 * scratch + sum(value.nbytes for value in step.writes)

    def offset(self, value: Value) -> int:
        """Where a value lies in the arena, in bytes."""
        return self.arena.offsets[self.homes[value.name]]
