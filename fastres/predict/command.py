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
from fastres.predict import images, model, writing
from fastres.predict.classifier import Classifier
from fastres.predict.images import Decoded
from fastres.predict.results import Choice, Result, as_text, printable, summary
from fastres.predict.settings import parser
from fastres.predict.voice import Voice
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
    given = parser().parse_args(argv)
    errors = Voice(sys.stderr)
    try:
        return _run(given, errors)
    except FastresError as error:
        errors.print(f"fastres predict: {error}")
        return 2
    except KeyboardInterrupt:
        errors.print("fastres predict: interrupted, nothing was written")
        return INTERRUPTED


def _run(given: argparse.Namespace, errors: Voice) -> int:
    files = {kind: getattr(given, kind) for kind in ("csv", "json", "parquet")}
    files = {kind: path for kind, path in files.items() if path is not None}
    for kind, path in files.items():
        writing.check(kind, path)
    wanted = _wanted(given)
    paths = images.find(given.images)
    named = (given.weights, given.labels, given.transforms, Path(given.model))
    writing.check_apart(files, [*paths, *(path for path in named if path is not None)])
    console = Voice(sys.stdout)
    results: list[Result] = []
    with Progress() as progress:
        progress.show(f"preparing {given.model}")
        classifier = model.make(wanted)
        started = time.perf_counter()
        for result in _classified(classifier, paths, given):
            results.append(result)
            if result.error is not None:
                errors.print(f"fastres predict: {printable(result.error)}")
            elif not given.quiet:
                console.print(result.lines())
            if not (files or given.quiet or console.is_heard):
                errors.print("fastres predict: standard output is closed: stopped")
                return 1
            progress.show(f"{len(results)} of {len(paths)}", len(results) / len(paths))
        took = time.perf_counter() - started
        for kind, path in files.items():
            writing.write(kind, path, results, _about(given, classifier))
    errors.print(f"fastres predict: {summary(results, took)}")
    return 1 if any(result.error is not None for result in results) else 0


def _wanted(given: argparse.Namespace) -> model.Wanted:
    return model.Wanted(
        model=given.model,
        weights=given.weights,
        classes=given.classes,
        transforms=given.transforms,
        size=given.size,
        labels=None if given.labels is None else labels.read(given.labels),
        top_k=given.top_k,
        precision=given.precision,
        device=given.device,
        threads=given.threads,
    )


def _classified(
    classifier: Classifier, paths: Sequence[Path], given: argparse.Namespace
) -> Iterator[Result]:
    """A result per file, in order; the next batch is decoded while one is classified."""
    workers = min(target.cpu_threads(), 8)
    decoded = images.decode(paths, classifier.decoding, given.exif, workers, 2 * given.batch)
    for batch in images.in_batches(decoded, given.batch):
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
        answers = classifier([image.pixels for image in chosen if image.pixels is not None])
    except InputError as error:  # an image too small for the network, say
        return [Result(image.path, error=f"{image.path}: {error}") for image in chosen]
    return [_result(image.path, found) for image, found in zip(chosen, answers, strict=True)]


def _result(path: Path, choices: tuple[Choice, ...]) -> Result:
    if all(isfinite(choice.probability) for choice in choices):
        return Result(path, choices)
    return Result(path, error=f"{path}: the model's answer is NaN; are its weights whole?")


def _about(given: argparse.Namespace, classifier: Classifier) -> dict[str, Any]:
    return {
        "fastres": __version__,
        "model": as_text(given.model),
        "weights": None if given.weights is None else as_text(str(given.weights)),
        "precision": classifier.fast.report.precision,
        "engine": classifier.fast.engine,
        "transforms": classifier.transforms.to_dict(),
    }
