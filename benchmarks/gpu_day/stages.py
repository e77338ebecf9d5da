"""The stages in order of worth: what each does, how long it may take, and what runs beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gpu_day import (
    compiling,
    engine,
    facts,
    faults,
    kernel_cases,
    layers,
    models,
    networks,
    suites,
)
from benchmarks.gpu_day.results import DEVICE_IS_GONE, DeviceIsGone, Job, Results
from benchmarks.gpu_day.settings import REHEARSED
from fastres.system import versions


@dataclass(frozen=True)
class Options:
    """What a stage is told, beside its name.

    Attributes:
        folder: of its results.
        earlier: a folder of an earlier run, whose results are not made again.
        only: the key of the one result to make, to reproduce it.
        most: results at most.
        autotune: whether torch.compile may tune for minutes.
        fault: kinds of faults to put in.
        again: whether this process follows one that lost the device.
    """

    folder: Path
    earlier: Path | None = None
    only: str | None = None
    most: int | None = None
    autotune: bool = False
    fault: str = ""
    again: bool = False


@dataclass(frozen=True)
class Stage:
    """One process.

    Attributes:
        group: stages of one run side by side, one group after the other.
        seconds: that it may take in a day of eight minutes.
        jobs: what it does.
        niceness: how far it stands back for those beside it.
        interpreted: whether it needs Triton's interpreter in a rehearsal.
        prefix: a program that runs it, except in a rehearsal.
        environment: of its process, except in a rehearsal.
    """

    group: int
    seconds: float
    jobs: Callable[[Options], list[Job]]
    niceness: int = 0
    interpreted: bool = False
    prefix: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


STAGES: dict[str, Stage] = {
    "facts": Stage(1, 45, lambda options: facts.facts()),
    "engine": Stage(2, 115, lambda options: engine.engine(), interpreted=True),
    "small": Stage(
        2,
        100,
        lambda options: kernel_cases.small(),
        niceness=5,
        interpreted=True,
        prefix=("compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9"),
        environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    ),
    "kernels": Stage(2, 100, lambda options: kernel_cases.kernels(), niceness=2, interpreted=True),
    "networks": Stage(2, 115, lambda options: networks.networks(), niceness=3, interpreted=True),
    "tests": Stage(2, 120, lambda options: suites.tests(options.folder), niceness=10),
    "warm": Stage(2, 110, lambda options: models.warm(), niceness=10),
    "amx": Stage(2, 100, lambda options: suites.amx(options.folder), niceness=15),
    "compile": Stage(2, 100, lambda options: compiling.compile_here(options.folder), niceness=15),
    "models": Stage(3, 130, lambda options: models.models(options.autotune), interpreted=True),
    "layers": Stage(4, 95, lambda options: layers.layers(options.most)),
    "amx_layers": Stage(5, 30, lambda options: suites.amx_layers(options.folder)),
    "ncu": Stage(6, 40, lambda options: layers.ncu(options.folder)),
}

SANITIZER_FOUND = 9
"""Exit status of a stage whose memory accesses were not all right."""


def run(name: str, options: Options) -> int:
    """A stage in this process; its exit status."""
    stage = STAGES[name]
    jobs = stage.jobs(options)
    if options.only is not None:
        jobs = [job for job in jobs if job.key == options.only]
    jobs = jobs[: options.most]
    reason = versions.why_not_interpreted() if REHEARSED and stage.interpreted else None
    if reason is not None:
        jobs = [dataclasses.replace(job, work=_cannot(reason)) for job in jobs]
    faults.seed(options.fault)
    results = Results(options.folder, name, options.earlier)
    try:
        results.run(jobs, options.again)
    except DeviceIsGone:
        return DEVICE_IS_GONE
    return 0


def _cannot(reason: str) -> Callable[[], dict[str, str]]:
    return lambda: {"skipped": f"cannot be rehearsed: {reason}"}
