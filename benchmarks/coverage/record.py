"""The record of the coverage: a row for each architecture, written as soon as it is measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.coverage.operators import Left, Parts
from fastres.bench import record
from fastres.errors import OptionError

SCHEMA = "fastres.coverage"
VERSION = 1


@dataclass(frozen=True)
class Coverage:
    """One architecture in one precision, one image a call.

    Attributes:
        failed: why there is nothing to say, a sentence; None where there is.
        engine: that ran it.
        parts: what of it is native.
        error: relative to float64, of the sample that ``optimize`` checked.
        error_ratio: as a multiple of torch eager's in the same precision; in int8, of that of the
            quantised graph's definition.
        seconds: that ``optimize`` took.
    """

    failed: str | None = None
    engine: str = ""
    parts: Parts | None = None
    error: float | None = None
    error_ratio: float | None = None
    seconds: float = 0.0

    @property
    def is_whole(self) -> bool:
        """Whether every operator is native."""
        return self.parts is not None and not self.parts.left


@dataclass(frozen=True)
class Contender:
    """One way to run an architecture at one batch size.

    Attributes:
        name, title, precision: as in :class:`fastres.bench.record.Row`.
        reason: why it has no times, a sentence, or None.
        error_ratio: as there.
        samples_ns: nanoseconds per call; the same index is the same round for all.
    """

    name: str
    title: str
    precision: str
    reason: str | None
    error_ratio: float | None
    samples_ns: tuple[int, ...]


@dataclass(frozen=True)
class Speed:
    """All contenders at one batch size.

    Attributes:
        failed: why there are none, a sentence, or None.
        images_checked: how many images' answers were compared with float64 before.
        others_share: part of all processors' time that other programs had meanwhile.
        contenders: fastres among them.
    """

    failed: str | None = None
    images_checked: int = 0
    others_share: float | None = None
    contenders: tuple[Contender, ...] = ()


@dataclass(frozen=True)
class Row:
    """One architecture.

    Attributes:
        name, origin, size: see :class:`benchmarks.coverage.architectures.Architecture`.
        parameters: how many; 0 where it could not be built.
        revision: of fastres while it was measured.
        failed: why it is not all there, a sentence, or None: its process crashed, took too long or
            too much memory. What it had measured by then is there.
        stage: what it was measuring last.
        coverage: by precision.
        speed: by batch size.
    """

    name: str
    origin: str
    size: int
    parameters: int = 0
    revision: str | None = None
    failed: str | None = None
    stage: str = ""
    coverage: dict[str, Coverage] = field(default_factory=dict)
    speed: dict[int, Speed] = field(default_factory=dict)

    def missing(self, precisions: Sequence[str], batches: Sequence[int]) -> bool:
        """Whether something of this is still to be measured, or failed with the whole process."""
        is_measured = set(precisions) <= set(self.coverage) and set(batches) <= set(self.speed)
        return not is_measured or self.failed is not None


@dataclass(frozen=True)
class Record:
    """All rows.

    Attributes:
        environment: ``fastres.system.target.environment`` of the run that measured last.
        threads: per call.
        seconds: that contenders of one architecture took turns, per batch size.
        rows: in the order of the table.
    """

    environment: dict[str, Any]
    threads: int
    seconds: float
    rows: tuple[Row, ...]


def write_row(row: Row, path: Path) -> None:
    """Write a row by itself, all of it or nothing: what a child leaves for its parent."""
    record.write_tree(asdict(row), path)


def read_row(path: Path) -> Row:
    """What :func:`write_row` wrote."""
    return _row(json.loads(path.read_text(encoding="utf-8")))


def write(found: Record, path: Path) -> None:
    """Write the record, all of it or nothing."""
    record.write_tree({"schema": SCHEMA, "version": VERSION, **asdict(found)}, path)


def read(path: Path) -> Record:
    """Read a record.

    Raises:
        OptionError: there is none, or it is damaged or of another version.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if tree.get("schema") != SCHEMA or tree.get("version") != VERSION:
            raise OptionError(
                f"{path} is {tree.get('schema')} of version {tree.get('version')}, expected "
                f"{SCHEMA} of version {VERSION}: measure again without --resume"
            )
        return Record(
            dict(tree["environment"]),
            int(tree["threads"]),
            float(tree["seconds"]),
            tuple(map(_row, tree["rows"])),
        )
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise OptionError(
            f"{path} cannot be read as a record of the coverage: {error!r}"
        ) from error


def with_row(found: Record, new: Row, order: Sequence[str]) -> Record:
    """The record with a row, in the place of the one of its name, in the order of names."""
    rows = [*(row for row in found.rows if row.name != new.name), new]
    return replace(found, rows=tuple(sorted(rows, key=lambda row: order.index(row.name))))


def _row(tree: dict[str, Any]) -> Row:
    coverage = {name: _coverage(each) for name, each in tree.pop("coverage").items()}
    speed = {int(batch): _speed(each) for batch, each in tree.pop("speed").items()}
    return Row(**tree, coverage=coverage, speed=speed)


def _coverage(tree: dict[str, Any]) -> Coverage:
    parts = tree.pop("parts")
    if parts is not None:
        left = tuple(Left(**each) for each in parts.pop("left"))
        parts = Parts(**parts, left=left)
    return Coverage(**tree, parts=parts)


def _speed(tree: dict[str, Any]) -> Speed:
    contenders = []
    for each in tree.pop("contenders"):
        samples = tuple(each.pop("samples_ns"))
        contenders.append(Contender(**each, samples_ns=samples))
    return Speed(**tree, contenders=tuple(contenders))
