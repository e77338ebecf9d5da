"""Whether the native engine is still faster than the oneDNN engine: a check for changes.

Both run the same networks in turns, call by call. Of each round the ratio of the two times counts;
the median of the ratios has an interval from resampling the rounds, in which it lies with a
probability of 99 %. The exit status is 1 where even the upper end of an interval is below 1: the
native engine is slower, and noise is no excuse. It is 0 where there is nothing to compare.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import fastres
from benchmarks import native
from fastres.bench import measure
from fastres.workload import inputs, model_source

RESAMPLED = 2000
"""Times that the rounds are drawn anew, with replacement."""


@dataclass(frozen=True)
class Case:
    """What is compared."""

    model: str
    batch: int
    size: int
    precision: str

    def __str__(self) -> str:
        return f"{self.model}, batch {self.batch}, {self.size}x{self.size}, {self.precision}"


CASES = (
    Case("resnet50", 1, 224, "fp32"),
    Case("resnet50", 1, 224, "bf16"),
    Case("resnet18", 8, 128, "fp32"),
)


@dataclass(frozen=True)
class Verdict:
    """How many times as fast the native engine is.

    Attributes:
        median: of the ratios, round by round.
        low, high: between these it lies with a probability of 99 %.
    """

    median: float
    low: float
    high: float

    @property
    def is_slower(self) -> bool:
        """Beyond the noise."""
        return self.high < 1


def judge(onednn_ns: Sequence[int], native_ns: Sequence[int]) -> Verdict:
    """Compare times of the same rounds: the median's bootstrap interval (Efron, 1979).

    Raises:
        ValueError: not equally many times, or none.
    """
    if len(onednn_ns) != len(native_ns) or not native_ns:
        raise ValueError(
            f"{len(onednn_ns)} times and {len(native_ns)}: expected one each per round"
        )
    ratios = np.asarray(onednn_ns, dtype=float) / np.asarray(native_ns, dtype=float)
    resampled = np.random.default_rng(0).choice(ratios, (RESAMPLED, len(ratios)))
    low, high = np.percentile(np.median(resampled, axis=1), (0.5, 99.5))
    return Verdict(float(np.median(ratios)), float(low), float(high))


def interleaved(case: Case, plan: measure.Plan) -> dict[str, list[int]]:
    """Nanoseconds per call of both engines, by round.

    Raises:
        RuntimeError: the answers differ by more than two roundings of the precision explain.
    """
    model, images = network(case.model, case.batch, case.size)
    engines = {
        engine: fastres.optimize(model, images[:1], engine=engine, precision=case.precision)
        for engine in ("onednn", "native")
    }
    onednn_output, native_output = (fast(images) for fast in engines.values())
    bound = {"fp32": 1e-4, "bf16": 5e-2}[case.precision]
    if not torch.linalg.vector_norm(
        onednn_output - native_output
    ) <= bound * torch.linalg.vector_norm(onednn_output):
        raise RuntimeError(f"{case}: the engines' answers differ")
    calls = {name: functools.partial(fast, images) for name, fast in engines.items()}
    return measure.interleave(calls, plan)


@functools.cache
def network(name: str, batch: int, size: int) -> tuple[nn.Module, Tensor]:
    """A network whose activations stay of ordinary size, and images for it."""
    model = model_source.build(model_source.parse(name), seed=0)
    pool = inputs.synthetic_images(max(4, batch), 3, size, seed=0)
    inputs.calibrate_random_weights(model, pool, seed=0)
    return model, pool[:batch]


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line per case; the exit status is 1 if the native engine is slower in one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seconds", type=float, default=4.0, help="per case (default: 4)")
    options = parser.parse_args(argv)
    slower = []
    reasons = {case.precision: native.why_unavailable(case.precision) for case in CASES}
    for precision, reason in reasons.items():
        if reason is not None:
            print(f"{precision}: nothing to compare: {reason}")
    for case in CASES:
        if reasons[case.precision] is not None:
            continue
        times = interleaved(case, measure.Plan(seconds=options.seconds))
        verdict = judge(times["onednn"], times["native"])
        print(
            f"{case}: native {verdict.median:.2f}x the oneDNN engine ({verdict.low:.2f} to "
            f"{verdict.high:.2f} with 99 %, {len(times['native'])} rounds)"
            + (": SLOWER" if verdict.is_slower else "")
        )
        slower += [case] if verdict.is_slower else []
    return int(bool(slower))


if __name__ == "__main__":
    sys.exit(main())
