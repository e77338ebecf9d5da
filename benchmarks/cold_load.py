"""How much sooner a saved model answers than one that is optimised, in new processes taking turns.

Both end with the answer for one image, which is bitwise the same. Beside them the model itself in
torch, with the same weights. Two clocks: from the moment when everything is imported and (but for
``load``) the model with its weights is in memory, and from the start of the process, in which
importing torch is the largest part of all three.
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

WAYS = ("optimize", "load", "eager")

CHILD = """
import json, sys, time
way, model, file, weights = sys.argv[1:]
import torch, fastres
image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
if way != "load":
    from fastres.models import build
    network = build(model)
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.eval()
started = time.perf_counter()
if way == "eager":
    fast = torch.inference_mode()(network)
else:
    fast = fastres.optimize(network) if way == "optimize" else fastres.load(file)
made = time.perf_counter()
answer = fast(image)
ended = time.perf_counter()
print(json.dumps({
    "made": made - started, "first": ended - made, "answer": answer.flatten()[:8].tolist(),
    "stages": {} if way == "eager" else fast.report.seconds,
}))
"""


def measure(model: str, rounds: int, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Run all ways in turn and return what each process said, with its whole time."""
    torch.manual_seed(0)
    network = fastres.models.build(model).eval()
    weights, file = folder / "weights.pt", folder / "model.fastres"
    torch.save(network.state_dict(), weights)
    fastres.optimize(network).save(file)
    reports: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for round_ in range(rounds + 1):
        for way in WAYS:
            command = [sys.executable, "-c", CHILD, way, model, str(file), str(weights)]
            started = time.perf_counter()
            process = subprocess.run(command, capture_output=True, text=True, check=True)
            report = json.loads(process.stdout.splitlines()[-1])
            report["process"] = time.perf_counter() - started
            if round_:  # the first has cold files
                reports[way].append(report)
    ours = ("optimize", "load")
    outputs = {tuple(report["answer"]) for way in ours for report in reports[way]}
    if len(outputs) != 1:
        raise RuntimeError(f"the answers differ: {outputs}")
    return reports


def main(argv: Sequence[str] | None = None) -> int:
    """Print the medians and quartiles, and write a record where asked."""
    parser = argparse.ArgumentParser("python -m benchmarks.cold_load", description=__doc__)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="file to write the record to")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        reports = measure(options.model, options.rounds, Path(folder))
    for way in WAYS:
        work = statistics.median(report["made"] + report["first"] for report in reports[way])
        process = statistics.median(report["process"] for report in reports[way])
        print(f"{way:9}: first answer after {work:.2f} s, of the process {process:.2f} s")
    ratios = [
        (a["made"] + a["first"]) / (b["made"] + b["first"])
        for a, b in zip(reports["optimize"], reports["load"], strict=True)
    ]
    low, high = min(ratios), max(ratios)
    print(f"load answers {statistics.median(ratios):.1f}x sooner ({low:.1f} to {high:.1f})")
    shares = [
        a["process"] / b["process"] for a, b in zip(reports["load"], reports["eager"], strict=True)
    ]
    low, high = min(shares), max(shares)
    share = statistics.median(shares)
    print(f"load's process takes {share:.2f}x the time of eager's ({low:.2f} to {high:.2f})")
    if options.json is not None:
        tree = {
            "schema": "fastres.cold_load",
            "version": 1,
            "model": options.model,
            "revision": revision.of_fastres(),
            "environment": target.environment(),
            "processes": reports,
        }
        record.write_tree(tree, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
