"""What the runtime adds to the operators' own time, where it shows most: at batch 1.

A call of the optimised model is compared, round by round, with the same operators called one by one
on the same data, of which only the calls themselves are timed. The difference is what is around
them: flattening arguments, finding the executable, looking for NaN, freeing memory. The operators'
own time includes torch's way into each of them; oneDNN's own clock says how much of it is kernels.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import fastres
from fastres.bench import measure, record, revision
from fastres.system import target
from fastres.workload import inputs, model_source

LIMIT = 0.05
"""More than this share of the operators' own time is too much."""


def whole_and_parts(
    fast: fastres.OptimizedModule, images: torch.Tensor, plan: measure.Plan
) -> tuple[list[int], list[int]]:
    """Nanoseconds of whole calls, and of the same rounds' operators one by one, added up."""
    executable = fast.internals.runner.executable([images])
    sums: list[int] = []

    def parts() -> None:
        sums.append(sum(took for _, _, took in executable.timed([images])))

    with torch.inference_mode():
        times = measure.interleave({"whole": lambda: fast(images), "parts": parts}, plan)
    rounds = len(times["whole"])
    return times["whole"], sums[-rounds:]  # those before were warm-up


def kernel_time(call: Callable[[], object], calls: int = 20) -> tuple[float, int]:
    """By oneDNN's own clock: nanoseconds of its kernels in the median call, and how many they are.

    Raises:
        RuntimeError: oneDNN printed nothing.
    """
    sums, counts = [], []
    for _ in range(calls):
        with torch.backends.mkldnn.verbose(1):
            log = _output_of(call)
        times = re.findall(r"^onednn_verbose.*,exec,.*,([\d.]+)$", log, re.MULTILINE)
        durations_ms = [float(milliseconds) for milliseconds in times]
        sums.append(round(sum(durations_ms) * 1e6))
        counts.append(len(durations_ms))
    if not max(counts):
        raise RuntimeError("oneDNN printed nothing; is torch built without its verbose mode?")
    return measure.percentile(sums, 50), max(counts)


def _output_of(call: Callable[[], object]) -> str:
    """What is written to the standard output meanwhile, by libraries too."""
    sys.stdout.flush()
    saved = os.dup(1)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        try:
            call()
        finally:
            os.dup2(saved, 1)
            os.close(saved)
        file.seek(0)
        return file.read().decode()


def main(argv: Sequence[str] | None = None) -> int:
    """Print the shares; the exit status is 1 if one is above `LIMIT`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", nargs="+", default=["resnet18", "resnet50", "resnext50_32x4d"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", type=Path, help="write the record")
    options = parser.parse_args(argv)
    rows = []
    for name in options.model:
        model = model_source.build(model_source.parse(name), seed=0)
        images = inputs.synthetic_images(options.batch, 3, 224, seed=0)
        inputs.calibrate_random_weights(model, inputs.synthetic_images(16, 3, 224, seed=0), seed=0)
        for precision in ("fp32", "bf16"):
            fast = fastres.optimize(model, images, precision=precision)
            plan = measure.Plan(seconds=options.seconds)
            whole, parts = whole_and_parts(fast, images, plan)
            ratio = measure.paired_ratio(whole, parts)
            kernels, count = kernel_time(functools.partial(fast, images))
            rows.append(
                {
                    "model": name,
                    "precision": precision,
                    "batch": options.batch,
                    "share": ratio.median - 1,
                    "share_quartiles": [ratio.low - 1, ratio.high - 1],
                    "kernels_p50_ns": kernels,
                    "kernels": count,
                    "whole_ns": whole,
                    "operators_ns": parts,
                }
            )
            print(
                f"{name:16} {precision}: whole call {measure.percentile(whole, 50) / 1e6:.2f} ms, "
                f"operators {measure.percentile(parts, 50) / 1e6:.2f} ms, of which {count} oneDNN "
                f"kernels {kernels / 1e6:.2f} ms; the runtime adds {ratio.median - 1:.1%} "
                f"({ratio.low - 1:.1%} to {ratio.high - 1:.1%})"
            )
    if options.json is not None:
        tree = {
            "schema": "fastres.overhead",
            "version": 1,
            "revision": revision.of_fastres(),
            "environment": target.environment(),
            "rows": rows,
        }
        record.write_tree(tree, options.json)
    return int(any(row["share"] > LIMIT for row in rows))


if __name__ == "__main__":
    sys.exit(main())
