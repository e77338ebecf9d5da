"""The results of one run of the bench, from which its tables can be printed again: versioned JSON.

No absolute path gets into a record; it may be published as it is. `text_of` and `write_tree` are
how every record is written, those of ``benchmarks/`` too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

from fastres.bench import measure
from fastres.errors import OptionError
from fastres.system.files import atomic_write

SCHEMA = "fastres.bench"
VERSION = 1

Status = Literal["timed", "failed", "unavailable"]


@dataclass(frozen=True)
class ColdStart:
    """Cold start and peak memory of a peer, measured in a process of its own.

    Attributes:
        cold_seconds: from the model built in memory to its first answer: imports, conversion or
            compilation with an empty cache, and the first call.
        cached_seconds: the same in a second process that finds the first one's cache; None for
            peers that leave none.
        export_seconds: of these, for writing the model in another runtime's form; or None.
        peak_bytes: the process's largest resident size from the model built to a few calls later.
        before_bytes: its resident size with the model built, Python and torch included.
        counter: where the peak was read, "VmHWM" or "ru_maxrss" (which begins at the size of the
            process that started this one); "mem_get_info" for a GPU's memory, of which both sizes
            then are, other processes' included.
    """

    cold_seconds: float
    cached_seconds: float | None
    export_seconds: float | None
    peak_bytes: int
    before_bytes: int | None
    counter: str


@dataclass(frozen=True)
class Row:
    """One peer in one precision at one batch size.

    Attributes:
        name, title: of the peer.
        precision: what it computed in.
        status: "timed"; "failed", it answered wrongly or not at all; "unavailable", it does not
            exist here or not in this precision.
        reason: why it is not timed, or None.
        notes: e.g. which of two modes was taken.
        error, error_ratio, top1: see `fastres.bench.gate.Verdict`; None where it gave no
            answers or the number is not finite.
        fresh: cold start and memory, or None if they were not measured.
        samples_ns: nanoseconds per call, the same index is the same round in every row.
    """

    name: str
    title: str
    precision: str
    status: Status
    reason: str | None = None
    notes: tuple[str, ...] = ()
    error: float | None = None
    error_ratio: float | None = None
    top1: float | None = None
    fresh: ColdStart | None = None
    samples_ns: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """Name and precision, e.g. ``compile-bf16``."""
        return f"{self.name}-{self.precision}"


@dataclass(frozen=True)
class Batch:
    """All peers at one batch size.

    Attributes:
        batch: images per call.
        images_checked: how many images' answers were compared with float64.
        others_share: part of all processors' time that other programs had while this was timed, or
            None if the system does not tell.
        rows: the results of each peer and precision, the reference first.
    """

    batch: int
    images_checked: int
    others_share: float | None
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Record:
    """One run of the bench.

    Attributes:
        created: UTC, ISO 8601.
        command: the command line's arguments.
        revision: git revision of fastres, with "+changes" if there are any; None if unknown.
        environment: `fastres.system.target.environment` while measuring.
        settings: model, size, threads, seeds, seconds.
        model: what is known of it: parameters, how its weights came about.
        batches: the results, by batch size.
    """

    created: str
    command: tuple[str, ...]
    revision: str | None
    environment: dict[str, Any]
    settings: dict[str, Any]
    model: dict[str, Any]
    batches: tuple[Batch, ...]


def to_json(record: Record) -> str:
    """The record as text, without absolute paths.

    Raises:
        ValueError: it holds something that JSON has no form for.
    """
    tree = {"schema": SCHEMA, "version": VERSION, **asdict(record)}
    for batch, batch_json in zip(record.batches, tree["batches"], strict=True):
        for row, row_json in zip(batch.rows, batch_json["rows"], strict=True):
            row_json["key"] = row.key
            if row.samples_ns:
                row_json["summary"] = asdict(measure.summarise(row.samples_ns))
    return text_of(tree)


def from_json(text: str, name: str = "the record") -> Record:
    """Read a record. The summaries in it are for other readers; they are not read.

    Raises:
        OptionError: it is no record, or one of another version; ``name`` is in the message.
    """
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise OptionError(f"{name} is not JSON: {error}") from error
    if not isinstance(tree, dict) or tree.get("schema") != SCHEMA:
        raise OptionError(f"{name} is not a record of python -m fastres.bench")
    if tree.get("version") != VERSION:
        raise OptionError(
            f"{name} is a record of version {tree.get('version')}, this fastres reads {VERSION}"
        )
    try:
        batches = tuple(
            Batch(
                batch["batch"],
                batch["images_checked"],
                batch["others_share"],
                tuple(map(_row, batch["rows"])),
            )
            for batch in tree["batches"]
        )
        return Record(
            tree["created"],
            tuple(tree["command"]),
            tree["revision"],
            dict(tree["environment"]),
            dict(tree["settings"]),
            dict(tree["model"]),
            batches,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise OptionError(f"{name} is incomplete or damaged: {error!r}") from error


def write(record: Record, path: Path) -> None:
    """Write the record's file atomically.

    Raises:
        OSError: the file cannot be written; one that was there before still is.
    """
    _replace(path, to_json(record))


def text_of(tree: Any) -> str:
    """A record of any schema as text: lists on one line each, and no absolute paths.

    One number per line would make the thousands of times most of the file. A list of anything but
    numbers is on one line if it fits there, and a list of objects never is.

    Raises:
        ValueError: it holds a number that JSON has no form for.
        TypeError: it holds something that is no JSON at all.
    """
    return _indented(anonymous_record(tree), "") + "\n"


def write_tree(tree: Any, path: Path) -> None:
    """Write a record of any schema, all of it or nothing."""
    _replace(path, text_of(tree))


def _replace(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read(path: Path) -> Record:
    """Read a record's file.

    Raises:
        OptionError: there is none, or `from_json` refuses it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{path} cannot be read: {error}") from error
    return from_json(text, str(path))


