"""A CUDA device: a stream of the engine's own beside the caller's, and CUDA graphs.

All executables of an engine work in one stream, in order, so that they can share memory whatever
streams and threads they are called from. The stream waits for the caller's current one, and the
caller's waits for it; nothing waits for the host.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fastres.kernels.call import KernelCall
from fastres.runtime.gpu.device import CannotRecord


class CudaDevice:
    """See :class:`fastres.runtime.gpu.device.Device`; works for ROCm as well.

    Args:
        device: one with an index, which need not be the current device.
    """

    records = True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

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

    def launch(self, calls: Sequence[KernelCall]) -> None:
        for call in calls:
            call.run()

    def record(self, program: Callable[[], None]) -> Callable[[], None]:
        # The first run compiles kernels and lets libraries set themselves up.
        program()
        self.synchronise()
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may allocate meanwhile, which is none of this graph's business.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                program()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.synchronise()
            raise CannotRecord(str(error).splitlines()[0]) from error
        return graph.replay

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
