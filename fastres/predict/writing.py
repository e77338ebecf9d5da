"""Results as files: CSV and Parquet with a row per image and class, JSON with an entry per image.

A file is there whole or not at all. An image that could not be classified has one row, or entry,
with the reason.
"""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastres.errors import OptionError
from fastres.predict.results import Result, as_text
from fastres.system.files import atomic_write, refuse_special

COLUMNS = ("image", "rank", "class", "label", "probability", "error")
"""Of CSV and Parquet; ``rank`` counts from 1, the likeliest."""


def check(kind: str, path: Path) -> None:
    """Find out before the work whether a file of this kind can be written there.

    Raises:
        OptionError: it cannot, or a package that it needs is not installed.
    """
    if kind == "parquet" and find_spec("pyarrow") is None:
        raise OptionError("--parquet needs pyarrow: pip install 'fastres[parquet]'")
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a directory")
        refuse_special(path)
        with tempfile.NamedTemporaryFile(dir=path.absolute().parent, prefix=".fastres"):
            pass
    except OSError as error:
        raise OptionError(f"--{kind} {path}: cannot be written: {error}") from error


def check_no_overwrite(outputs: Mapping[str, Path], read: Iterable[Path]) -> None:
    """Find out before the work whether a file would replace another, or one that is read.

    Raises:
        OptionError: two outputs are one file, or one is an image or the weights.
    """
    # Path.resolve() raises for a link that leads to itself.
    known = {os.path.realpath(path): "is read here" for path in read}
    for kind, path in outputs.items():
        resolved = os.path.realpath(path)
        if resolved in known:
            raise OptionError(f"--{kind} {path}: this file {known[resolved]}; give another name")
        known[resolved] = f"is --{kind} already"


def write(kind: str, path: Path, results: Sequence[Result], about: Mapping[str, Any]) -> None:
    """Write the results.

    Args:
        kind: ``csv``, ``json`` or ``parquet``.
        path: the file; where there is one, it is replaced.
        results: one per image, in order.
        about: what the results were made with, for JSON and Parquet.

    Raises:
        OptionError: the file cannot be written; one that was there is as it was.
    """
    try:
        with atomic_write(path) as temporary:
            _WRITERS[kind](temporary, results, about)
    except OSError as error:
        raise OptionError(f"--{kind} {path}: cannot be written: {error}") from error


def _rows(results: Sequence[Result]) -> Iterator[tuple[Any, ...]]:
    for result in results:
        if result.error is not None:
            yield result.image, None, None, None, None, as_text(result.error)
        for rank, choice in enumerate(result.choices, start=1):
            yield result.image, rank, choice.index, choice.label, choice.probability, None


def _csv(path: Path, results: Sequence[Result], about: Mapping[str, Any]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(_rows(results))


def _json(path: Path, results: Sequence[Result], about: Mapping[str, Any]) -> None:
    images = [
        {
            "image": result.image,
            "predictions": [
                {"class": c.index, "label": c.label, "probability": c.probability}
                for c in result.choices
            ],
            "error": None if result.error is None else as_text(result.error),
        }
        for result in results
    ]
    with path.open("w", encoding="utf-8") as file:
        json.dump({**about, "images": images}, file, ensure_ascii=False, indent=1)
        file.write("\n")


def _parquet(path: Path, results: Sequence[Result], about: Mapping[str, Any]) -> None:
    import pyarrow
    from pyarrow import parquet

    types = (
        pyarrow.string(),
        pyarrow.int32(),
        pyarrow.int32(),
        pyarrow.string(),
        pyarrow.float64(),
        pyarrow.string(),
    )
    schema = pyarrow.schema(
        list(zip(COLUMNS, types, strict=True)), metadata={"fastres": json.dumps(about)}
    )
    columns = list(zip(*_rows(results), strict=True)) or [() for _ in COLUMNS]
    arrays = [pyarrow.array(values, kind) for values, kind in zip(columns, types, strict=True)]
    parquet.write_table(pyarrow.Table.from_arrays(arrays, schema=schema), path)


_WRITERS: dict[str, Callable[[Path, Sequence[Result], Mapping[str, Any]], None]] = {
    "csv": _csv,
    "json": _json,
    "parquet": _parquet,
}
