"""The command.

    python -m benchmarks.gpu_day prepare                     # needs no GPU: compile, pack the cache
    python -m benchmarks.gpu_day run --minutes 8 --out DIR   # on the GPU; DIR.tar.gz holds it all
    python -m benchmarks.gpu_day run --out DIR --rehearse    # needs no GPU: everything but CUDA
    python -m benchmarks.gpu_day show DIR [--table]          # the last page, or a table of models
    python -m benchmarks.gpu_day fit DIR                     # the cost model's constants
    python -m benchmarks.gpu_day stage NAME --out DIR --key KEY    # one result again

What is in DIR already and right is not done again; ``--earlier OTHER`` takes over what is in OTHER.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_day import compiling, day, faults, fit, layers, stages, tables
from benchmarks.gpu_day.page import page
from benchmarks.gpu_day.results import Results
from benchmarks.gpu_day.stages import STAGES, Options


def seeded(texts: Sequence[str]) -> dict[str, str]:
    """``STAGE`` or ``STAGE:KIND``, and ``all`` for every stage.

    Raises:
        ValueError: no such stage or kind.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, colon, kind = text.partition(":")
        names = list(STAGES) if name == "all" else [name]
        kinds = kind if colon else ",".join(faults.KINDS)
        if not set(names) <= set(STAGES) or not set(kinds.split(",")) <= set(faults.KINDS):
            raise ValueError(
                f"{text}: expected a stage ({', '.join(STAGES)}) or all, and perhaps : and a kind "
                f"({', '.join(faults.KINDS)})"
            )
        found |= dict.fromkeys(names, kinds)
    return found


def budgets(texts: Sequence[str]) -> dict[str, float]:
    """``STAGE=SECONDS``."""
    parts = (text.partition("=") for text in texts)
    return {name: float(seconds) for name, _, seconds in parts}


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_day", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)

    prepare = commands.add_parser("prepare", help="compile kernels for the GPU and pack them")
    prepare.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    prepare.add_argument("--kinds", nargs="+", choices=compiling.KINDS, default=compiling.KINDS)

    run = commands.add_parser("run", help="run the stages")
    run.add_argument("--minutes", type=float, default=day.MINUTES)
    run.add_argument("--skip", nargs="+", choices=tuple(STAGES), default=())
    run.add_argument("--only", nargs="+", choices=tuple(STAGES), default=tuple(STAGES))
    run.add_argument("--rehearse", action="store_true", help="without a GPU")
    run.add_argument("--seconds", nargs="+", default=(), metavar="STAGE=N", help="of a stage")
    run.add_argument("--seed-fault", nargs="+", default=(), metavar="STAGE[:KIND]")

    stage = commands.add_parser("stage", help="one stage in this process")
    stage.add_argument("name", choices=tuple(STAGES))
    stage.add_argument("--key", help="of the one result to make")
    stage.add_argument("--fault", default="", help=argparse.SUPPRESS)
    stage.add_argument("--again", action="store_true", help=argparse.SUPPRESS)

    for each in (run, stage):
        each.add_argument("--out", type=Path, required=True, metavar="DIR")
        each.add_argument("--earlier", type=Path, metavar="DIR")
        each.add_argument("--at-most", type=int, help="results of a stage")
        each.add_argument("--autotune", action="store_true", help="torch.compile's max-autotune")
    for each in (prepare, run):
        each.add_argument("--cache", type=Path, default=compiling.ARCHIVE)
    show = commands.add_parser("show", help="the last page")
    show.add_argument("--table", action="store_true", help="of models, in markdown")
    for each in (show, commands.add_parser("fit", help="constants of the cost model")):
        each.add_argument("folder", type=Path)
    commands.add_parser("one", help="launch one layer, for ncu").add_argument("key")

    given = parser.parse_args(argv)
    if given.command == "run":
        try:
            given.seeded, given.budgets = seeded(given.seed_fault), budgets(given.seconds)
        except ValueError as error:
            parser.error(str(error))
    if given.command in ("show", "fit") and not given.folder.is_dir():
        parser.error(f"{given.folder}: no such folder")
    return given


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0: what was wrong is on the page."""
    given = parsed(argv)
    if given.command == "prepare":
        for done in compiling.compile_all(given.workers, compiling.parts(tuple(given.kinds))):
            print(done, flush=True)
        print(f"{given.cache}: {compiling.pack(given.cache) / 2**20:.1f} MiB")
        return 0
    if given.command == "show":
        print(tables.markdown(given.folder) if given.table else "\n".join(page(given.folder)))
        return 0
    if given.command == "fit":
        rows = fit.rows_of(Results(given.folder, "layers").records)
        print("\n".join(fit.told(fit.fitted(rows))))
        return 0
    if given.command == "one":
        layers.one(given.key)
        return 0
    earlier = None if given.earlier is None else given.earlier.resolve()
    options = Options(given.out.resolve(), earlier, most=given.at_most, autotune=given.autotune)
    if given.command == "stage":
        options.folder.mkdir(parents=True, exist_ok=True)
        return stages.run(
            given.name,
            Options(
                options.folder,
                earlier,
                given.key,
                given.at_most,
                given.autotune,
                given.fault,
                given.again,
            ),
        )
    names = [name for name in given.only if name not in given.skip]
    whole = day.Day(
        options,
        given.minutes,
        names,
        given.rehearse,
        given.cache,
        given.seeded,
        given.budgets,
    )
    print("\n".join(day.run(whole)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
