"""What ``python -m fastres.predict`` does, step by step."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from fastres.errors import FastresError, InputError
from fastres.models import labels
from fastres.predict import calibration, images, model, writing
from fastres.predict.classifier import Classifier
from fastres.predict.images import Decoded
from fastres.predict.results import Choice, Result, as_text, printable, summary
from fastres.predict.settings import parser
from fastres.predict.voice import OutputStream
from fastres.system import target
from fastres.system.progress import Progress
from fastres.version import __version__

INTERRUPTED = 130
"""The exit status that shells give to what Ctrl-C ended."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the program's name; None takes them from ``sys.argv``.

    Returns:
        0, or 1 if an image could not be classified or nobody is left to tell, or 2 for arguments
        that cannot be.
    """
    options = parser().parse_args(argv)
    errors = OutputStream(sys.stderr)
    try:
        return _run(options, errors)
    except FastresError as error:
        errors.print(f"fastres predict: {error}")
        return 2
    except KeyboardInterrupt:
        errors.print("fastres predict: interrupted, nothing was written")
        return INTERRUPTED


def _run(options: argparse.Namespace, errors: OutputStream) -> int:
    files = {kind: getattr(options, kind) for kind in ("csv", "json", "parquet")}
    files = {kind: path for kind, path in files.items() if path is not None}
    for kind, path in files.items():
        writing.check(kind, path)
    paths = images.find(options.images)
    settings = _model_settings(options, paths)
    named = (options.weights, options.labels, options.transforms, Path(options.model))
    others = [] if settings.calibration is None else settings.calibration.paths
    read = [*paths, *others, *(path for path in named if path is not None)]
    writing.check_no_overwrite(files, read)
    console = OutputStream(sys.stdout)
    results: list[Result] = []
    with Progress() as progress:
        progress.show(f"preparing {options.model}")
        classifier = model.make(settings)
        started = time.perf_counter()
        for result in _classified(classifier, paths, options):
            results.append(result)
            if result.error is not None:
                errors.print(f"fastres predict: {printable(result.error)}")
            elif not options.quiet:
                console.print(result.lines())
            if not (files or options.quiet or console.is_open):
                errors.print("fastres predict: standard output is closed: stopped")
                return 1
            progress.show(f"{len(results)} of {len(paths)}", len(results) / len(paths))
        took = time.perf_counter() - started
        for kind, path in files.items():
            writing.write(kind, path, results, _about(options, classifier, settings))
    said = "" if settings.calibration is None else f"; {settings.calibration}"
    errors.print(f"fastres predict: {summary(results, took)}{said}")
    return 1 if any(result.error is not None for result in results) else 0


def _model_settings(options: argparse.Namespace, paths: Sequence[Path]) -> model.ModelSettings:
    return model.ModelSettings(
        model=options.model,
        weights=options.weights,
        classes=options.classes,
        transforms=options.transforms,
        size=options.size,
        labels=None if options.labels is None else labels.read(options.labels),
        top_k=options.top_k,
        precision=options.precision,
        calibration=calibration.chosen(options.precision, options.calibration, paths, options.exif),
        device=options.device,
        threads=options.threads,
    )


def _classified(
    classifier: Classifier, paths: Sequence[Path], options: argparse.Namespace
) -> Iterator[Result]:
    """A result per file, in order; the next batch is decoded while one is classified."""
    workers = min(target.cpu_threads(), 8)
    decoded = images.decode(paths, classifier.decoding, options.exif, workers, 2 * options.batch)
    for batch in images.in_batches(decoded, options.batch):
        results = [Result(image.path, error=image.error) for image in batch]
        for group in images.by_shape(batch):
            for index, result in zip(group, _of_one_shape(classifier, batch, group), strict=True):
                results[index] = result
        yield from results


def _of_one_shape(
    classifier: Classifier, batch: Sequence[Decoded], group: Sequence[int]
) -> list[Result]:
    chosen = [batch[index] for index in group]
    try:
        choices = classifier([image.pixels for image in chosen if image.pixels is not None])
    except InputError as error:  # an image too small for the network, say
        return [Result(image.path, error=f"{image.path}: {error}") for image in chosen]
    return [_result(image.path, found) for image, found in zip(chosen, choices, strict=True)]


def _result(path: Path, choices: tuple[Choice, ...]) -> Result:
    if all(isfinite(choice.probability) for choice in choices):
        return Result(path, choices)
    return Result(path, error=f"{path}: the model's answer is NaN; are its weights whole?")


def _about(
    options: argparse.Namespace, classifier: Classifier, settings: model.ModelSettings
) -> dict[str, Any]:
    used = settings.calibration
    return {
        "fastres": __version__,
        "model": as_text(options.model),
        "weights": None if options.weights is None else as_text(str(options.weights)),
        "precision": classifier.fast.report.precision,
        "calibration": None if used is None else str(used),
        "engine": classifier.fast.engine,
        "transforms": classifier.transforms.to_dict(),
    }
