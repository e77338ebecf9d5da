"""What ``python -m fastres.bench`` does, step by step."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fastres.bench import record as records
from fastres.bench import settings as command_line
from fastres.bench import table
from fastres.bench.peers.catalogue import FASTRES
from fastres.bench.record import Record
from fastres.bench.settings import Settings
from fastres.errors import FastresError, OptionError
from fastres.system.progress import Progress


def run(argv: Sequence[str] | None) -> int:
    """Read the options, measure or read a record, and show it.

    Returns:
        The exit status.
    """
    try:
        settings = command_line.parse(argv)
        return _show(settings, _record(settings, sys.argv[1:] if argv is None else argv))
    except FastresError as error:
        print(f"fastres bench: {error}", file=sys.stderr)
        return 2


def _record(settings: Settings, command: Sequence[str]) -> Record:
    if settings.from_record is not None:
        return records.read(settings.from_record)
    from fastres.bench import compare, run

    _must_be_among(
        settings.reference,
        {f"{peer.name}-{precision}" for peer, precision in compare.entries(settings)},
    )
    with Progress() as progress:
        record = run.run(settings, command, progress)
    if settings.json is not None:
        records.write(record, settings.json)
    return record


def _show(settings: Settings, record: Record) -> int:
    _must_be_among(settings.reference, {row.key for batch in record.batches for row in batch.rows})
    if settings.markdown:
        print(table.markdown(record, settings.reference))
    else:
        table.show(record, settings.reference)
    if settings.plot is not None:
        from fastres.bench import plot

        plot.draw(record, settings.plot)
    failed = [
        row
        for batch in record.batches
        for row in batch.rows
        if row.name == FASTRES.name and row.status == "failed"
    ]
    for row in failed:
        print(f"fastres bench: {row.key} failed its check: {row.reason}", file=sys.stderr)
    return 1 if failed else 0


def _must_be_among(reference: str, keys: set[str]) -> None:
    if reference not in keys:
        raise OptionError(f"--reference {reference}: expected one of {', '.join(sorted(keys))}")
