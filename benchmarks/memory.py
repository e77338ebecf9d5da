"""Does memory stay flat? Resident size over a thousand calls of fifty shapes.

Fifty is more than the executables that one optimised model keeps, so that many are dropped and
built again. The shapes come in an order that is shuffled anew in every pass over them; what counts
is the size at the ends of passes, when the same has been done equally often.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import fastres
from fastres.bench import process_memory, record, revision
from fastres.system import target
from fastres.workload import model_source

LIMIT = 32 << 20
"""Bytes that the last pass may end above the third one, which has seen every shape three times."""


def shapes(count: int) -> list[tuple[int, int, int]]:
    """Batch, height and width: small ones, because a thousand calls should take minutes."""
    every = itertools.product((1, 2, 3, 4), (64, 96, 128, 160), (64, 96, 128, 160))
    return sorted(every, key=lambda shape: shape[0] * shape[1] * shape[2])[:count]


def sizes(fast: fastres.OptimizedModule, calls: int, distinct: int, channels: int = 3) -> list[int]:
    """Resident bytes after every call.

    Raises:
        OSError: the system does not tell.
    """
    resident = []
    order = random.Random(0)
    remaining: list[tuple[int, int, int]] = []
    for _ in range(calls):
        if not remaining:
            remaining = order.sample(shapes(distinct), distinct)
        batch, height, width = remaining.pop()
        fast(torch.zeros((batch, channels, height, width), dtype=torch.float32, device="cpu"))
        size = process_memory.resident()
        if size is None:
            raise OSError("this system does not tell the resident size in /proc/self/status")
        resident.append(size)
    return resident


def main(argv: Sequence[str] | None = None) -> int:
    """Print the sizes; the exit status is 1 if they grew by more than `LIMIT`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--shapes", type=int, default=50)
    parser.add_argument("--json", type=Path, help="write the record")
    options = parser.parse_args(argv)
    model = model_source.build(model_source.parse(options.model), seed=0)
    fast = fastres.optimize(model, precision=options.precision)
    resident = sizes(fast, options.calls, options.shapes)
    ends = resident[options.shapes - 1 :: options.shapes]
    for number, size in enumerate(ends, 1):
        print(f"after {number * options.shapes:5} calls: {size / 2**20:.0f} MiB")
    growth = ends[-1] - ends[min(2, len(ends) - 1)]
    print(
        f"{options.model} {options.precision}: {growth / 2**20:+.1f} MiB from pass 3 to pass "
        f"{len(ends)}; at most {LIMIT >> 20} MiB are accepted"
    )
    if options.json is not None:
        tree = {
            "schema": "fastres.memory",
            "version": 1,
            "revision": revision.of_fastres(),
            "environment": target.environment(),
            "model": options.model,
            "precision": options.precision,
            "shapes": shapes(options.shapes),
            "resident_bytes": resident,
        }
        record.write_tree(tree, options.json)
    return int(growth > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
