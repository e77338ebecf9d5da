"""One table: everybody made ready and checked at one batch size, then timed in turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from fastres.bench import cold_start, cpu_load, device, gate, measure
from fastres.bench.cold_start_child import Request
from fastres.bench.peers import catalogue, torch_peers
from fastres.bench.peers.peer import PRECISIONS, Contender, Job, Ready
from fastres.bench.record import Batch, Row, anonymous
from fastres.bench.settings import Settings
from fastres.errors import ModelError
from fastres.system.progress import Progress
from fastres.workload import inputs

Call = Callable[[], object]
Entry = tuple[Contender, str]
"""A contender and the precision that it computes in."""

REFERENCE = f"{catalogue.REFERENCE.name}-fp32"
"""The row that is always there."""


@dataclass(frozen=True)
class Stage:
    """What is the same for all contenders and batch sizes.

    Attributes:
        settings: the command line's.
        model: in float32.
        pool: images, ``[N, C, H, W]``.
        truth: the model's answers to them in float64.
        folder: for everybody's files.
    """

    settings: Settings
    model: nn.Module
    pool: torch.Tensor
    truth: gate.Answers
    folder: Path


def entries(settings: Settings) -> list[Entry]:
    """Who stands in each table: the reference first, then by precision, fastres last in each."""
    found: list[Entry] = [(catalogue.REFERENCE, "fp32")]
    for precision in (p for p in PRECISIONS[settings.device.type] if p in settings.precisions):
        peers = (peer for name, peer in catalogue.PEERS.items() if name in settings.peers)
        found += [(peer, precision) for peer in (*peers, catalogue.FASTRES)]
    return list(dict.fromkeys(found))


def hold(
    stage: Stage, entries: Sequence[Entry], batch: int, *, cold: bool, progress: Progress
) -> Batch:
    """Fill the table for one batch size.

    Args:
        stage: what there is.
        entries: who takes part, the reference first.
        batch: images per call.
        cold: whether cold start and peak memory are measured too.
        progress: is told what happens.

    Raises:
        ModelError: eager itself cannot run the model, or its answers are rounding noise.
    """
    settings = stage.settings
    torch_peers.forget_compiled()
    checked = inputs.images_checked(batch)
    truth = stage.truth.first(checked)
    request = None
    if cold:
        request = cold_start.save(
            stage.model, settings.source, stage.pool[:batch], settings.seed, stage.folder
        )
    eager_errors = {
        precision: _eager_error(stage, _job(stage, "yardstick", batch, precision), truth)
        for precision in dict.fromkeys(precision for _, precision in entries)
    }
    rows: list[Row] = []
    calls: dict[str, Call] = {}
    for done, (contender, precision) in enumerate(entries):
        progress.show(f"batch {batch}: {contender.title} {precision}", done / len(entries))
        row = Row(contender.name, contender.title, precision, "unavailable")
        kind = settings.device.type
        absent = contender.missing(kind) or contender.refuses(precision, kind)
        if absent is None:
            job = _job(stage, contender.name, batch, precision)
            row, call = _admit(stage, contender, job, request, truth, eager_errors[precision])
            if call is not None:
                calls[row.key] = call
        else:
            row = replace(row, reason=absent)
        rows.append(row)
    if REFERENCE not in calls:
        raise ModelError(f"the reference cannot be timed: {rows[0].reason}")
    watch = cpu_load.Watch()
    times = measure.interleave(
        calls,
        measure.Plan(seconds=settings.seconds, seed=settings.seed),
        on_round=lambda done, part: progress.show(f"batch {batch}: round {done}", part),
    )
    share = watch.share()
    timed = (replace(row, samples_ns=tuple(times.get(row.key, ()))) for row in rows)
    return Batch(batch, checked, share, tuple(timed))


def _job(stage: Stage, name: str, batch: int, precision: str) -> Job:
    folder = stage.folder / f"{name}-{precision}-{batch}"
    folder.mkdir()
    return Job(
        model=stage.model,
        example=stage.pool[:batch].to(stage.settings.device),
        precision=precision,
        threads=stage.settings.threads,
        folder=folder,
        cache=folder / "cache",
    )


def _eager_error(stage: Stage, job: Job, truth: gate.Answers) -> float:
    """Eager's error in the job's precision, which the others' errors are multiples of."""
    try:
        _, call = _ready(catalogue.REFERENCE, job)
        given = gate.collect(call, _batches(stage, job, truth))
    except Exception as error:
        raise ModelError(
            f"torch eager itself cannot run the model in {job.precision}: {_sentence(error)}"
        ) from error
    return gate.relative_error(given, truth)


def _admit(
    stage: Stage,
    contender: Contender,
    job: Job,
    request: Request | None,
    truth: gate.Answers,
    eager_error: float,
) -> tuple[Row, Call | None]:
    """Make a contender ready and check its answers.

    Returns:
        Its row, still without times, and what to time, or None if it failed.
    """
    row = Row(contender.name, contender.title, job.precision, "failed")
    try:
        if request is not None:
            row = replace(row, fresh=cold_start.measure(request, contender.name, job))
        ready, call = _ready(contender, job)
        given = gate.collect(call, _batches(stage, job, truth))
    except Exception as error:  # noqa: BLE001 - whatever a contender raises, its row says it
        return replace(row, reason=_sentence(error)), None
    verdict = gate.judge(
        given,
        truth,
        precision=job.precision,
        eager_error=eager_error,
        bound=contender.bound,
    )
    row = replace(
        row,
        status="timed" if verdict.complaint is None else "failed",
        reason=verdict.complaint,
        notes=ready.notes,
        error=gate.finite(verdict.error),
        error_ratio=gate.finite(verdict.ratio),
        top1=verdict.top1,
    )
    if verdict.complaint is not None:
        return row, None
    return row, lambda: call(job.example)


def _ready(contender: Contender, job: Job) -> tuple[Ready, device.Call]:
    """A contender made ready, and its whole call."""
    if job.device.type == "cuda":
        device.allow_tf32(job.precision == "tf32")
    ready = contender.prepare(job)
    return ready, device.complete(ready.call, job.precision, job.device)


def _batches(stage: Stage, job: Job, truth: gate.Answers) -> list[torch.Tensor]:
    images = stage.pool[: len(truth.values)].split(len(job.example))
    return [batch.to(job.device) for batch in images]


def _sentence(error: Exception) -> str:
    """An exception on one line."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return anonymous(f"{type(error).__name__}: {first}" if first else type(error).__name__)
