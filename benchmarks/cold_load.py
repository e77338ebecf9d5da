"""How much sooner a saved model answers than one that is optimised, in new processes taking turns.

Both end with the answer for one image, which is bitwise the same. Two clocks: from the moment when
everything is imported and (for ``optimize``) the model with its weights is in memory, and from the
start of the process, in which importing torch is the largest part of either.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import fastres
from fastres.bench import record, revision
from fastres.system import target

WAYS = ("optimize", "load")

CHILD = """
import json, sys, time
way, model, file, weights = sys.argv[1:]
import torch, fastres
image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
if way == "optimize":
    from fastres.models import build
    network = build(model)
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.eval()
started = time.perf_counter()
fast = fastres.optimize(network) if way == "optimize" else fastres.load(file)
made = time.perf_counter()
answer = fast(image)
ended = time.perf_counter()
print(json.dumps({
    "made": made - started, "first": ended - made, "answer": answer.flatten()[:8].tolist(),
    "stages": fast.report.seconds,
}))
"""


def measure(model: str, rounds: int, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Run both ways in turn and return what each process said, with its whole time."""
    torch.manual_seed(0)
    network = fastres.models.build(model).eval()
    weights, file = folder / "weights.pt", folder / "model.fastres"
    torch.save(network.state_dict(), weights)
    fastres.optimize(network).save(file)
    told: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for round_ in range(rounds + 1):
        for way in WAYS:
            command = [sys.executable, "-c", CHILD, way, model, str(file), str(weights)]
            started = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            said = json.loads(done.stdout.splitlines()[-1])
            said["process"] = time.perf_counter() - started
            if round_:  # the first has cold files
                told[way].append(said)
    answers = {tuple(said["answer"]) for way in WAYS for said in told[way]}
    if len(answers) != 1:
        raise RuntimeError(f"the answers differ: {answers}")
    return told


def main(argv: Sequence[str] | None = None) -> int:
    """Print the medians and quartiles, and write a record where asked."""
    parser = argparse.ArgumentParser("python -m benchmarks.cold_load", description=__doc__)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="file to write the record to")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        told = measure(given.model, given.rounds, Path(folder))
    for way in WAYS:
        work = statistics.median(said["made"] + said["first"] for said in told[way])
        process = statistics.median(said["process"] for said in told[way])
        print(f"{way:9}: first answer after {work:.2f} s, of the process {process:.2f} s")
    ratios = [
        (a["made"] + a["first"]) / (b["made"] + b["first"])
        for a, b in zip(told["optimize"], told["load"], strict=True)
    ]
    low, high = min(ratios), max(ratios)
    print(f"load answers {statistics.median(ratios):.1f}x sooner ({low:.1f} to {high:.1f})")
    if given.json is not None:
        tree = {
            "schema": "fastres.cold_load",
            "version": 1,
            "model": given.model,
            "revision": revision.of_fastres(),
            "environment": target.environment(),
            "processes": told,
        }
        record.write_tree(tree, given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
