"""What the GPU engine asks of a device: memory, order, recording and time. And the interpreter.

The engine is written against :class:`Device`. There are three: that of
:mod:`fastres.runtime.triton.cuda_graph`, Triton's interpreter on CPU tensors, and the fake one of
the tests, which checks the engine.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fastres.kernels.launch.call import KernelCall
from fastres.runtime.triton.memory_planner import ALIGNMENT


class CannotRecord(Exception):
    """Something in a program cannot be part of a recording; the message says what."""


class CannotCompile(Exception):
    """The compiler has no code for a kernel in this form; the message is the compiler's."""


class Device(Protocol):
    """One device, and the order in which it works for one engine."""

    @property
    def records(self) -> bool:
        """Whether launches can be recorded and replayed."""

    def allocate(self, nbytes: int) -> Tensor:
        """Bytes on the device at an address that is a multiple of :data:`ALIGNMENT`.

        Raises:
            torch.OutOfMemoryError: there is not that much.
        """

    def entered(self) -> contextlib.AbstractContextManager[None]:
        """A context whose work runs after what the caller has launched so far.

        What the caller launches afterwards runs after that work.
        """

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Copy values, also between dtypes, layouts and devices."""

    def compile(self, calls: Sequence[KernelCall]) -> None:
        """Make kernels ready to be launched, without launching them.

        Raises:
            CannotCompile: the compiler has no code for one of them.
        """

    def launch(self, calls: Sequence[KernelCall]) -> None:
        """Run kernels one after the other."""

    def record(self, program: Callable[[], None]) -> Callable[[], None]:
        """Run a program, and return what runs the same launches on the same memory again.

        Only where :attr:`records` is true.

        Raises:
            CannotRecord: the program ran, but cannot be recorded.
        """

    def is_being_recorded(self) -> bool:
        """Whether the caller itself is recording its launches, and this call with them."""

    def synchronise(self) -> None:
        """Wait until all work is done."""

    def time(self, work: Callable[[], None]) -> int:
        """Nanoseconds that the device takes for work."""


class InterpreterDevice:
    """Kernels under Triton's interpreter, on the CPU's memory, at once and in order."""

    records = False

    def allocate(self, nbytes: int) -> Tensor:
        raw = torch.empty(nbytes + ALIGNMENT, dtype=torch.uint8, device="cpu")
        start = -raw.data_ptr() % ALIGNMENT
        return raw[start : start + nbytes]

    def entered(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source)

    def compile(self, calls: Sequence[KernelCall]) -> None:
        pass

    def launch(self, calls: Sequence[KernelCall]) -> None:
        for call in calls:
            call.run()

    def record(self, program: Callable[[], None]) -> Callable[[], None]:
        return program

    def is_being_recorded(self) -> bool:
        return False

    def synchronise(self) -> None:
        pass

    def time(self, work: Callable[[], None]) -> int:
        started = time.perf_counter_ns()
        work()
        return time.perf_counter_ns() - started
