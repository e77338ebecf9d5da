"""A device layer that checks the engine that uses it, and plans whose kernels are Python functions.

It executes on CPU memory like a GPU would: what is recorded runs again on the same addresses when
replayed, without any of the engine's code. It fails when used out of order: a launch, a copy or a
recording outside of ``entered()``, or two calls in it at once.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastres.kernels.launch.call import KernelCall
from fastres.runtime.triton.device import CannotCompile, CannotRecord
from fastres.runtime.triton.memory_planner import ALIGNMENT
from fastres.runtime.triton.plan import (
    Constant,
    KernelStep,
    Plan,
    Ref,
    Result,
    TorchStep,
    Value,
    dense,
)


class FakeDevice:
    """See the top of this file.

    Attributes:
        log: what was asked for, in order.
        refuses: raised by the next recording, after the program ran once.
        memory: bytes that can still be allocated.
        nanoseconds: answers of ``time``, by the launches in the timed work; else their number.
    """

    def __init__(self, records: bool = True) -> None:
        self.records = records
        self.log: list[str] = []
        self.refuses: Exception | None = None
        self.memory = 2**30
        self.nanoseconds: Callable[[list[KernelCall]], int] = len
        self.caller_records = False
        self.recorded = 0  # launches in the last recording
        self._inside = threading.Lock()
        self._recording: list[Callable[[], None]] | None = None
        self._timed: list[KernelCall] = []

    def allocate(self, nbytes: int) -> Tensor:
        if nbytes > self.memory:
            raise torch.OutOfMemoryError("fake device out of memory")
        self.memory -= nbytes
        self.log.append(f"allocate {nbytes}")
        raw = torch.full((nbytes + ALIGNMENT,), 255, dtype=torch.uint8)  # NaN in every float dtype
        start = -raw.data_ptr() % ALIGNMENT
        return raw[start : start + nbytes]

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        assert self._inside.acquire(blocking=False), "two calls on the device at once"
        self.log.append("enter")
        try:
            yield
        finally:
            self.log.append("leave")
            self._inside.release()

    def copy(self, target: Tensor, source: Tensor) -> None:
        assert self._inside.locked(), "a copy outside of entered()"
        assert self._recording is None, "a copy of arguments or results inside of a recording"
        self.log.append("copy")
        target.copy_(source)

    def compile(self, calls: Sequence[KernelCall]) -> None:
        for call in calls:
            refusal = getattr(call.kernel, "refuses", None)
            if refusal is not None:
                raise CannotCompile(str(refusal))

    def launch(self, calls: Sequence[KernelCall]) -> None:
        assert self._inside.locked(), "a launch outside of entered()"
        for call in calls:
            self.log.append(f"launch {call.name}")
            self._do(lambda call=call: self._run(call))  # type: ignore[misc]

    def operator(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """``function`` as an operator of torch that this device could record."""

        def run(*args: Any, **kwargs: Any) -> Tensor:
            assert self._inside.locked(), "torch runs outside of entered()"
            result = function(*args, **kwargs)
            if self._recording is not None:

                def again() -> None:
                    result.copy_(function(*args, **kwargs))

                self._recording.append(again)
                result.fill_(torch.nan)  # it is computed when the recording is replayed
            return result

        return run

    def record(self, program: Callable[[], None]) -> Callable[[], None]:
        assert self._inside.locked(), "a recording outside of entered()"
        if not self.records:
            return program
        program()
        if self.refuses is not None:
            refusal, self.refuses = self.refuses, None
            raise refusal
        self.log.append("record")
        recorded: list[Callable[[], None]] = []
        self._recording = recorded
        try:
            program()
        finally:
            self._recording = None
        self.recorded = len(recorded)

        def replay() -> None:
            assert self._inside.locked(), "a replay outside of entered()"
            self.log.append("replay")
            for each in recorded:
                each()

        return replay

    def is_being_recorded(self) -> bool:
        return self.caller_records

    def synchronise(self) -> None:
        self.log.append("synchronise")

    def time(self, work: Callable[[], None]) -> int:
        assert self._inside.locked(), "timing outside of entered()"
        self._timed = []
        work()
        return self.nanoseconds(self._timed)

    def _do(self, action: Callable[[], None]) -> None:
        if self._recording is None:
            action()
        else:
            self._recording.append(action)

    def _run(self, call: KernelCall) -> None:
        self._timed.append(call)
        call.kernel(**call.arguments)

    def taken(self, *kinds: str) -> list[str]:
        """Entries of the log of these kinds; the log is emptied."""
        found = [entry for entry in self.log if entry.split()[0] in kinds]
        self.log.clear()
        return found


class PythonKernel:
    """What stands where a Triton kernel stands in a call."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.fn = function

    def __call__(self, **arguments: Any) -> None:
        self.fn(**arguments)


