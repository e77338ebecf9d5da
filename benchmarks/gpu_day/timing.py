"""Times of work on the GPU; in a rehearsal made up, and marked as such."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu_day.settings import REHEARSED


class Recording:
    """A caller's own CUDA graph of a call; in a rehearsal the call is made again.

    Attributes:
        result: what the call returned, into which every replay writes.
    """

    def __init__(self, call: Callable[[], Any], warm: int = 0) -> None:
        self._call = call
        if REHEARSED:
            self.result = call()
            return
        stream, self._graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(warm):
                call()
            with torch.cuda.graph(self._graph, stream=stream):
                self.result = call()
        torch.cuda.current_stream().wait_stream(stream)

    def replay(self) -> Any:
        """Do it again; the result."""
        if REHEARSED:
            with torch.inference_mode():
                self.result.copy_(self._call())
        else:
            self._graph.replay()
        return self.result


def graph_time(run: Callable[[], object], launches: int = 20, rounds: int = 9) -> float:
    """Microseconds of one run: the median over replays of a CUDA graph of ``launches`` of them."""
    if REHEARSED:
        run()
        return 1000.0

    def every() -> None:
        for _ in range(launches):
            run()

    for _ in range(3):
        run()
    recorded = Recording(every)
    times: list[float] = []
    for _ in range(rounds + 2):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        recorded.replay()
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended) * 1e3 / launches)
    return statistics.median(times[2:])


def call_times(call: Callable[[], object], seconds: float = 0.8) -> dict[str, Any]:
    """Microseconds per call: waiting for each (latency), and one after the other (throughput)."""
    if REHEARSED:
        call()
        made_up = {"latency_us": 1000.0, "least_us": 1000.0, "back_to_back_us": 900.0}
        return {**made_up, "rehearsed": True}
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    single: list[float] = []
    until = time.perf_counter() + seconds / 2
    while len(single) < 5 or time.perf_counter() < until:
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        single.append((time.perf_counter() - start) * 1e6)
    typical = statistics.median(single)
    rounds, count = [], max(3, int(seconds / 8 * 1e6 / typical))
    for _ in range(4):
        began, over = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        for _ in range(count):
            call()
        over.record()
        over.synchronize()
        rounds.append(began.elapsed_time(over) * 1e3 / count)
    return {"latency_us": typical, "least_us": min(single), "back_to_back_us": min(rounds)}