def anonymous(text: str) -> str:
    """The text with absolute paths cut down to their last part."""
    return re.sub(r"(?<![\w:/.])(?:/[\w.@+~-]+){2,}/?", lambda m: PurePath(m[0]).name, text)


def anonymous_record(tree: Any) -> Any:
    """The same of every text in a record."""
    if isinstance(tree, str):
        return anonymous(tree)
    if isinstance(tree, dict):
        return {key: anonymous_record(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [anonymous_record(value) for value in tree]
    return tree


_WIDTH = 100
"""Characters of a line that lists of texts may take."""


def _indented(value: Any, indent: str) -> str:
    """JSON, one space of indentation a level, of which the first line is already indented."""
    inner = indent + " "
    if isinstance(value, dict) and value:
        start, end = "{}"
        items = [f"{json.dumps(str(key))}: {_indented(v, inner)}" for key, v in value.items()]
    elif isinstance(value, list) and not _on_one_line(value, indent):
        start, end = "[]"
        items = [_indented(each, inner) for each in value]
    else:
        return json.dumps(value, allow_nan=False)
    lines = f",\n{inner}".join(items)
    return f"{start}\n{inner}{lines}\n{indent}{end}"


def _on_one_line(value: list[Any], indent: str) -> bool:
    leaves = list(_leaves(value))
    if any(isinstance(leaf, dict) for leaf in leaves):
        return False
    numbers = all(isinstance(leaf, (int, float)) for leaf in leaves)
    return numbers or len(indent + json.dumps(value)) <= _WIDTH


def _leaves(value: list[Any]) -> Iterator[Any]:
    for each in value:
        if isinstance(each, list):
            yield from _leaves(each)
        else:
            yield each


def _row(row: dict[str, Any]) -> Row:
    fields = {k: v for k, v in row.items() if k not in ("key", "summary")}
    if fields["status"] not in ("timed", "failed", "unavailable"):
        raise ValueError(f"status {fields['status']!r}")
    if (fields["status"] == "timed") != bool(fields["samples_ns"]):
        raise ValueError(f"{fields['name']}: timed rows, and no others, have times")
    fields["notes"] = tuple(fields["notes"])
    fields["samples_ns"] = tuple(fields["samples_ns"])
    fields["fresh"] = None if fields["fresh"] is None else ColdStart(**fields["fresh"])
    return Row(**fields)
