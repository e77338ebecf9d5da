"""From a call's flattened arguments to its flattened results.

The way of every call: find the executable for these shapes (check and build on first sight), run it
without autograd and within the thread limit, and where a number is not finite, run it again in
plain PyTorch. A call that is no ordinary one (traced, transformed, on what is no plain tensor in
memory) goes through torch's operators instead: see :mod:`fastres.system.plain_tensors`.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx

from fastres.capture.contract import Contract
from fastres.errors import InputError, ModelError, OutOfMemory
from fastres.runtime.autocast import without_autocast
from fastres.runtime.derivatives import refuse_derivatives, without_gradients
from fastres.runtime.eager import EagerEngine
from fastres.runtime.engine import Engine
from fastres.runtime.executable import Runnable
from fastres.runtime.executable_cache import ExecutableCache
from fastres.runtime.in_torch import check, refuse_tracing, run_in_torch
from fastres.runtime.native.library import let_go
from fastres.runtime.nonfinite import NonFinite
from fastres.system import forking
from fastres.system.plain_tensors import active_tracer, is_plain_call, why_not_plain
from fastres.system.threads import ThreadLimit, safe_threads


class _Weights:
    """A module's weights as they are now, to tell in every call whether they still are.

    Looked at are which tensor is in which place, torch's counts of writes and, if asked for, the
    addresses (``.data = ...`` moves a tensor without a count). A ResNet-50 has 108 weights, so the
    look is most of what a call on a GPU costs the host (``python -m benchmarks.host_time``). Writes
    through ``.data`` are not counted by torch and not seen here.

    Args:
        module: the weights' owner.
        in_place: whether addresses are looked at.
    """

    def __init__(self, module: fx.GraphModule, in_place: bool) -> None:
        self._places = cast("dict[str, Tensor]", module._buffers)
        self._tensors = list(self._places.values())
        self._counted = [weight for weight in self._tensors if not weight.is_inference()]
        self._counts = [weight._version for weight in self._counted]
        self._placed = self._tensors if in_place else []
        self._addresses = list(map(Tensor.data_ptr, self._placed))

    def are_the_same(self) -> bool:
        """Whether nobody put in another tensor, wrote into one or moved one."""
        tensors, places = self._tensors, self._places
        return (
            len(places) == len(tensors)
            and all(map(operator.is_, places.values(), tensors))
            and [weight._version for weight in self._counted] == self._counts
            and list(map(Tensor.data_ptr, self._placed)) == self._addresses
        )


@dataclass(frozen=True)
class _Prepared:
    """What was made from one state of the weights."""

    weights: _Weights
    engine: Engine
    cache: ExecutableCache


class Runner:
    """Runs one fused graph; safe to call from several threads at once."""

    def __init__(
        self, module: fx.GraphModule, contract: Contract, engine: Engine, threads: int | None
    ) -> None:
        self.module = module
        self.contract = contract
        self.limit = ThreadLimit(threads)
        self._eager = EagerEngine()
        self._renewing = forking.lock()
        self._prepared = _Prepared(
            _Weights(module, engine.reads_in_place), engine, ExecutableCache()
        )

    @property
    def engine(self) -> Engine:
        """The engine, with the weights that it has packed."""
        return self._prepared.engine

    @property
    def cache(self) -> ExecutableCache:
        """The executables made so far."""
        return self._prepared.cache

    def __call__(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Flattened results for flattened arguments.

        Raises:
            InputError: the arguments do not fit the contract, or need a gradient.
            OutOfMemory: the activations do not fit into memory.
        """
        if not is_plain_call(inputs):
            with safe_threads():
                return run_in_torch(self.module, self.contract, inputs)
        executable = self._executable(inputs)
        try:
            return self.run(executable, inputs)
        except NonFinite:
            return self.run(self._built(self._prepared, inputs, self._eager), inputs)

    def run(self, executable: Runnable, inputs: Sequence[Any]) -> Sequence[Any]:
        """Run an executable with everything around it.

        Raises:
            NonFinite: it met NaN, infinity or a huge number, which its kernels cannot take.
            OutOfMemory: the activations do not fit into memory.
        """
        try:
            with without_gradients(), self.limit(), without_autocast():
                return executable(inputs)
        except (RuntimeError, MemoryError) as error:
            refused = isinstance(error, (MemoryError, torch.OutOfMemoryError))
            if refused or "DefaultCPUAllocator" in str(error):
                if let_go():
                    return self.run(executable, inputs)
                shapes = ", ".join(str(list(v.shape)) for v in inputs if isinstance(v, Tensor))
                raise OutOfMemory(
                    f"input {shapes}: the system refused the memory for the activations (about "
                    f"{executable.peak_bytes / 2**30:.1f} GiB); use a smaller batch or image"
                ) from error
            raise

    def executable(self, inputs: Sequence[Any]) -> Runnable:
        """The executable that a call with these arguments runs (if its numbers are finite).

        Raises:
            InputError: as a call does, and for arguments that no executable can run.
        """
        if not is_plain_call(inputs):
            refuse_tracing(inputs)
            check(self.contract, inputs)
            refuse_derivatives(inputs)
            found = active_tracer() or next(
                filter(None, (why_not_plain(v) for v in inputs if isinstance(v, Tensor))),
                "it is of a subclass of torch.Tensor",
            )
            raise InputError(
                f"only a call with plain tensors, which nothing watches, has a program ({found}): "
                "pass plain tensors, outside"
            )
        return self._executable(inputs)

    def _executable(self, inputs: Sequence[Any]) -> Runnable:
        if torch.is_grad_enabled():
            for value in inputs:
                if isinstance(value, Tensor) and value.requires_grad:
                    refuse_derivatives(inputs)
        prepared = self._current()
        return self._built(prepared, inputs, prepared.engine)

    def finite_executable(self, inputs: Sequence[Any]) -> Runnable:
        """The executable that a call with these arguments ends with."""
        executable = self.executable(inputs)
        try:
            self.run(executable, inputs)
        except NonFinite:
            return self._built(self._prepared, inputs, self._eager)
        return executable

    def _current(self) -> _Prepared:
        """What belongs to the weights as they are: somebody may have written into them."""
        prepared = self._prepared
        if prepared.weights.are_the_same():
            return prepared
        with self._renewing:
            if not self._prepared.weights.are_the_same():
                engine = prepared.engine.unpacked()  # with the old one go the packed weights
                weights = _Weights(self.module, engine.reads_in_place)
                self._prepared = _Prepared(weights, engine, ExecutableCache())
            return self._prepared

    def _built(self, prepared: _Prepared, inputs: Sequence[Any], engine: Engine) -> Runnable:
        def build() -> Runnable:
            refuse_tracing(inputs)
            self.contract.check(inputs)
            check_weights(self.module)
            empty = any(isinstance(v, Tensor) and not v.numel() for v in inputs)
            with torch.inference_mode(False), torch.no_grad(), self.limit(), without_autocast():
                return (self._eager if empty else engine).build(self.module, inputs)

        threads = self.limit.threads if engine.plans_threads else None
        key = (engine.name, threads, *map(_fingerprint, inputs))
        return prepared.cache.get(key, build)


def check_weights(module: fx.GraphModule) -> None:
    """Kernels read weights by their addresses, and somebody may have put in what has no values.

    Raises:
        ModelError: one has none.
    """
    for name, weight in module.named_buffers():
        refuse_unreadable(name, weight)


def refuse_unreadable(name: str, weight: Tensor) -> None:
    """Let pass a weight whose values lie in memory.

    Raises:
        ModelError: they do not.
    """
    found = why_not_plain(weight)
    if found is not None:
        raise ModelError(
            f"the optimised model's weight {name} cannot be read: {found}; give it plain "
            "weights by refresh() or load_state_dict()"
        )


def _fingerprint(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device, value.layout
    return type(value), repr(value)
