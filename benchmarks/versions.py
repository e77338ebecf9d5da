"""The short lane: what a release of torch and Triton could break, tested in this environment.

    python -m benchmarks.versions                 # run it; the exit status is pytest's
    python -m benchmarks.versions --record        # and keep the row in the record

Captures, passes, engines, artefacts, interpreted kernels and machine code for GPUs that are not
here; networks, campaigns and what torch has no part in are left to the whole suite. The record's
rows, one for each set of versions, are the table in ``docs/using.md``.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from fastres.bench import record
from fastres.system import versions

SCHEMA = "fastres.versions"
RECORD = Path(__file__).parent / "results" / "versions.json"

LANE = (
    "tests/system/test_versions.py",
    "tests/ir/test_ops.py",
    "tests/runtime/test_engine.py",
    "tests/capture/test_capture_errors.py",
    "tests/test_optimized_module.py",
    "tests/passes/test_fuse.py",
    "tests/passes/test_fold_batch_norm.py",
    "tests/passes/test_normalise.py",
    "tests/artifact/test_artifact_round_trip.py",
    "tests/artifact/test_refresh.py",
    "tests/kernels/test_gpu_executable.py",
    "tests/kernels/test_gpu_tactics.py",
    "tests/kernels/test_cuda_recording.py",
    "tests/kernels/test_compile_pool.py",
    "tests/kernels/test_elementwise_kernel.py",
    "tests/kernels/test_inspection.py",
    "tests/bench/test_gpu_day.py",
)

WITHOUT = ("torchvisions_resnets", "a_fault_in_each_stage")
"""What takes long and is of no release's own, by a part of its name."""

PACKAGES = ("torch", "triton", "torchvision", "numpy")


def run(workers: int) -> tuple[int, dict[str, int]]:
    """Pytest's exit status, and how many tests passed, failed and so on."""
    chosen = " and ".join(f"not {name}" for name in WITHOUT)
    # The campaigns, too, whatever pyproject.toml leaves out before a commit: rows stay comparable.
    command = [sys.executable, "-m", "pytest", "-q", "-m", "", "-n", str(workers), "-k", chosen]
    command += LANE
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line if line.strip() else last
    counts = re.findall(r"(\d+) (\w+)", last.split(" in ")[0])
    return process.returncode, {word: int(number) for number, word in counts}


def row(counts: dict[str, int]) -> dict[str, Any]:
    """A row of the record: what is installed here, and what the tests said."""
    installed = {name: metadata.version(name) for name in PACKAGES}
    python = ".".join(map(str, sys.version_info[:2]))
    return {"python": python, **installed, **counts}


def rows(path: Path = RECORD) -> list[dict[str, Any]]:
    """The record's rows; none without a record."""
    found: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    return found


def add_row(new: dict[str, Any], path: Path = RECORD) -> None:
    """Put a row into the record, in the place of one for the same versions."""
    names = ("python", *PACKAGES)
    other_rows = [each for each in rows(path) if any(each[name] != new[name] for name in names)]
    updated = sorted([*other_rows, new], key=lambda each: versions.release(each["torch"]))
    record.write_tree({"schema": SCHEMA, "version": 1, "rows": updated}, path)


def table(path: Path = RECORD) -> str:
    """The record as ``docs/using.md`` shows it."""
    lines = ["| Python | torch | Triton | torchvision | NumPy | tests |"]
    lines.append("|---|---|---|---|---|---:|")
    lines += [
        f"| {each['python']} | {each['torch'].partition('+')[0]} | {each['triton']} "
        f"| {each['torchvision'].partition('+')[0]} | {each['numpy']} | {each['passed']} |"
        for each in rows(path)
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """See the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versions", description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--record", action="store_true", help="keep the row in the record")
    parser.add_argument("--table", action="store_true", help="print the record and run nothing")
    options = parser.parse_args(argv)
    if options.table:
        print(table())
        return 0
    status, counts = run(options.workers)
    if options.record and status == 0:
        add_row(row(counts))
    return status


if __name__ == "__main__":
    sys.exit(main())
