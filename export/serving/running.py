"""A loaded ONNX file as a callable: torch's memory in, torch's memory out, every run timed.

The part for GPUs follows ONNX Runtime's documentation
(https://onnxruntime.ai/docs/performance/tune-performance/iobinding.html) and was never run where it
was written.
"""

from __future__ import annotations

import re
import statistics
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastres.errors import ArtifactError, InputError, OptionError, OutOfMemory
from fastres.export.metadata import CHECKSUM
from fastres.system.plain_tensors import materialized, refuse_under_tracing
from fastres.system.threads import safe_threads

KEPT_RUNS = 1000
"""How many later runs :attr:`Session.timings` looks back on."""

_TYPES: dict[str, tuple[torch.dtype, Any]] = {
    "tensor(float)": (torch.float32, np.float32),
    "tensor(float16)": (torch.float16, np.float16),
    "tensor(double)": (torch.float64, np.float64),
    "tensor(uint8)": (torch.uint8, np.uint8),
    "tensor(int8)": (torch.int8, np.int8),
    "tensor(int16)": (torch.int16, np.int16),
    "tensor(int32)": (torch.int32, np.int32),
    "tensor(int64)": (torch.int64, np.int64),
    "tensor(bool)": (torch.bool, np.bool_),
}

_KEPT_SHAPES = 64

_NO_MEMORY = re.compile(r"bad_alloc|\b[Ff]ailed to allocate|out of memory|Available memory")
"""In messages of ONNX Runtime; "preallocated" is none."""


