"""Recordings by a CUDA device whose driver is scripted: broken, tried again, and cleaned up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastres.runtime.triton.cuda_graph import ATTEMPTS, CudaDevice
from fastres.runtime.triton.device import CannotCompile, CannotRecord

BROKEN = "CUDA error: operation failed due to a previous error during capture"


class Driver:
    """What torch's calls do, and in which order they were made.

    Attributes:
        breaks: recordings that end with an error, one after the other from now on.
        open: recordings of the allocator's and the generator's that were not ended.
    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self.breaks = 0
        self.open = {"allocator": 0, "generator": 0}
        self.recording = threading.local()
        self.at_once = 0
        self.most_at_once = 0
        self.lock = threading.Lock()

    def begin(self) -> None:
        with self.lock:
            self.at_once += 1
            self.most_at_once = max(self.at_once, self.most_at_once)
            self.open["allocator"] += 1
            self.open["generator"] += 1
        self.recording.now = True

    def end(self) -> None:
        self.recording.now = False
        with self.lock:
            self.at_once -= 1
            if self.breaks:
                self.breaks -= 1
                raise RuntimeError(BROKEN)  # as torch before 2.12: nobody is told
            self.open["allocator"] -= 1
            self.open["generator"] -= 1


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()

    class Graph:
        def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
            assert capture_error_mode == "thread_local"
            driver.begin()

        def capture_end(self) -> None:
            driver.end()

        def replay(self) -> None:
            driver.log.append("replay")

    class Stream:
        def __init__(self, device: torch.device) -> None: ...

        def synchronize(self) -> None:
            driver.log.append("synchronise the stream")

    class Generator:
        def clone_state(self) -> str:
            return "fresh"

        def graphsafe_set_state(self, state: str) -> None:
            assert state == "fresh"
            driver.open["generator"] = 0

    def end_allocation(index: int, pool: Any) -> None:
        if not driver.open["allocator"]:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        driver.open["allocator"] -= 1

    def never(*_: Any) -> None:
        raise AssertionError("waits for the whole device, or gives the caller's memory back")

    real_zeros: Callable[..., Any] = torch.zeros
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "default_generators", [Generator()])
    monkeypatch.setattr(torch.cuda, "synchronize", never)
    monkeypatch.setattr(torch.cuda, "empty_cache", never)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end_allocation, raising=False)
    monkeypatch.setattr(torch, "zeros", lambda *size, dtype, device: real_zeros(*size, dtype=dtype))
    return driver


def device() -> CudaDevice:
    return CudaDevice(torch.device("cuda", 0))


def test_a_recording_waits_for_its_own_stream_only(driver: Driver) -> None:
    device().record(lambda: None)()
    assert driver.log == ["synchronise the stream", "replay"]
    assert driver.open == {"allocator": 0, "generator": 0}


def test_a_broken_recording_is_tried_again(driver: Driver) -> None:
    one = device()
    one.record(lambda: None)  # the one that keeps the pool is there then
    driver.breaks = ATTEMPTS - 1
    one.record(lambda: None)()
    assert driver.breaks == 0
    assert driver.open == {"allocator": 0, "generator": 0}


def test_what_breaks_again_and_again_is_not_recorded_and_leaves_nothing_open(
    driver: Driver,
) -> None:
    driver.breaks = 10 * ATTEMPTS
    with pytest.raises(CannotRecord, match="operation failed due to a previous error"):
        device().record(lambda: None)
    assert driver.open == {"allocator": 0, "generator": 0}
    driver.breaks = 0
    device().record(lambda: None)()


def test_the_operator_that_broke_it_is_named(driver: Driver) -> None:
    runs = 0

    def program() -> None:
        nonlocal runs
        runs += 1
        if getattr(driver.recording, "now", False):
            raise RuntimeError("aten::bincount waits for the device")

    one = device()
    one.record(lambda: None)
    driver.breaks = ATTEMPTS
    with pytest.raises(CannotRecord, match="aten::bincount waits for the device"):
        one.record(program)
    assert runs == 1 + ATTEMPTS
    assert driver.open == {"allocator": 0, "generator": 0}


def test_no_memory_and_an_interrupt_are_passed_on(driver: Driver) -> None:
    for error in (torch.OutOfMemoryError("no"), KeyboardInterrupt()):

        def program(error: BaseException = error) -> None:
            if getattr(driver.recording, "now", False):
                raise error

        one = device()
        one.record(lambda: None)
        with pytest.raises(type(error)):
            one.record(program)
        assert driver.open == {"allocator": 0, "generator": 0}
        one.record(lambda: None)()


def test_engines_of_one_device_record_one_after_the_other(driver: Driver) -> None:
    def prepare() -> None:
        one = device()
        for _ in range(20):
            one.record(lambda: None)

    threads = [threading.Thread(target=prepare) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert driver.most_at_once == 1


def test_whatever_the_compiler_raises_is_a_refusal(driver: Driver) -> None:
    class Kernel:
        def warmup(self, **_: Any) -> None:
            raise RuntimeError("PassManager::run failed")

    from fastres.kernels.launch.call import KernelCall

    call = KernelCall(Kernel(), (1, 1, 1), {}, {})
    with pytest.raises(CannotCompile, match="PassManager::run failed"):
        device().compile([call])
    device().compile([KernelCall(Kernel(), (0, 1, 1), {}, {})])  # nothing to do: never compiled
