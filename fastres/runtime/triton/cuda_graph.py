"""A CUDA device: a stream of the engine's own beside the caller's, and CUDA graphs.

All executables of an engine work in one stream, in order, so that they can share memory whatever
streams and threads they are called from. The stream waits for the caller's current one, and the
caller's waits for it; nothing waits for the host.

A recording is not made with ``torch.cuda.graph``, which first waits for the whole device, collects
garbage and gives the caller's cached memory back. Waiting for the whole device from any thread also
breaks whatever another thread records on it, so that two models made ready side by side would keep
breaking each other's recordings.
"""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fastres.kernels.launch.call import KernelCall
from fastres.runtime.triton.device import CannotCompile, CannotRecord

ATTEMPTS = 3
"""Recordings of one program: a wait for the device in a thread of the caller's breaks one, and what
it interrupts is recorded by the next."""

_RECORDING: defaultdict[int | None, threading.Lock] = defaultdict(threading.Lock)
"""By device: held while something is recorded there, by whichever engine of this process."""


class CudaDevice:
    """See :class:`fastres.runtime.triton.device.Device`; works for ROCm as well.

    Args:
        device: one with an index, which need not be the current device.
    """

    records = True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._keeper: torch.cuda.CUDAGraph | None = None

    def allocate(self, nbytes: int) -> Tensor:
        # torch's allocator hands out multiples of 512 bytes.
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        with torch.cuda.device(self.device):
            caller = torch.cuda.current_stream()
            self._stream.wait_stream(caller)
            try:
                with torch.cuda.stream(self._stream):
                    yield
            finally:
                caller.wait_stream(self._stream)

    def copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source, non_blocking=source.is_cuda)

    def compile(self, calls: Sequence[KernelCall]) -> None:
        try:
            for call in calls:
                call.compile()
        except Exception as error:  # its passes raise whatever they like
            raise CannotCompile(f"{type(error).__name__}: {error}") from error

    def launch(self, calls: Sequence[KernelCall]) -> None:
        for call in calls:
            call.run()

    def record(self, program: Callable[[], None]) -> Callable[[], None]:
        # The first run compiles kernels and lets libraries set themselves up.
        program()
        self.synchronise()
        with _RECORDING[self.device.index]:
            if self._keeper is None:
                # torch gives a pool up with its last graph, and refuses to record into it again.
                memory = torch.zeros(1, dtype=torch.float32, device=self.device)
                self._keeper = self._attempts(lambda: memory.zero_())
            return self._attempts(program).replay

    def _attempts(self, program: Callable[[], object]) -> torch.cuda.CUDAGraph:
        """A recording of a program, tried again where something broke it."""
        for _ in range(ATTEMPTS):
            graph, broken = self._attempt(program)
            if graph is not None:
                return graph
        assert broken is not None
        # What ends a broken recording tells less than what broke it.
        cause = broken.__context__ or broken
        raise CannotRecord(str(cause).splitlines()[0]) from broken

    def _attempt(
        self, program: Callable[[], object]
    ) -> tuple[torch.cuda.CUDAGraph | None, RuntimeError | None]:
        try:
            return self._recorded(program), None
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.synchronise()
            return None, error

    def _recorded(self, program: Callable[[], object]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # Other threads may allocate meanwhile, which is none of this graph's business.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            program()
        except BaseException:
            with contextlib.suppress(RuntimeError):
                graph.capture_end()
            self._end_broken_recording()
            raise
        try:
            graph.capture_end()
        except RuntimeError:
            self._end_broken_recording()
            raise
        return graph

    def _end_broken_recording(self) -> None:
        """Tell torch's allocator and generator, which torch before 2.12 leaves recording.

        Otherwise ``empty_cache`` and every random number on the device raise from then on
        (https://github.com/pytorch/pytorch/pull/180395).
        """
        index = torch.cuda.current_device() if self.device.index is None else self.device.index
        with contextlib.suppress(RuntimeError):  # the allocator knows
            torch._C._cuda_endAllocateToPool(index, self._pool)
        generator = torch.cuda.default_generators[index]
        generator.graphsafe_set_state(generator.clone_state())

    def is_being_recorded(self) -> bool:
        return torch.cuda.is_current_stream_capturing()

    def synchronise(self) -> None:
        self._stream.synchronize()

    def time(self, work: Callable[[], None]) -> int:
        started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        started.record()
        work()
        ended.record()
        ended.synchronize()
        return int(started.elapsed_time(ended) * 1e6)
