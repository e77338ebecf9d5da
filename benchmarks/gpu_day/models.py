"""The stage ``models``: ours and torch's at its best, latency and throughput, in order of worth.

And ``warm``, which fills the caches of torch.compile while the GPU is used for answers.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_day import networks
from benchmarks.gpu_day.networks import Network, batch_of, compared, network, ready
from benchmarks.gpu_day.results import Job, Record
from benchmarks.gpu_day.settings import DEVICE, DTYPES, REHEARSED, allow_tf32, synchronise
from benchmarks.gpu_day.timing import Recording, call_times

OURS, EAGER, GRAPH = "fastres", "eager nhwc", "eager nhwc in a graph"
COMPILE, OVERHEAD, AUTOTUNE = "compile", "compile reduce-overhead", "compile max-autotune"
STEPS = "steps"

_MODES = {COMPILE: None, OVERHEAD: "reduce-overhead", AUTOTUNE: "max-autotune"}

Call = Callable[[], Any]


def _eager(model: str, precision: str, images: Tensor) -> Call:
    torch.backends.cudnn.benchmark = True
    net = network(model)[0].to(DEVICE, DTYPES[precision])
    net = net.to(memory_format=torch.channels_last)
    x = images.to(memory_format=torch.channels_last)

    def call() -> Any:
        with torch.inference_mode():
            return net(x)

    return call


def _compiled(model: str, precision: str, images: Tensor, mode: str | None) -> Call:
    from torch._inductor import config

    torch._dynamo.reset()
    torch.backends.cudnn.benchmark = True
    net = network(model)[0].to(DEVICE, DTYPES[precision])
    net = net.to(memory_format=torch.channels_last)
    if REHEARSED:
        fast = torch.compile(net, backend="eager", dynamic=False)
    else:
        fast = torch.compile(net, mode=mode, dynamic=False)
    x = images.to(memory_format=torch.channels_last)

    def call() -> Any:
        with torch.inference_mode():
            return fast(x)

    with config.patch(freezing=True):
        call()
    return call


def prepare(peer: str, model: str, precision: str, images: Tensor) -> Call:
    """A call of one of them on these images."""
    if peer == OURS:
        _, _, fast = ready(model, precision)
        x = images.to(memory_format=torch.channels_last)
        return lambda: fast(x)
    if peer == EAGER:
        return _eager(model, precision, images)
    if peer == GRAPH:
        return Recording(_eager(model, precision, images), warm=3).replay
    return _compiled(model, precision, images, _MODES[peer])


def _timed(peer: str, model: str, precision: str, batch: int) -> Record:
    """Its answer is checked first: a wrong one has no time."""
    _, pool = network(model)
    images = batch_of(pool.to(DTYPES[precision]), batch)
    allow_tf32(precision)
    began = time.perf_counter()
    call = prepare(peer, model, precision, images)
    output = call()
    synchronise()
    ready_s = time.perf_counter() - began
    result = {"batch": batch, "ready_s": ready_s, **compared(model, precision, images, output)}
    return result if not result["ok"] else result | call_times(call)


def _steps(model: str, precision: str, batch: int) -> Record:
    """Device times of our plan by step; with the call's latency they say what the host costs."""
    _, pool, fast = ready(model, precision)
    allow_tf32(precision)
    flat = [batch_of(pool, batch).contiguous(memory_format=torch.channels_last)]
    executable = fast.internals.runner.executable(flat)
    runs = [executable.timed(flat) for _ in range(1 if REHEARSED else 5)]
    rows = [
        (module, operation, min(run[number][2] for run in runs) / 1e3)
        for number, (module, operation, _) in enumerate(runs[0])
    ]
    total = sum(us for _, _, us in rows)
    return {"steps": rows, "sum_us": total, "program": executable.code}


def _order(autotune: bool) -> list[tuple[str, Network]]:
    timed = networks.REHEARSALS if REHEARSED else networks.TIMED
    first = [each for each in timed if each[:2] == timed[0][:2]]
    rest = [each for each in timed if each not in first]
    compiling = [COMPILE, OVERHEAD, *([AUTOTUNE] if autotune else [])]
    plain = (OURS, STEPS, EAGER, GRAPH)
    return [
        *((peer, each) for each in first for peer in plain),
        *((peer, each) for peer in compiling for each in first),
        *((peer, each) for each in rest for peer in plain),
    ]


def models(autotune: bool = False) -> list[Job]:
    """All peers for the first model and precision; others without torch.compile."""
    jobs = []
    for peer, (model, precision, batch) in _order(autotune):
        arguments = {"model": model, "precision": precision, "batch": batch}
        work = functools.partial(_timed, peer, model, precision, batch)
        if peer == STEPS:
            work = functools.partial(_steps, model, precision, batch)
        jobs.append(Job(f"{model} {precision} {batch}: {peer}", work, arguments))
    return jobs


def warm() -> list[Job]:
    """One call of what torch.compile makes, for each batch and mode."""

    def call_once(peer: str, model: str, precision: str, batch: int) -> Record:
        _, pool = network(model)
        images = batch_of(pool.to(DTYPES[precision]), batch)
        prepare(peer, model, precision, images)
        return {"ok": True}

    entries = [each for each in _order(False) if each[0] in (COMPILE, OVERHEAD)]
    return [
        Job(f"{m} {p} {b}: {peer}", functools.partial(call_once, peer, m, p, b))
        for peer, (m, p, b) in sorted(entries, key=lambda each: each[1][2])
    ]
