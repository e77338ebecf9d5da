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
    faults_by_stage: dict[str, str] = {}
    for text in texts:
        name, colon, kind = text.partition(":")
        names = list(STAGES) if name == "all" else [name]
        kinds = kind if colon else ",".join(faults.KINDS)
        if not set(names) <= set(STAGES) or not set(kinds.split(",")) <= set(faults.KINDS):
            raise ValueError(
                f"{text}: expected a stage ({', '.join(STAGES)}) or all, and perhaps : and a kind "
                f"({', '.join(faults.KINDS)})"
            )
        faults_by_stage |= dict.fromkeys(names, kinds)
    return faults_by_stage


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

    for subparser in (run, stage):
        subparser.add_argument("--out", type=Path, required=True, metavar="DIR")
        subparser.add_argument("--earlier", type=Path, metavar="DIR")
        subparser.add_argument("--at-most", type=int, help="results of a stage")
        subparser.add_argument(
            "--autotune", action="store_true", help="torch.compile's max-autotune"
        )
    for subparser in (prepare, run):
        subparser.add_argument("--cache", type=Path, default=compiling.ARCHIVE)
    show = commands.add_parser("show", help="the last page")
    show.add_argument("--table", action="store_true", help="of models, in markdown")
    for subparser in (show, commands.add_parser("fit", help="constants of the cost model")):
        subparser.add_argument("folder", type=Path)
    commands.add_parser("one", help="launch one layer, for ncu").add_argument("key")

    options = parser.parse_args(argv)
    if options.command == "run":
        try:
            options.seeded, options.budgets = seeded(options.seed_fault), budgets(options.seconds)
        except ValueError as error:
            parser.error(str(error))
    if options.command in ("show", "fit") and not options.folder.is_dir():
        parser.error(f"{options.folder}: no such folder")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0: what was wrong is on the page."""
    arguments = parsed(argv)
    if arguments.command == "prepare":
        for part in compiling.compile_all(
            arguments.workers, compiling.parts(tuple(arguments.kinds))
        ):
            print(part, flush=True)
        print(f"{arguments.cache}: {compiling.pack(arguments.cache) / 2**20:.1f} MiB")
        return 0
    if arguments.command == "show":
        print(
            tables.markdown(arguments.folder)
            if arguments.table
            else "\n".join(page(arguments.folder))
        )
        return 0
    if arguments.command == "fit":
        rows = fit.rows_of(Results(arguments.folder, "layers").records)
        print("\n".join(fit.report_lines(fit.fitted(rows))))
        return 0
    if arguments.command == "one":
        layers.one(arguments.key)
        return 0
    earlier = None if arguments.earlier is None else arguments.earlier.resolve()
    options = Options(
        arguments.out.resolve(), earlier, most=arguments.at_most, autotune=arguments.autotune
    )
    if arguments.command == "stage":
        options.folder.mkdir(parents=True, exist_ok=True)
        return stages.run(
            arguments.name,
            Options(
                options.folder,
                earlier,
                arguments.key,
                arguments.at_most,
                arguments.autotune,
                arguments.fault,
                arguments.again,
            ),
        )
    names = [name for name in arguments.only if name not in arguments.skip]
    planned = day.Day(
        options,
        arguments.minutes,
        names,
        arguments.rehearse,
        arguments.cache,
        arguments.seeded,
        arguments.budgets,
    )
    print("\n".join(day.run(planned)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
