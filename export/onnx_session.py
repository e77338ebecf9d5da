"""ONNX Runtime as somebody who knows it would set it up: providers, threads, memory, and no
silence about any of it.

On a CPU this is tested. What concerns GPUs follows ONNX Runtime's documentation
(https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html,
https://onnxruntime.ai/docs/performance/tune-performance/iobinding.html) and was never run where it
was written.
"""

from __future__ import annotations

import statistics
import threading
import time
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastres import target
from fastres.errors import (
    ArtifactError,
    FastresError,
    FastresWarning,
    InputError,
    OptionError,
    OutOfMemory,
    TargetError,
)
from fastres.export.metadata import CHECKSUM
from fastres.export.requirements import need_onnx, need_onnxruntime

PREFERRED: tuple[str, ...] = (
    "TensorrtExecutionProvider",
    "CUDAExecutionProvider",
    "CPUExecutionProvider",
)
"""ONNX Runtime's providers, fastest first; the short names are ``tensorrt``, ``cuda``, ``cpu``."""

_SHORT = {"tensorrt": PREFERRED[0], "cuda": PREFERRED[1], "cpu": PREFERRED[2]}

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
class Place:
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
        self.inputs = tuple(_place(path, node) for node in session.get_inputs())
        self.outputs = tuple(_place(path, node) for node in session.get_outputs())
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

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Tensor | dict[str, Tensor]:
        """The model's answer.

        Raises:
            InputError: number, names, dtype or sizes of the tensors are not the file's.
            OutOfMemory: these shapes do not fit into memory.
            ArtifactError: ONNX Runtime failed on it.
        """
        given = self._arguments(args, kwargs)
        began = time.perf_counter()
        results = self._run(given)
        took = time.perf_counter() - began
        with self._lock:
            if self._first is None:
                self._first = took
            else:
                self._later.append(took)
                self._count += 1
        if len(results) == 1:
            return results[0]
        return {place.name: result for place, result in zip(self.outputs, results, strict=True)}

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
        names = [place.name for place in self.inputs]
        unknown = sorted(set(kwargs) - set(names[len(args) :]))
        if len(args) + len(kwargs) != len(names) or unknown:
            got = [f"{len(args)} by position", *(f"{name}=" for name in kwargs)]
            raise InputError(
                f"got {', '.join(got)}; expected {len(names)} tensors: {', '.join(names)}"
            )
        values = [*args, *(kwargs[name] for name in names[len(args) :])]
        known: dict[str, int] = {}
        return [self._checked(p, v, known) for p, v in zip(self.inputs, values, strict=True)]

    def _checked(self, place: Place, value: Any, known: dict[str, int]) -> Tensor:
        if not isinstance(value, Tensor):
            raise InputError(
                f"got a {type(value).__name__} for {place.name!r}, expected a tensor: {place}"
            )
        wrong = value.dtype != place.dtype or value.dim() != len(place.sizes)
        for size, got in zip(place.sizes, value.shape, strict=False):
            wanted = known.setdefault(size, got) if isinstance(size, str) else size
            wrong = wrong or (wanted is not None and wanted != got)
        if wrong:
            dtype = str(value.dtype).removeprefix("torch.")
            raise InputError(
                f"got {dtype} {list(value.shape)} for {place.name!r}, expected {place}"
            )
        if value.requires_grad and torch.is_grad_enabled():
            raise InputError(
                f"{place.name!r} requires a gradient, which a file has none of: pass x.detach(), "
                "or call under torch.no_grad()"
            )
        if value.numel() == 0:
            raise InputError(f"got {list(value.shape)} for {place.name!r}: there is nothing in it")
        return value.detach().contiguous()

    def _run(self, given: list[Tensor]) -> list[Tensor]:
        binding = self._session.io_binding()
        for place, value in zip(self.inputs, given, strict=True):
            _, element = next(t for t in _TYPES.values() if t[0] == place.dtype)
            binding.bind_input(
                *(place.name, value.device.type, value.device.index or 0, element),
                *(tuple(value.shape), value.data_ptr()),
            )
            if value.is_cuda:  # the session has a stream of its own
                torch.cuda.current_stream(value.device).synchronize()
        device = given[0].device
        key = tuple(value.shape for value in given)
        shapes = self._shapes.get(key) or self._declared(given)
        results: list[Tensor] = []
        for index, place in enumerate(self.outputs):
            if shapes is None:
                binding.bind_output(place.name, device.type, device.index or 0)
                continue
            result = torch.empty(shapes[index], dtype=place.dtype, device=device)
            _, element = next(t for t in _TYPES.values() if t[0] == place.dtype)
            binding.bind_output(
                *(place.name, device.type, device.index or 0, element),
                *(tuple(result.shape), result.data_ptr()),
            )
            results.append(result)
        self._execute(binding, given)
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

    def _declared(self, given: list[Tensor]) -> list[tuple[int, ...]] | None:
        """The results' shapes, where the file states all of them in the inputs' open sizes."""
        known: dict[Any, int] = {}
        for place, value in zip(self.inputs, given, strict=True):
            known.update(zip(place.sizes, value.shape, strict=True))
        shapes = [
            tuple(size if isinstance(size, int) else known.get(size, -1) for size in place.sizes)
            for place in self.outputs
        ]
        unknown = any(size is None for place in self.outputs for size in place.sizes)
        return None if unknown or any(-1 in shape for shape in shapes) else shapes

    def _execute(self, binding: Any, given: list[Tensor]) -> None:
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's own types have no common base
            shapes = ", ".join(str(list(value.shape)) for value in given)
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            if isinstance(error, MemoryError) or "bad_alloc" in text or "allocate" in text:
                raise OutOfMemory(
                    f"input {shapes}: ONNX Runtime got no memory for it ({text}); use a smaller "
                    "batch or image"
                ) from error
            raise ArtifactError(
                f"{self.path.name} failed in ONNX Runtime for input {shapes}: {text}"
            ) from error


