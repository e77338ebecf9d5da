"""A plan bound to memory: copies arguments in, replays its launches, copies results out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from fastres.report import Remark
from fastres.runtime.gpu.describe import described
from fastres.runtime.gpu.device import CannotRecord
from fastres.runtime.gpu.plan import KernelStep, Plan, Result, Step, fetch
from fastres.runtime.gpu.weights import Form, Weights
from fastres.runtime.gpu.workspace import Workspace
from fastres.runtime.lowering import is_channels_last


class GpuExecutable:
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
    """

    def __init__(
        self,
        plan: Plan,
        module: fx.GraphModule,
        weights: Weights,
        workspace: Workspace,
        engine: str,
        notes: Sequence[str] = (),
        batch: int | None = None,
    ) -> None:
        self.plan = plan
        self.engine = engine
        self.batch = batch
        self.peak_bytes = plan.peak_bytes
        self.remarks: list[Remark] = list(plan.remarks)
        self.apart: list[Remark] = []
        self.notes: list[str] = [*notes, *plan.notes]
        self._workspace = workspace
        self._device = workspace.device
        self._arena = workspace.arena(plan.arena.nbytes)
        # Everything that has a fixed address: the arena's values and the weights.
        self._tensors: dict[str, Any] = {
            name: value.within(self._arena.memory, plan.offset(value))
            for name, value in plan.values.items()
        }
        self._forms: list[Form] = []
        used = [constant for step in plan.steps for constant in step.constants]
        for constant in (*used, *plan.constants):
            if constant.name not in self._tensors:
                self._forms.append(weights.get(module, constant))
                self._tensors[constant.name] = self._forms[-1].tensor
        self._dead = _dead_after(plan)
        self._calls = {
            number: step.calls(self._tensors)
            for number, step in enumerate(plan.steps)
            if isinstance(step, KernelStep) and self._tensors.keys() >= set(step.reads)
        }
        for call in (call for calls in self._calls.values() for call in calls):
            if call.note:
                self.notes.append(call.name)
        self._results: dict[str, Any] = {}
        self._replay: Callable[[], None] | None = None
        self._timeline: tuple[list[Callable[[], None]], dict[str, Any]] | None = None

    @property
    def code(self) -> str:
        """The plan in words: arena, and steps with their launches, grids and configurations."""
        lines = [described(self.plan, self._calls, self._replay is not None)]
        lines += [f"  apart: {remark}" for remark in self.apart]
        return "\n".join(lines)

    def prepare(self, inputs: Sequence[Any]) -> None:
        """Run once on real arguments, and record what ran where the device records.

        Raises:
            torch.OutOfMemoryError: what torch computes does not fit.
        """
        if not self._device.records:
            return
        with self._workspace.lock, self._device.entered():
            self._copy_in(inputs)
            try:
                self._replay = self._device.record(self._program)
            except CannotRecord as error:
                self.notes.append(
                    f"its launches are made one by one, since they cannot be recorded: {error}"
                )

    def __call__(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Run on the flattened inputs; no output shares memory with an input or another output."""
        images = self._images(inputs)
        # Made in the caller's stream, which owns them; filled in ours, before it moves on.
        outputs = [self._empty(result, inputs, images) for result in self.plan.results]
        with self._workspace.lock, self._device.entered():
            self._copy_in(inputs)
            if self._replay is None or self._device.is_being_recorded():
                self._program()  # a replay cannot be part of a recording, its launches can
            else:
                self._replay()
            self._copy_out(inputs, outputs, images, self._results)
        return outputs

    def timed(self, inputs: Sequence[Any]) -> list[tuple[str, str, int]]:
        """Run step by step: (module, operation, nanoseconds of the device) per step, in order."""
        images = self._images(inputs)
        outputs = [self._empty(result, inputs, images) for result in self.plan.results]
        device = self._device
        with self._workspace.lock, device.entered():
            times = [("", "copy in", device.time(partial(self._copy_in, inputs)))]
            runs, tensors = self._timeline or self._steps_alone()
            if device.records:
                self._timeline = runs, tensors
            for step, run in zip(self.plan.steps, runs, strict=True):
                times.append((step.module, step.operation, device.time(run)))
            copy_out = partial(self._copy_out, inputs, outputs, images, tensors)
            times.append(("", "copy out", device.time(copy_out)))
        return times

    def _program(self) -> None:
        """All steps, in the device's current order of work."""
        tensors = dict(self._tensors)
        for number, step in enumerate(self.plan.steps):
            self._run(number, step, tensors)
            for name in self._dead[number]:
                tensors.pop(name, None)
        sources = [r.source for r in self.plan.results if r.kind in ("value", "constant")]
        self._results = {name: tensors[name] for name in sources}

    def _run(self, number: int, step: Step, tensors: dict[str, Any]) -> None:
        if isinstance(step, KernelStep):
            calls = self._calls.get(number)
            self._device.launch(step.calls(tensors) if calls is None else calls)
        else:
            args, kwargs = fetch(step.args, tensors), fetch(step.kwargs, tensors)
            tensors[step.result] = step.function(*args, **kwargs)

    def _steps_alone(self) -> tuple[list[Callable[[], None]], dict[str, Any]]:
        """Each step, as a recording where that is possible: then the host costs nothing.

        With them, the tensors that they read and write.
        """
        tensors = dict(self._tensors)
        timeline: list[Callable[[], None]] = []
        for number, step in enumerate(self.plan.steps):
            run = partial(self._run, number, step, tensors)
            try:
                timeline.append(self._device.record(run) if self._device.records else run)
            except CannotRecord:
                timeline.append(run)
        return timeline, tensors

    def _images(self, inputs: Sequence[Any]) -> int | None:
        """Images of this call, where they may be fewer than the plan's."""
        if self.batch is None:
            return None
        return next(int(v.shape[0]) for v in inputs if isinstance(v, Tensor) and v.dim() == 4)

    def _copy_in(self, inputs: Sequence[Any]) -> None:
        """By torch, as copying out: :mod:`fastres.kernels.layout_launch` says why."""
        for number, value in self.plan.inputs:
            source, target = inputs[number], self._tensors[value.name]
            if source.dim() == 0 or source.shape[0] == target.shape[0]:
                self._device.copy(target, source)
            else:  # a smaller batch; what lies behind it is computed along and not looked at
                self._device.copy(target[: source.shape[0]], source)

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
