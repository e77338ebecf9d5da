"""The stage ``engine``: what only a GPU can say of recordings, memory, threads and tuning."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fastres
from benchmarks.gpu_day.networks import network, optimised
from benchmarks.gpu_day.results import Job, Record
from benchmarks.gpu_day.settings import DEVICE, REHEARSED, TUNING, synchronise
from benchmarks.gpu_day.timing import Recording

MODEL = "tiny" if REHEARSED else "cifar_resnet20"
OTHER_SHAPES = 3 if REHEARSED else 40
"""More than an optimised module keeps ready."""

BATCHES = (1, 2, 3, 4, 5)


def softmaxed(model: str = MODEL) -> tuple[nn.Module, Tensor]:
    """A network whose last step is torch's."""
    net, pool = network(model)
    return nn.Sequential(net, nn.Softmax(1)).eval(), pool


def callers_graph() -> Record:
    """Results are right after the caller recorded a call of his own, and so is his replay."""
    net, pool = softmaxed()
    fast = optimised(net, "fp16", pool)
    expected = [fast(pool[i : i + 2]).clone() for i in (0, 2)]
    x = pool[:2].clone()
    recording = Recording(lambda: fast(x))
    after = [torch.equal(fast(pool[i : i + 2]), expected[n]) for n, i in enumerate((0, 2))]
    replayed = []
    for number, first in enumerate((2, 0)):
        x.copy_(pool[first : first + 2])
        replayed.append(torch.equal(recording.replay(), expected[1 - number]))
    synchronise()
    return {"ok": all(after) and all(replayed), "calls after it": after, "replays": replayed}


def two_threads() -> Record:
    """Models made ready side by side are all recorded."""
    plans: list[str] = []
    failed: list[str] = []

    def optimise_and_call() -> None:
        try:
            net, pool = network(MODEL)
            fast = optimised(net, "fp16", pool)
            for batch in BATCHES[1:3] if REHEARSED else BATCHES[1:]:
                fast(pool[:batch])
                plans.append(fast.program(pool[:batch]).splitlines()[0])
        except Exception as error:  # noqa: BLE001 - of another thread: told in the result
            failed.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=optimise_and_call) for _ in range(3)]
    for thread in threads:
        thread.start()
        if REHEARSED:  # the interpreter is for one thread
            thread.join()
    for thread in threads:
        thread.join()
    alone = [plan for plan in plans if "one by one" in plan]
    expected = 3 * (2 if REHEARSED else 4)
    good = len(plans) == expected and not failed and not (alone and not REHEARSED)
    return {"ok": good, "plans": len(plans), "not recorded": len(alone), "raised": failed}


class Counts(nn.Module):
    """Has a step that waits for the device, and so cannot be recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Count what comes out."""
        return torch.bincount(self.conv(x).flatten().abs().long().clamp(max=3), minlength=4)


def after_a_failed_recording() -> Record:
    """A model that cannot be recorded does not break torch's allocator, generator or the next."""
    x = torch.randn(1, 3, 32, 32, dtype=torch.float32, device=DEVICE)
    with contextlib.suppress(fastres.FastresError):
        fast = fastres.optimize(Counts().eval().to(DEVICE), x, engine="triton")
        fast(x)
    if not REHEARSED:
        torch.cuda.empty_cache()  # raises where the allocator believes in a recording,
    torch.randn(1, dtype=torch.float32, device=DEVICE)  # and this where the generator does
    net, pool = network(MODEL)
    fast = optimised(net, "fp16", pool)
    plan = fast.program(pool[:1]).splitlines()[0]
    return {"ok": "one graph" in plan or REHEARSED, "plan": plan}


def outlives_its_executable() -> Record:
    """A caller's graph is right after the executable was dropped and its memory used by others."""
    net, pool = softmaxed("tiny")
    fast = optimised(net, "fp16", pool)
    x = pool[:1].clone()
    expected = fast(x).clone()
    recording = Recording(lambda: fast(x))
    for number in range(OTHER_SHAPES):
        fast(torch.zeros(number + 2, *pool.shape[1:], dtype=pool.dtype, device=DEVICE))
    count = 2**10 if REHEARSED else 2**29
    used = [torch.full((count,), torch.nan, dtype=torch.float32, device=DEVICE) for _ in range(2)]
    replayed = recording.replay()
    synchronise()
    written = any(bool((~tensor.isnan()).any()) for tensor in used)
    return {"ok": torch.equal(replayed, expected) and not written, "wrote into others": written}


def profile() -> Record:
    """A profile of a plan with steps that launch nothing, or are torch's."""
    net, pool = softmaxed()
    measured = optimised(net, "fp16", pool).profile(pool[:1] if REHEARSED else pool[:8])
    return {"ok": True, "profile": str(measured)[:2000]}


def tuning_beside_calls() -> Record:
    """Calls of a shape that is known are right while another thread tunes one that is not."""
    os.environ["FASTRES_CACHE_DIR"] = str(TUNING)
    net, pool = network("tiny")
    fast = optimised(net, "fp16", pool, tune=True)
    expected = fast(pool[:1]).clone()
    failed: list[str] = []

    def tune() -> None:
        try:
            fast(pool[:2])
        except Exception as error:  # noqa: BLE001 - of another thread: told in the result
            failed.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=tune)
    thread.start()
    calls = differing = 0
    while calls < 2 or thread.is_alive():
        differing += not torch.equal(fast(pool[:1]), expected)
        calls += 1
    thread.join()
    return {
        "ok": not differing and not failed,
        "calls": calls,
        "others": differing,
        "raised": failed,
    }


CHECKS: tuple[Callable[[], dict[str, Any]], ...] = (
    callers_graph,
    outlives_its_executable,
    two_threads,
    profile,
    after_a_failed_recording,  # where it is not mended it spoils the process
    tuning_beside_calls,
)


def engine() -> list[Job]:
    """The checks, by their names."""
    return [Job(check.__name__, functools.partial(_checked, check)) for check in CHECKS]


def _checked(check: Callable[[], Record]) -> Record:
    result = check()
    return result if result["ok"] else result | {"checked": (check.__doc__ or "").strip()}
