"""A plan bound to memory: copies arguments in, replays its launches, copies results out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from fastres.kernels.launch.call import KernelCall
from fastres.report import Remark
from fastres.runtime.lowering import is_channels_last
from fastres.runtime.triton.describe import described
from fastres.runtime.triton.device import CannotRecord
from fastres.runtime.triton.packed_weights import PackedWeight, PackedWeights
from fastres.runtime.triton.plan import KernelStep, Plan, Result, Step, Stretch, Value, fetch
from fastres.runtime.triton.workspace import Workspace


@dataclass(frozen=True)
class Bound:
    """A plan on memory.

    Attributes:
        tensors: everything that has a fixed address: the arena's values and the weights.
        calls: launches by the number of their step, as far as they are known beforehand.
    """

    tensors: Mapping[str, Any]
    calls: Mapping[int, Sequence[KernelCall]]


@dataclass(frozen=True)
class _Part:
    """A stretch of the plan, ready to be run again.

    Attributes:
        replay: its recording; None where its steps are run anew.
        made: what torch made in it and is needed after it, where the recording puts it.
    """

    stretch: Stretch
    replay: Callable[[], None] | None
    made: Mapping[str, Any]


_ONE_BY_ONE = "its launches are made one by one"


def _nothing() -> None:
    pass


class TritonExecutable:
    """What the GPU engine builds; see :class:`fastres.runtime.executable.Runnable`.

    Its attribute ``apart`` lists blocks that were not fused into one kernel, and why.

    Args:
        plan: what to do.
        module: owns the plan's constants.
        weights: their forms.
        workspace: memory and device.
        engine: the engine's name.
        notes: for the receipt, before the plan's own.
        batch: images in the plan's tensors, where a call may have fewer; None where it may not.
        chained: whether each launch may start before the one in front has ended.
    """

    def __init__(
        self,
        plan: Plan,
        module: fx.GraphModule,
        weights: PackedWeights,
        workspace: Workspace,
        engine: str,
        notes: Sequence[str] = (),
        batch: int | None = None,
        chained: bool = False,
    ) -> None:
        self.plan = plan
        self.engine = engine
        self.batch = batch
        self.peak_bytes = plan.peak_bytes
        self.remarks: list[Remark] = list(plan.remarks)
        self.unfused: list[Remark] = []
        self.notes: list[str] = [*notes, *plan.notes]
        self._chained = chained
        self._workspace = workspace
        self._device = workspace.device
        self._forms: dict[str, PackedWeight] = {}
        used = [constant for step in plan.steps for constant in step.constants]
        for constant in (*used, *plan.constants):
            if constant.name not in self._forms:
                self._forms[constant.name] = weights.get(module, constant)
        self._dead = _dead_after(plan)
        self._arena = workspace.arena(plan.arena.nbytes)
        self._bound = self._bind(self._arena.memory)
        for call in (call for calls in self._bound.calls.values() for call in calls):
            if call.note:
                self.notes.append(call.name)
        self._parts: list[_Part] | None = None
        self._recorded_whole: tuple[list[Callable[[], None]], Mapping[str, Any]] | None = None
        self._timeline: tuple[list[Callable[[], None]], dict[str, Any]] | None = None

    @property
    def code(self) -> str:
        """The plan in words: arena, and steps with their launches, grids and configurations."""
        lines = [described(self.plan, self._bound.calls, self._recorded)]
        lines += [f"  not fused: {remark}" for remark in self.unfused]
        return "\n".join(lines)

    @property
    def launches(self) -> list[KernelCall]:
        """Those that are known beforehand, in order."""
        return [call for calls in self._bound.calls.values() for call in calls]

    def prepare(self, inputs: Sequence[Any]) -> None:
        """Run once on real arguments, and record what ran where the device records.

        Raises:
            torch.OutOfMemoryError: what torch computes does not fit.
        """
        if not self._device.records:
            return
        with self._workspace.lock, self._device.entered():
            self._copy_in(inputs, self._bound)
            self._parts = self._record_parts()
            if self._recorded:
                tensors = dict(self._bound.tensors)
                for part in self._parts:
                    tensors.update(part.made)
                replays = [part.replay for part in self._parts if part.replay is not None]
                self._recorded_whole = replays, tensors

    def __call__(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Run on the flattened inputs; no output shares memory with an input or another output."""
        images = self._images(inputs)
        # Made in the caller's stream, which owns them; filled in ours, before it moves on.
        outputs = [self._empty(result, inputs, images) for result in self.plan.results]
        with self._workspace.lock, self._device.entered():
            if self._device.is_being_recorded():
                bound = self._for_a_recording()
                self._copy_in(inputs, bound)
                results = self._program(bound)
            else:
                self._copy_in(inputs, self._bound)
                parts = self._parts
                results = self._program(self._bound) if parts is None else self._replay(parts)
            self._copy_out(inputs, outputs, images, results)
        return outputs

    def timed(self, inputs: Sequence[Any]) -> list[tuple[str, str, int]]:
        """Run step by step: (module, operation, nanoseconds of the device) per step, in order."""
        images = self._images(inputs)
        outputs = [self._empty(result, inputs, images) for result in self.plan.results]
        device = self._device
        with self._workspace.lock, device.entered():
            copy_in = partial(self._copy_in, inputs, self._bound)
            times = [("", "copy in", device.time(copy_in))]
            runs, tensors = self._timeline or self._steps_alone()
            if device.records:
                self._timeline = runs, tensors
            for step, run in zip(self.plan.steps, runs, strict=True):
                times.append((step.module, step.operation, device.time(run)))
            copy_out = partial(self._copy_out, inputs, outputs, images, tensors)
            times.append(("", "copy out", device.time(copy_out)))
        return times

    def _bind(self, memory: Tensor) -> Bound:
        """The plan on an arena's memory, and on new memory where zeros are to stay."""
        plan = self.plan
        tensors: dict[str, Any] = {
            name: self._zeros(value)
            if name in plan.zeroed
            else value.within(memory, plan.offset(value))
            for name, value in plan.values.items()
        }
        tensors |= {name: form.tensor for name, form in self._forms.items()}
        calls = {
            number: self._calls(step, tensors)
            for number, step in enumerate(plan.steps)
            if isinstance(step, KernelStep) and tensors.keys() >= set(step.reads)
        }
        return Bound(tensors, calls)

    def _zeros(self, value: Value) -> Tensor:
        """Memory of its own for a value, all zero."""
        return value.within(self._device.allocate(value.nbytes), 0).zero_()

    def _calls(self, step: KernelStep, tensors: Mapping[str, Any]) -> Sequence[KernelCall]:
        calls = step.calls(tensors)
        return [replace(call, chained=True) for call in calls] if self._chained else calls

    def _for_a_recording(self) -> Bound:
        """The plan on memory that the caller's recording owns, which may outlive this executable.

        A replay cannot be part of a recording, its launches can. What torch allocates while the
        caller records lies in his graph's memory and goes with it, so his graph shares nothing with
        other calls; weights are kept for as long as the model is.
        """
        self._workspace.keep(self._forms.values())
        return self._bind(self._device.allocate(self.plan.arena.nbytes))

    @property
    def _recorded(self) -> bool:
        return self._parts is not None and all(part.replay is not None for part in self._parts)

    def _record_parts(self) -> list[_Part]:
        """Run every stretch once, and record those that can be."""
        parts: list[_Part] = []
        tensors = dict(self._bound.tensors)
        for stretch in self.plan.stretches:
            after = [tensors]
            run = partial(self._run_stretch, stretch, tensors, after)
            replay: Callable[[], None] | None = None
            if self.plan.launches_nothing(stretch):
                replay = _nothing
            elif stretch.recordable:
                replay = self._record(run)
            else:
                waits = ", ".join(self.plan.waits_in(stretch))
                self.notes += [f"the host waits for {waits}"] if waits else []
            if replay is None or replay is _nothing:
                run()
            made = {name: after[-1][name] for name in after[-1].keys() - tensors.keys()}
            parts.append(_Part(stretch, replay, made))
            tensors = after[-1]
        return parts

    def _record(self, run: Callable[[], None]) -> Callable[[], None] | None:
        try:
            replay = self._device.record(run)
        except CannotRecord as error:
            self.notes.append(f"{_ONE_BY_ONE}, since they cannot be recorded: {error}")
            return None
        replay()  # what is recorded has not been done, and the next stretch reads it
        return replay

    def _replay(self, parts: Sequence[_Part]) -> Mapping[str, Any]:
        """The parts in order; the tensors of the results."""
        if self._recorded_whole is not None:
            replays, made = self._recorded_whole
            for replay in replays:
                replay()
            return made
        tensors = dict(self._bound.tensors)
        for part in parts:
            if part.replay is None:
                after = [tensors]
                self._run_stretch(part.stretch, tensors, after)
                tensors = after[-1]
            else:
                part.replay()
                tensors.update(part.made)
        return tensors

    def _run_stretch(
        self, stretch: Stretch, before: Mapping[str, Any], after: list[dict[str, Any]]
    ) -> None:
        """Its steps, from what was there before; what is there then is added to ``after``."""
        tensors = dict(before)
        for number in stretch.numbers:
            self._run(number, self.plan.steps[number], tensors, self._bound)
            for name in self._dead[number]:
                tensors.pop(name, None)
        after.append(tensors)

    def _program(self, bound: Bound) -> Mapping[str, Any]:
        """All steps, in the device's current order of work; the tensors of the results."""
        tensors = dict(bound.tensors)
        for number, step in enumerate(self.plan.steps):
            self._run(number, step, tensors, bound)
            for name in self._dead[number]:
                tensors.pop(name, None)
        return tensors

    def _run(self, number: int, step: Step, tensors: dict[str, Any], bound: Bound) -> None:
        if isinstance(step, KernelStep):
            calls = bound.calls.get(number)
            self._device.launch(self._calls(step, tensors) if calls is None else calls)
        else:
            args, kwargs = fetch(step.args, tensors), fetch(step.kwargs, tensors)
            tensors[step.result] = step.function(*args, **kwargs)

    def _steps_alone(self) -> tuple[list[Callable[[], None]], dict[str, Any]]:
        """Each step, as a recording where that is possible: then the host costs nothing.

        With them, the tensors that they read and write.
        """
        tensors = dict(self._bound.tensors)
        alone = dict.fromkeys(range(len(self.plan.steps)), False)
        for stretch in self.plan.stretches:
            for number in stretch.numbers:
                view = self.plan.launches_nothing(Stretch(True, (number,)))
                alone[number] = stretch.recordable and not view
        timeline: list[Callable[[], None]] = []
        for number, step in enumerate(self.plan.steps):
            run = partial(self._run, number, step, tensors, self._bound)
            if not self._device.records or not alone[number]:
                run()
                timeline.append(run)
                continue
            try:
                timeline.append(self._device.record(run))
                timeline[-1]()  # the next step may be one that runs now, on what this one made
            except CannotRecord:
                timeline.append(run)
        return timeline, tensors

    def _images(self, inputs: Sequence[Any]) -> int | None:
        """Images of this call, where they may be fewer than the plan's."""
        if self.batch is None:
            return None
        return next(int(v.shape[0]) for v in inputs if isinstance(v, Tensor) and v.dim() == 4)

    def _copy_in(self, inputs: Sequence[Any], bound: Bound) -> None:
        """By torch, as copying out: :mod:`fastres.kernels.launch.layout` says why."""
        for number, value in self.plan.inputs:
            source, target = inputs[number], bound.tensors[value.name]
            if source.shape != target.shape:
                # A smaller batch, behind which anything may lie: it is computed along and not
                # looked at. Or fewer channels, behind which zeros lie.
                target = target[tuple(map(slice, source.shape))]
            self._device.copy(target, source)

    def _copy_out(
        self,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        images: int | None,
        tensors: Mapping[str, Any],
    ) -> None:
        for result, output in zip(self.plan.results, outputs, strict=True):
            if result.kind == "plain":
                continue
            if result.kind == "argument":
                source = inputs[result.source]
            else:
                source = tensors[result.source]
                if images is not None and result.kind == "value":
                    source = source[:images]
            self._device.copy(output, source)

    def _empty(self, result: Result, inputs: Sequence[Any], images: int | None) -> Any:
        """Fresh memory for a result; a plain one as it is."""
        if result.value is None:
            return result.source
        shape, strides, dtype = result.value.shape, result.value.strides, result.value.dtype
        if images is not None and result.kind != "constant":
            shape = (images, *shape[1:])
        device = self._arena.memory.device
        if len(shape) == 4 and self.plan.image is not None:
            # Code behind the model may call `view`, which needs the layout that torch gives.
            last = is_channels_last(inputs[self.plan.image])
            layout = torch.channels_last if last else torch.contiguous_format
            return torch.empty(shape, dtype=dtype, device=device, memory_format=layout)
        return torch.empty_strided(shape, strides, dtype=dtype, device=device)


def _dead_after(plan: Plan) -> list[list[str]]:
    """For each step, torch's results that nothing needs after it."""
    dead: list[list[str]] = [[] for _ in plan.steps]
    for step in plan.steps:
        if not isinstance(step, KernelStep):
            last = plan.last_use[step.result]
            if last <= len(plan.steps):
                dead[last - 1].append(step.result)
    return dead
