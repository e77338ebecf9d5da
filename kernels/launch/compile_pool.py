"""Several processes that compile launches side by side, before the first of them is made.

Triton compiles a kernel when it is first launched, one after the other, 1 to 2 s each: a network's
are most of a minute. What is compiled ahead is found by the launch in Triton's cache on disk, since
both ask for the same thing. Processes are started by this Python with a module of ours, so that the
caller's own program is not run again in them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from fastres.kernels.launch.call import KernelCall
from fastres.kernels.tuning.gpus import Architecture

LARGEST = 8
"""Processes: each holds about half a gigabyte, most of it torch."""

COLD_S = 0.25
"""A launch whose kernel took this long to be had was compiled; from the cache it takes 0.01 s."""


class CompilePool:
    """Processes that are started when they are first needed, and end with the ``with`` block.

    Args:
        architecture: compiled for: that of the device the launches are made on.
        workers: processes at most, one for each processor; never more than :data:`LARGEST`.
    """

    def __init__(self, architecture: Architecture, workers: int) -> None:
        self.architecture = architecture
        self.workers = min(workers, LARGEST)
        self._idle: list[subprocess.Popen[bytes]] = []
        self._all: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()
        self._done: set[Any] = set()

    def __enter__(self) -> CompilePool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self._all:
            assert process.stdin is not None and process.stdout is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
            if kind is not None:
                process.kill()
            process.wait()
            process.stdout.close()
        self._all.clear()
        self._idle.clear()

    def compile(self, calls: Sequence[KernelCall]) -> None:
        """Have the kernels of these launches in Triton's cache, as far as they can be compiled.

        What cannot be is left for the launch to report, and so is everything if no process can be
        started. While kernels come from the cache none is.
        """
        from fastres.kernels.inspection import compiling  # noqa: F401 - its import is not compiling

        jobs = [call for call in distinct(calls) if _key(call) not in self._done]
        self._done.update(_key(call) for call in jobs)
        if self.workers > 1:
            while jobs and not self._all:
                began = time.perf_counter()
                self._here(jobs.pop(0))
                if time.perf_counter() - began > COLD_S:
                    break
        if len(jobs) < 2 or self.workers == 1:
            return  # the launches compile what is left
        with ThreadPoolExecutor(min(self.workers, len(jobs))) as threads:
            list(threads.map(self._elsewhere, jobs))

    def _here(self, call: KernelCall) -> None:
        from fastres.errors import FastresError
        from fastres.kernels.inspection.compiling import compiled

        with contextlib.suppress(FastresError):
            compiled(_without_memory(call), self.architecture)

    def _elsewhere(self, call: KernelCall) -> None:
        from fastres.kernels.launch.compile_worker import described

        with contextlib.suppress(OSError, EOFError), self._process() as process:
            assert process.stdin is not None and process.stdout is not None
            pickle.dump(described(_without_memory(call), self.architecture), process.stdin)
            process.stdin.flush()
            pickle.load(process.stdout)

    @contextlib.contextmanager
    def _process(self) -> Iterator[subprocess.Popen[bytes]]:
        """One that is idle, or a new one; back among the idle unless it broke."""
        with self._lock:
            process = self._idle.pop() if self._idle else None
        if process is None:
            process = _start()
            with self._lock:
                self._all.append(process)
        yield process
        with self._lock:
            self._idle.append(process)


def distinct(calls: Sequence[KernelCall]) -> list[KernelCall]:
    """One launch for each kernel that the compiler would make; empty launches make none."""
    found = {_key(call): call for call in calls if 0 not in call.grid and _aligned(call)}
    return list(found.values())


def _key(call: KernelCall) -> Any:
    arguments = tuple((name, _kind(value)) for name, value in call.arguments.items())
    return call.kernel.fn.__name__, arguments, tuple(call.constants.items()), *call.options.items()


def _kind(value: Any) -> Any:
    block = getattr(value, "block_shape", None)
    if block is not None:
        return str(value.base.dtype), tuple(block), *_rounding(value)
    if isinstance(value, Tensor):
        return str(value.dtype)
    if isinstance(value, int):
        return "1" if value == 1 else (value % 16 == 0, value >= 2**31)
    return "float" if isinstance(value, float) else value


def _rounding(descriptor: Any) -> tuple[Any, ...]:
    return (
        getattr(descriptor, "round_f32_to_tf32", False),
        str(getattr(descriptor, "padding", "zero")),
    )


def _aligned(call: KernelCall) -> bool:
    """Whether pointers are as those of tensors without memory count: multiples of 16 bytes."""
    tensors = (getattr(value, "base", value) for value in call.arguments.values())
    return all(
        tensor.is_meta or tensor.data_ptr() % 16 == 0
        for tensor in tensors
        if isinstance(tensor, Tensor)
    )


def _without_memory(call: KernelCall) -> KernelCall:
    def bare(value: Any) -> Any:
        if getattr(value, "block_shape", None) is not None:
            return dataclasses.replace(value, base=bare(value.base))
        if isinstance(value, Tensor):
            return torch.empty_strided(
                value.shape, value.stride(), dtype=value.dtype, device="meta"
            )
        return value

    arguments = {name: bare(value) for name, value in call.arguments.items()}
    return dataclasses.replace(call, arguments=arguments)


def _start() -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
    }
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "ignore", "-m", "fastres.kernels.launch.compile_worker"]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
