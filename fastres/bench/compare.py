"""The comparison at one batch size: each peer is prepared and checked, then all are interleaved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from fastres.bench import cold_start, cpu_load, device, gate, measure
from fastres.bench.cold_start_child import Request
from fastres.bench.peers import catalogue, torch_peers
from fastres.bench.peers.peer import PRECISIONS, QUANTIZED, Job, Peer, Ready
from fastres.bench.record import Batch, Row, anonymous
from fastres.bench.settings import Settings
from fastres.errors import ModelError
from fastres.system.progress import Progress
from fastres.workload import inputs

Call = Callable[[], object]
Entry = tuple[Peer, str]
"""One row of the table: a peer and the precision that it computes in."""

REFERENCE = f"{catalogue.REFERENCE.name}-fp32"
"""The row that is always there, and whose failure ends the run."""


@dataclass(frozen=True)
class Setup:
    """What is the same for all peers and batch sizes.

    Attributes:
        settings: the options of the command line.
        model: the user's model, in float32.
        pool: images, ``[N, C, H, W]``.
        expected: the model's answers to them in float64.
        folder: a temporary folder, in which each peer gets one for its files.
        calibration: other images, for the precisions that need some.
    """

    settings: Settings
    model: nn.Module
    pool: torch.Tensor
    expected: gate.Outputs
    folder: Path
    calibration: torch.Tensor | None = None


def entries(settings: Settings) -> list[Entry]:
    """The rows of each table: the reference, then by precision, fastres last in each."""
    result: list[Entry] = [(catalogue.REFERENCE, "fp32")]
    for precision in (p for p in PRECISIONS[settings.device.type] if p in settings.precisions):
        peers = (
            peer
            for name, peer in catalogue.PEERS.items()
            if name in settings.peers and precision in peer.precisions
        )
        result += [(peer, precision) for peer in (*peers, catalogue.FASTRES)]
    return list(dict.fromkeys(result))


def needs_calibration(entries: Sequence[Entry]) -> bool:
    """Whether a precision among them takes ranges from images."""
    return any(precision in QUANTIZED for _, precision in entries)


def run_batch(
    setup: Setup, entries: Sequence[Entry], batch: int, *, cold: bool, progress: Progress
) -> Batch:
    """Measure every entry at one batch size.

    Args:
        setup: what is the same for all batch sizes.
        entries: the rows, the reference first.
        batch: images per call.
        cold: whether cold start and peak memory are measured too.
        progress: shows what is being done.

    Raises:
        ModelError: eager itself cannot run the model, or its answers are rounding noise.
    """
    settings = setup.settings
    torch_peers.reset_compiler()
    checked = inputs.images_checked(batch)
    expected = setup.expected.first(checked)
    request = None
    if cold:
        request = cold_start.save(
            setup.model,
            settings.source,
            setup.pool[:batch],
            settings.seed,
            setup.folder,
            setup.calibration,
        )
    eager_errors = {
        precision: _eager_error(setup, _job(setup, "yardstick", batch, precision), expected)
        for precision in dict.fromkeys(precision for _, precision in entries)
        if precision not in QUANTIZED
    }
    rows: list[Row] = []
    calls: dict[str, Call] = {}
    for done, (peer, precision) in enumerate(entries):
        progress.show(f"batch {batch}: {peer.title} {precision}", done / len(entries))
        row = Row(peer.name, peer.title, precision, "unavailable")
        kind = settings.device.type
        reason = peer.missing(kind) or peer.refuses(precision, kind)
        if reason is None:
            job = _job(setup, peer.name, batch, precision)
            row, call = _prepare_and_check(
                setup, peer, job, request, expected, eager_errors.get(precision)
            )
            if call is not None:
                calls[row.key] = call
        else:
            row = replace(row, reason=reason)
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


def _job(setup: Setup, name: str, batch: int, precision: str) -> Job:
    folder = setup.folder / f"{name}-{precision}-{batch}"
    folder.mkdir()
    return Job(
        model=setup.model,
        example=setup.pool[:batch].to(setup.settings.device),
        precision=precision,
        threads=setup.settings.threads,
        folder=folder,
        cache=folder / "cache",
        calibration=setup.calibration if precision in QUANTIZED else None,
    )


def _eager_error(setup: Setup, job: Job, expected: gate.Outputs) -> float:
    """Eager's error in the job's precision, which the others' errors are multiples of."""
    try:
        _, call = _prepare(catalogue.REFERENCE, job)
        outputs = gate.collect(call, _batches(setup, job, expected))
    except Exception as error:
        raise ModelError(
            f"torch eager itself cannot run the model in {job.precision}: {_error_line(error)}"
        ) from error
    return gate.relative_error(outputs, expected)


def _prepare_and_check(
    setup: Setup,
    peer: Peer,
    job: Job,
    request: Request | None,
    expected: gate.Outputs,
    eager_error: float | None,
) -> tuple[Row, Call | None]:
    """Prepare a peer and check its outputs.

    Returns:
        Its row, still without times, and what to time, or None if it failed.
    """
    row = Row(peer.name, peer.title, job.precision, "failed")
    try:
        if request is not None:
            row = replace(row, fresh=cold_start.measure(request, peer.name, job))
        ready, call = _prepare(peer, job)
        outputs = gate.collect(call, _batches(setup, job, expected))
        definition = None
        if ready.definition is not None:
            definition = gate.collect(ready.definition, _batches(setup, job, expected))
    except Exception as error:  # noqa: BLE001 - whatever a peer raises, its row says it
        return replace(row, reason=_error_line(error)), None
    verdict = gate.judge(
        outputs,
        expected,
        precision=job.precision,
        eager_error=eager_error,
        bound=peer.bound,
        definition=definition,
        is_exact=ready.is_exact,
    )
    row = replace(
        row,
        status="timed" if verdict.reason is None else "failed",
        reason=verdict.reason,
        notes=ready.notes,
        error=gate.finite(verdict.error),
        error_ratio=gate.finite(verdict.ratio),
        top1=verdict.top1,
    )
    if verdict.reason is not None:
        return row, None
    return row, lambda: call(job.example)


def _prepare(peer: Peer, job: Job) -> tuple[Ready, device.Call]:
    """A prepared peer, and its call including the wait for a GPU."""
    if job.device.type == "cuda":
        device.allow_tf32(job.precision == "tf32")
    ready = peer.prepare(job)
    return ready, device.synchronized(ready.call, job.precision, job.device)


def _batches(setup: Setup, job: Job, expected: gate.Outputs) -> list[torch.Tensor]:
    images = setup.pool[: len(expected.values)].split(len(job.example))
    return [batch.to(job.device) for batch in images]


def _error_line(error: Exception) -> str:
    """An exception's type and the first line of its text, without absolute paths."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return anonymous(f"{type(error).__name__}: {line}" if line else type(error).__name__)
