"""How much of public architectures runs natively, how right it is, and how fast.

    python -m benchmarks.coverage                       # everything, into the record; hours
    python -m benchmarks.coverage --no-speed            # no contenders; half an hour
    python -m benchmarks.coverage --resume              # what the record lacks
    python -m benchmarks.coverage --only densenet121 dla34 --precision fp32
    python -m benchmarks.coverage --from-record         # print the record, and run nothing

Each architecture has random weights, statistics that keep its activations in range, and a process
of its own: one that crashes, or takes too long or too much memory, is a row that says so. For each
precision the row says how many operators the fused graph has, how many native subgraphs a call runs
and their share of its time, and what is left to torch or oneDNN: operator, count, share of the time
and the reason. ``optimize`` has compared every one with float64. Contenders take turns as in
``fastres.bench``, whose checks of answers they have passed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks.coverage import architectures, children, table
from benchmarks.coverage.architectures import Architecture
from benchmarks.coverage.record import Record, Row, read, with_row, write
from fastres.errors import FastresError, OptionError
from fastres.system import target

RECORD = Path(__file__).parent.parent / "results" / "coverage.json"
PRECISIONS = ("fp32", "bf16", "int8")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure or print; the exit status is 1 if a row failed, 2 for options that cannot be."""
    options = _parser().parse_args(argv)
    try:
        if options.from_record is not None:
            print(table.markdown(read(options.from_record)))
            return 0
        return _measure(options)
    except FastresError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _measure(options: argparse.Namespace) -> int:
    wanted = architectures.chosen(options.only)
    _require_packages(wanted)
    batches = () if options.no_speed else tuple(dict.fromkeys(options.batch))
    precisions = tuple(name for name in PRECISIONS if name in options.precision)
    path = options.json or (None if options.only else RECORD)
    if options.resume and path is None:
        raise OptionError("--resume with --only: name the record to go on with by --json")
    threads = target.cpu_threads()
    found = Record(target.environment(), threads, options.seconds, ())
    if options.resume and path is not None and path.exists():
        found = Record(found.environment, threads, options.seconds, read(path).rows)
    names = [each.name for each in architectures.ARCHITECTURES]
    status = 0
    for number, architecture in enumerate(wanted, 1):
        known = next((row for row in found.rows if row.name == architecture.name), None)
        if known is not None and not known.missing(precisions, batches):
            continue
        row = children.run(
            architecture, known, precisions, batches, threads, options.seconds, options.limit
        )
        found = with_row(found, row, names)
        if path is not None:
            write(found, path)
        print(f"{number}/{len(wanted)} {_line(row)}", flush=True)
        status |= int(row.failed is not None)
    print()
    print(table.markdown(found))
    return status


def _line(row: Row) -> str:
    """What a row says, in short."""
    words = [row.name]
    for precision, coverage in row.coverage.items():
        parts = coverage.parts
        if parts is None:
            words.append(f"{precision} failed ({coverage.failed})")
            continue
        left = sum(each.count for each in parts.left)
        words.append(f"{precision} {parts.native_share:.0%} native, {left} left")
    words += [] if row.failed is None else [f"failed: {row.failed}"]
    return "; ".join(words)


def _require_packages(wanted: Sequence[Architecture]) -> None:
    """Refuse before the first process where a package is missing.

    Raises:
        OptionError: one is.
    """
    needed = {each.origin for each in wanted} - {"benchmarks"}
    missing = sorted(name for name in needed if find_spec(name) is None)
    if missing:
        raise OptionError(
            f"{' and '.join(missing)} not installed, which some of the architectures come from: "
            "pip install 'fastres[bench]', or choose others with --only"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--only", nargs="+", default=[], metavar="NAME", help="architectures by name")
    add("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    add("--batch", nargs="+", type=int, default=[1], metavar="N", help="of the contenders")
    add("--no-speed", action="store_true", help="leave the contenders out")
    add("--seconds", type=float, default=8.0, help="that contenders take turns, per batch size")
    add("--limit", type=float, default=1200.0, help="seconds that an architecture may take")
    add("--json", type=Path, help="the record to write; without --only the default is the page's")
    add("--resume", action="store_true", help="keep what the record has, measure what it lacks")
    add(
        "--from-record",
        type=Path,
        nargs="?",
        const=RECORD,
        metavar="PATH",
        help="print a record as Markdown, and run nothing",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