@dataclass(frozen=True)
class Timings:
    """What a session's life has cost so far, in seconds.

    Attributes:
        load: reading, checking and optimising the file.
        first: the first run, in which memory is allocated and GPU kernels are chosen; None before.
        runs: number of runs after the first.
        median, best: of the last :data:`KEPT_RUNS` of those; None before there are any.
    """

    load: float
    first: float | None
    runs: int
    median: float | None
    best: float | None

    def __str__(self) -> str:
        parts = [f"load {self.load * 1e3:.1f} ms"]
        if self.first is not None:
            parts.append(f"first run {self.first * 1e3:.1f} ms")
        if self.median is not None and self.best is not None:
            parts.append(
                f"{self.runs} later: median {self.median * 1e3:.1f} ms, best "
                f"{self.best * 1e3:.1f} ms"
            )
        return ", ".join(parts)


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: name, dtype, and sizes (names stand for open ones, None for unnamed)."""

    name: str
    dtype: torch.dtype
    sizes: tuple[int | str | None, ...]

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.sizes)
        return f"{self.name} {str(self.dtype).removeprefix('torch.')} [{sizes}]"


class Session:
    """A loaded ONNX file, called like the model that it was made from.

    ``session(x)`` takes tensors by position or by the file's input names and gives a tensor, or a
    dict by output names where there are several. Contiguous CPU tensors are read where they are;
    results are new tensors, which ONNX Runtime writes to directly. It may be called from several
    threads at once.

    Attributes:
        path: the file.
        providers: those that run it, in order.
        inputs, outputs: what it takes and gives.
        metadata: what the file says about itself, ``fastres.*`` among it.
    """

    def __init__(self, path: Path, session: Any, load_seconds: float) -> None:
        self.path = path
        self.inputs = tuple(_spec_of(path, node) for node in session.get_inputs())
        self.outputs = tuple(_spec_of(path, node) for node in session.get_outputs())
        self.providers: tuple[str, ...] = tuple(session.get_providers())
        self.metadata: dict[str, str] = dict(session.get_modelmeta().custom_metadata_map)
        # In files of ours no size depends on values, so results' sizes can be remembered.
        self._by_shape = CHECKSUM in self.metadata
        self._session = session
        self._lock = threading.Lock()
        self._load = load_seconds
        self._first: float | None = None
        self._count = 0
        self._later: deque[float] = deque(maxlen=KEPT_RUNS)
        self._shapes: dict[tuple[Any, ...], list[tuple[int, ...]]] = {}

    @safe_threads()
    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Tensor | dict[str, Tensor]:
        """Run the model.

        Raises:
            InputError: number, names, dtype or sizes of the tensors are not the file's.
            OutOfMemory: these shapes do not fit into memory.
            ArtifactError: ONNX Runtime failed on it.
            OptionError: something watches or rewrites the calls of this thread (a fake mode, a
                transformation of torch.func), which ONNX Runtime knows nothing of.
        """
        refuse_under_tracing("a session of ONNX Runtime")
        tensors = self._arguments(args, kwargs)
        began = time.perf_counter()
        results = self._run(tensors)
        took = time.perf_counter() - began
        with self._lock:
            if self._first is None:
                self._first = took
            else:
                self._later.append(took)
                self._count += 1
        if len(results) == 1:
            return results[0]
        return {spec.name: result for spec, result in zip(self.outputs, results, strict=True)}

    @property
    def timings(self) -> Timings:
        """What loading, the first and the later runs took."""
        with self._lock:
            later, first, count = list(self._later), self._first, self._count
        median = statistics.median(later) if later else None
        return Timings(self._load, first, count, median, min(later, default=None))

    def __repr__(self) -> str:
        takes = "; ".join(map(str, self.inputs))
        gives = "; ".join(map(str, self.outputs))
        return f"<Session {self.path.name} on {self.providers[0]}: {takes} -> {gives}>"

    def _arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        names = [spec.name for spec in self.inputs]
        unknown = sorted(set(kwargs) - set(names[len(args) :]))
        if len(args) + len(kwargs) != len(names) or unknown:
            got = [f"{len(args)} by position", *(f"{name}=" for name in kwargs)]
            raise InputError(
                f"got {', '.join(got)}; expected {len(names)} tensors: {', '.join(names)}"
            )
        values = [*args, *(kwargs[name] for name in names[len(args) :])]
        known: dict[str, int] = {}
        return [self._checked(p, v, known) for p, v in zip(self.inputs, values, strict=True)]

    def _checked(self, spec: TensorSpec, value: Any, known: dict[str, int]) -> Tensor:
        if not isinstance(value, Tensor):
            raise InputError(
                f"got a {type(value).__name__} for {spec.name!r}, expected a tensor: {spec}"
            )
        try:
            tensor: Tensor = materialized(value, spec.name)
        except OptionError as error:  # ONNX Runtime reads memory by its address
            raise InputError(str(error)) from error
        wrong = tensor.dtype != spec.dtype or tensor.dim() != len(spec.sizes)
        for size, got in zip(spec.sizes, tensor.shape, strict=False):
            expected = known.setdefault(size, got) if isinstance(size, str) else size
            wrong = wrong or (expected is not None and expected != got)
        if wrong:
            dtype = str(tensor.dtype).removeprefix("torch.")
            message = f"got {dtype} {list(tensor.shape)} for {spec.name!r}, expected {spec}"
            if tensor.dim() == len(spec.sizes) == 4 and tensor.dtype == spec.dtype:
                message += (
                    ", as was asked when the file was exported: numbers are fixed; to_onnx(..., "
                    "dynamic_size=True) leaves height and width open where the model does"
                )
            raise InputError(message)
        if tensor.requires_grad and torch.is_grad_enabled():
            raise InputError(
                f"{spec.name!r} requires a gradient, which a file has none of: pass x.detach(), "
                "or call under torch.no_grad()"
            )
        if tensor.numel() == 0:
            raise InputError(f"got {list(tensor.shape)} for {spec.name!r}: there is nothing in it")
        return tensor.detach().contiguous()

    def _run(self, tensors: list[Tensor]) -> list[Tensor]:
        binding = self._session.io_binding()
        for spec, value in zip(self.inputs, tensors, strict=True):
            _, element = next(t for t in _TYPES.values() if t[0] == spec.dtype)
            binding.bind_input(
                spec.name,
                value.device.type,
                value.device.index or 0,
                element,
                tuple(value.shape),
                value.data_ptr(),
            )
            if value.is_cuda:  # the session has a stream of its own
                torch.cuda.current_stream(value.device).synchronize()
        device = tensors[0].device
        key = tuple(value.shape for value in tensors)
        shapes = self._shapes.get(key) or self._declared(tensors)
        results: list[Tensor] = []
        for index, spec in enumerate(self.outputs):
            if shapes is None:
                binding.bind_output(spec.name, device.type, device.index or 0)
                continue
            result = torch.empty(shapes[index], dtype=spec.dtype, device=device)
            _, element = next(t for t in _TYPES.values() if t[0] == spec.dtype)
            binding.bind_output(
                spec.name,
                device.type,
                device.index or 0,
                element,
                tuple(result.shape),
                result.data_ptr(),
            )
            results.append(result)
        self._execute(binding, tensors)
        if shapes is not None:
            return results
        # The file does not tell the results' sizes: ONNX Runtime's memory, copied into torch's.
        results = [torch.from_numpy(np.array(value.numpy())) for value in binding.get_outputs()]
        if self._by_shape:
            with self._lock:
                while len(self._shapes) >= _KEPT_SHAPES:
                    self._shapes.pop(next(iter(self._shapes)))
                self._shapes[key] = [tuple(result.shape) for result in results]
        return [result.to(device) for result in results]

    def _declared(self, tensors: list[Tensor]) -> list[tuple[int, ...]] | None:
        """The results' shapes, where the file states all of them in the inputs' open sizes."""
        known: dict[Any, int] = {}
        for spec, value in zip(self.inputs, tensors, strict=True):
            known.update(zip(spec.sizes, value.shape, strict=True))
        shapes = [
            tuple(size if isinstance(size, int) else known.get(size, -1) for size in spec.sizes)
            for spec in self.outputs
        ]
        unknown = any(size is None for spec in self.outputs for size in spec.sizes)
        return None if unknown or any(-1 in shape for shape in shapes) else shapes

    def _execute(self, binding: Any, tensors: list[Tensor]) -> None:
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's own types have no common base
            shapes = ", ".join(str(list(value.shape)) for value in tensors)
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            if isinstance(error, MemoryError) or _NO_MEMORY.search(text):
                raise OutOfMemory(
                    f"input {shapes}: ONNX Runtime got no memory for it ({text}); use a smaller "
                    "batch or image"
                ) from error
            raise ArtifactError(
                f"{self.path.name} failed in ONNX Runtime for input {shapes}: {text}"
            ) from error


def _spec_of(path: Path, node: Any) -> TensorSpec:
    known = _TYPES.get(node.type)
    if known is None:
        raise ArtifactError(
            f"{path}: {node.name!r} is a {node.type}; a session takes and gives tensors of "
            "numbers only"
        )
    sizes = (size if isinstance(size, (int, str)) else None for size in node.shape)
    return TensorSpec(node.name, known[0], tuple(sizes))