def call(function: Callable[..., None], **arguments: Any) -> KernelCall:
    """A launch of a Python function."""
    return KernelCall(PythonKernel(function), (1, 1, 1), arguments, {})


def mix(reads: list[Tensor], outs: list[Tensor], scratch: list[Tensor], factor: float) -> None:
    """Each output is another sum of the inputs; scratch memory is written over."""
    total = torch.stack([x * (i + 1) for i, x in enumerate(reads)]).sum(0)
    for each in scratch:
        each.fill_(torch.inf)
    for index, out in enumerate(outs):
        out.copy_(total * factor + index)


def mixing_step(
    name: str,
    reads: Sequence[str],
    writes: Sequence[Value],
    scratch: Sequence[Value] = (),
    overwrites: Sequence[str] = (),
    factor: float = 0.5,
) -> KernelStep:
    """A step whose kernel is :func:`mix`."""

    def calls(tensors: Any) -> list[KernelCall]:
        return [
            call(
                mix,
                reads=[tensors[read] for read in reads],
                outs=[tensors[value.name] for value in writes],
                scratch=[tensors[value.name] for value in scratch],
                factor=factor,
            )
        ]

    return KernelStep(
        name, "mix", tuple(reads), tuple(writes), calls, (), tuple(scratch), tuple(overwrites)
    )


def torch_step(
    name: str,
    function: Callable[..., Tensor],
    reads: Sequence[str],
    result: str,
    may_alias: bool = False,
    constants: Sequence[Constant] = (),
) -> TorchStep:
    """A step of torch's on some values."""
    return TorchStep(
        module=name,
        operation="torch",
        function=function,
        args=tuple(Ref(read) for read in (*reads, *(each.name for each in constants))),
        kwargs={},
        reads=tuple(reads),
        constants=tuple(constants),
        result=result,
        may_alias=may_alias,
        nbytes=0,
    )


def value(name: str, shape: Sequence[int] = (2, 3, 4, 5)) -> Value:
    """A float32 value."""
    return dense(name, shape, torch.float32)


def result(name: str, shape: Sequence[int] = (2, 3, 4, 5)) -> Result:
    """A value as the call's result."""
    return Result("value", name, value(name, shape))


def chain(length: int = 4, in_place: bool = False) -> Plan:
    """x -> v0 -> v1 -> ..., each the mix of the one before."""
    steps: list[Any] = []
    previous = "x"
    for index in range(length):
        name = f"v{index}"
        over = [previous] if in_place else []
        steps.append(mixing_step(name, [previous], [value(name)], overwrites=over))
        previous = name
    return Plan([(0, value("x"))], 0, steps, [result(previous)])


def expected(plan: Plan, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What a plan of mixes and torch steps computes, with memory of its own for every value."""
    tensors: dict[str, Tensor] = {each.name: inputs[number].clone() for number, each in plan.inputs}
    for step in plan.steps:
        if isinstance(step, TorchStep):
            tensors[step.result] = step.function(*(tensors[read] for read in step.reads)).clone()
            continue
        for each in (*step.writes, *step.scratch):
            tensors[each.name] = torch.full(each.shape, torch.nan)
        for launch in step.calls(tensors):
            launch.kernel(**launch.arguments)
    return [tensors[each.source] for each in plan.results]


__all__ = ["CannotRecord", "FakeDevice", "chain", "expected", "mixing_step", "result", "value"]