def session(
    path: str | Path,
    *,
    providers: str | Sequence[str] | None = None,
    strict: bool = False,
    threads: int | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Session:
    """Load an ONNX file for inference.

    The file is checked before ONNX Runtime sees it: format, shapes against bytes, weights inside of
    its own directory only, and the checksum where fastres wrote it.

    Args:
        path: of the file.
        providers: ``"tensorrt"``, ``"cuda"``, ``"cpu"`` or ONNX Runtime's full names, in the order
            wanted; one or several. Default: of TensorRT, CUDA and the CPU, those that the
            installed package has, GPUs only where the machine has one.
        strict: raise where a provider does not load, or where one of the listed leaves an operator
            to the CPU without the CPU being listed. Otherwise the first is a warning, and the
            second happens silently in ONNX Runtime.
        threads: per call; default: what CPU affinity and cgroup quota grant.
        options: settings per provider, e.g. ``{"cuda": {"device_id": 1}}``.

    Raises:
        OptionError: an argument is not one of those.
        TargetError: ONNX Runtime is missing or installed twice; under ``strict``, a provider did
            not load.
        ArtifactError: the file is not there, damaged, not ONNX, or reaches outside of its folder.
    """
    need_onnx()
    runtime = need_onnxruntime()
    from fastres.export import onnx_file

    file = Path(path)
    if threads is not None and (type(threads) is not int or threads < 1):
        raise OptionError(f"threads={threads!r}: expected None or a number of at least 1")
    if not isinstance(strict, bool):
        raise OptionError(f"strict={strict!r}: expected True or False")
    wanted = _wanted(runtime, providers)
    began = time.perf_counter()
    onnx_file.read(file)
    settings = runtime.SessionOptions()
    settings.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.intra_op_num_threads = threads or target.cpu_threads()
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 4  # what fails is raised, or told by a warning below
    listed_cpu = PREFERRED[2] in wanted
    if strict and not listed_cpu:
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if wanted[0] != PREFERRED[2] and hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()  # CUDA's libraries from torch's packages
    given = {_full(name): dict(value) for name, value in (options or {}).items()}
    asked = [(name, given.get(name, {})) for name in wanted]
    try:
        loaded = runtime.InferenceSession(str(file), settings, providers=asked)
    except Exception as error:  # ONNX Runtime's own types have no common base
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        if strict and not listed_cpu and "fallback" in str(error):
            raise TargetError(
                f"strict=True: {', '.join(wanted)} cannot run all of {file.name}: {first}; list "
                '"cpu" too, or leave strict out'
            ) from error
        raise ArtifactError(f"{file} cannot be loaded by ONNX Runtime: {first}") from error
    missing = [name for name in wanted if name not in loaded.get_providers()]
    if missing:
        sentence = (
            f"asked for {', '.join(wanted)}, ONNX Runtime loaded "
            f"{', '.join(loaded.get_providers())}: the libraries or the device of "
            f"{missing[0]} are not here"
        )
        if strict:
            raise TargetError(f"strict=True: {sentence}; see its installation page")
        warnings.warn(sentence, FastresWarning, stacklevel=2)
    try:
        return Session(file, loaded, time.perf_counter() - began)
    except FastresError:
        raise
    except Exception as error:  # names and shapes come from the file and may be anything
        raise ArtifactError(f"{file} cannot be used: {str(error).splitlines()[0]}") from error


def _full(name: str) -> str:
    return _SHORT.get(name, name)


def _wanted(runtime: Any, providers: str | Sequence[str] | None) -> list[str]:
    available = list(runtime.get_available_providers())
    if providers is None:
        gpu = torch.cuda.is_available() or target.gpu_driver() != "unknown"
        return [name for name in PREFERRED if name in available and (gpu or name == PREFERRED[2])]
    names = [providers] if isinstance(providers, str) else list(providers)
    if not names or not all(isinstance(name, str) for name in names):
        raise OptionError(f"providers={providers!r}: expected names such as 'cuda' and 'cpu'")
    wanted = [_full(name) for name in names]
    for name, full in zip(names, wanted, strict=True):
        if full not in available:
            hint = (
                "; the package onnxruntime-gpu has the first two of tensorrt, cuda, cpu"
                if full in PREFERRED
                else ""
            )
            raise OptionError(
                f"providers: this ONNX Runtime has no {name!r}, only {', '.join(available)}{hint}"
            )
    return list(dict.fromkeys(wanted))


def _place(path: Path, node: Any) -> Place:
    known = _TYPES.get(node.type)
    if known is None:
        raise ArtifactError(
            f"{path}: {node.name!r} is a {node.type}; a session takes and gives tensors of "
            "numbers only"
        )
    sizes = (size if isinstance(size, (int, str)) else None for size in node.shape)
    return Place(node.name, known[0], tuple(sizes))
