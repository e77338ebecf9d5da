"""One run of the bench, from the model's name to the record."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastres.bench import compare, gate, revision
from fastres.bench.peers import peer
from fastres.bench.record import Record, anonymous
from fastres.bench.settings import Settings
from fastres.errors import OptionError
from fastres.system import target
from fastres.system.progress import Progress
from fastres.workload import inputs, model_source


def run(
    settings: Settings,
    command: Sequence[str],
    progress: Progress,
    entries: Sequence[compare.Entry] | None = None,
) -> Record:
    """Measure what the settings ask for.

    Args:
        settings: from the command line.
        command: the command line itself, for the record.
        progress: is told what happens.
        entries: who takes part, the reference first; None for those that the settings name.

    Raises:
        OptionError: the model cannot be built, or the images do not fit it.
        InputError: a photograph cannot be read.
        ModelError: eager cannot run the model.
    """
    with _threads(settings.threads), tempfile.TemporaryDirectory(prefix="fastres-bench-") as folder:
        progress.show(f"building {settings.source}")
        environment = target.environment()
        if settings.device.type == "cuda":
            environment["gpu"] = {
                **asdict(target.gpu(settings.device)),
                "cuda": torch.version.cuda,
                "hip": torch.version.hip,
                "cudnn": torch.backends.cudnn.version(),
            }
        model = model_source.build(settings.source, settings.seed)
        entries = compare.entries(settings) if entries is None else entries
        count = inputs.CALIBRATION_IMAGES if compare.needs_calibration(entries) else 0
        pool, calibration, images = _pool(settings, model, count)
        weights = ["as the function returned them"]
        if settings.source.has_random_weights:
            known = pool if calibration is None else torch.cat([pool, calibration])
            weights = inputs.calibrate_random_weights(model, known, settings.seed)
        progress.show(f"{len(pool)} images through {settings.source} in float64")
        expected = gate.float64_outputs(model, pool)
        setup = compare.Setup(settings, model, pool, expected, Path(folder), calibration)
        batches = []
        for position, batch in enumerate(settings.batches):
            cold = settings.cold == "each" or (settings.cold == "first" and position == 0)
            batches.append(compare.run_batch(setup, entries, batch, cold=cold, progress=progress))
    return Record(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        command=tuple(map(anonymous, command)),
        revision=revision.of_fastres(),
        environment=environment,
        settings=_settings_json(settings),
        model={
            "name": str(settings.source),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "weights": weights,
            **images,
        },
        batches=tuple(batches),
    )


def _pool(
    settings: Settings, model: nn.Module, calibration: int
) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, str]]:
    """The images [N, C, H, W], others to calibrate with, and descriptions for the record.

    Random weights are fitted to both, as trained ones are to images like those of either kind: the
    largest logits, too, have to be among what calibration sees.
    """
    count = inputs.pool_size(settings.batches)
    channels = inputs.input_channels(model)
    seed = settings.seed
    if settings.images is None:
        pool = inputs.synthetic_images(count, channels, settings.size, seed)
        described = {"images": f"{count} synthetic ones, seed {seed}"}
        if not calibration:
            return pool, None, described
        others = inputs.synthetic_images(
            calibration, channels, settings.size, seed + inputs.CALIBRATION_SEED
        )
        described["calibration"] = f"{calibration} other synthetic images"
        return pool, others, described
    if channels != 3:
        raise OptionError(f"--images: the model takes {channels} channels, photographs have 3")
    photographs, distinct = inputs.photographs(settings.images, count + calibration, settings.size)
    described = {"images": f"{count} photographs"}
    if distinct < count:
        described["images"] = f"{distinct} photographs, repeated to {count}"
    if not calibration:
        return photographs, None, described
    same = count + calibration - max(distinct, count)
    described["calibration"] = f"{calibration} photographs"
    if same > 0:
        described["calibration"] += f", {same} of them of those that are timed"
    return photographs[:count], photographs[count:], described


def _settings_json(settings: Settings) -> dict[str, Any]:
    """The settings that the result depends on, as JSON."""
    return {
        "size": settings.size,
        "device": str(settings.device),
        "precisions": list(settings.precisions),
        "peers": list(settings.peers),
        "threads": settings.threads,
        "seconds": settings.seconds,
        "seed": settings.seed,
        "bounds": {
            "fastres_times_eager": peer.FASTRES_BOUND,
            "peers_times_eager": peer.PEER_BOUND,
            "absolute": gate.ABSOLUTE,
        },
    }


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """A context in which torch uses ``count`` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
