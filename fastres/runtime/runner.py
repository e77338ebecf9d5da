"""From a call's flattened arguments to its flattened results.

The way of every call: find the executable for these shapes (check and build on first sight), look
whether the input is ordinary, run without autograd and within the thread limit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fastres.contract import Contract
from fastres.errors import InputError, OutOfMemory
from fastres.runtime.cache import ExecutableCache
from fastres.runtime.eager import EagerEngine
from fastres.runtime.engine import Engine
from fastres.runtime.executable import Executable
from fastres.runtime.threads import ThreadLimit

ORDINARY = 2.0**64
"""Inputs below this in magnitude cannot overflow float32 in a network that is any good.

oneDNN's ReLU turns NaN into 0, so whatever could make a NaN must not get there: NaN and infinity in
the input, and numbers so large that the activations overflow. An input beyond this bound takes the
eager engine. Activations that overflow from an ordinary input (a broken model) are not caught.
"""


class Runner:
    """Runs one fused graph; safe to call from several threads at once."""

    def __init__(
        self, module: fx.GraphModule, contract: Contract, engine: Engine, threads: int | None
    ) -> None:
        self.module = module
        self.contract = contract
        self.engine = engine
        self.limit = ThreadLimit(threads)
        self.cache = ExecutableCache()
        self._eager = EagerEngine()
        self._weights = list(module.buffers())
        self._version = self._weights_version()

    def __call__(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Flattened results for flattened arguments.

        Raises:
            InputError: the arguments do not fit the contract, or need a gradient.
            OutOfMemory: the activations do not fit into memory.
        """
        executable = self.executable(inputs)
        if executable.finite_only and not all(map(_is_ordinary, inputs)):
            executable = self._built(inputs, self._eager)
        return self.run(executable, inputs)

    def run(self, executable: Executable, inputs: Sequence[Any]) -> Sequence[Any]:
        """Run an executable with everything around it but the checks of the input."""
        try:
            with torch.no_grad(), self.limit(), without_autocast():
                return executable(inputs)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, MemoryError) or "allocate" in str(error):
                shapes = ", ".join(str(list(v.shape)) for v in inputs if isinstance(v, Tensor))
                raise OutOfMemory(
                    f"input {shapes}: the system refused the memory for the activations (about "
                    f"{executable.peak_bytes / 2**30:.1f} GiB); use a smaller batch or image"
                ) from error
            raise

    def executable(self, inputs: Sequence[Any]) -> Executable:
        """The executable that a call with these arguments runs (if they are ordinary)."""
        if self._weights_version() != self._version:  # somebody wrote into the weights
            self._version = self._weights_version()
            self.engine = type(self.engine)()  # with it go the packed weights
            self.cache.clear()
        if torch.is_grad_enabled() and any(
            isinstance(v, Tensor) and v.requires_grad for v in inputs
        ):
            raise InputError(
                "got an input that requires a gradient, but an optimised model is for inference "
                "and has none: call it under torch.no_grad(), or pass x.detach()"
            )
        return self._built(inputs, self.engine)

    def _built(self, inputs: Sequence[Any], engine: Engine) -> Executable:
        def build() -> Executable:
            self.contract.check(inputs)
            empty = any(isinstance(v, Tensor) and not v.numel() for v in inputs)
            with torch.inference_mode(False), torch.no_grad(), self.limit(), without_autocast():
                return (self._eager if empty else engine).build(self.module, inputs)

        return self.cache.get((engine.name, *map(_fingerprint, inputs)), build)

    def _weights_version(self) -> int:
        return sum([weight._version for weight in self._weights])


def without_autocast() -> contextlib.AbstractContextManager[Any]:
    """A context in which precision is what ``optimize`` was asked for, autocast or not."""
    if not (torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")):
        return _NOTHING
    stack = contextlib.ExitStack()
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            stack.enter_context(torch.autocast(device, enabled=False))
    return stack


_NOTHING: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()


def _fingerprint(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device, value.layout
    return type(value), repr(value)


def _is_ordinary(value: Any) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
        return True
    low, high = torch.aminmax(value)
    return float(low) > -ORDINARY and float(high) < ORDINARY  # false for NaN
