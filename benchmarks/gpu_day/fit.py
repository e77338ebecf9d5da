"""Which constants of the cost model fit measured layers best.

    python -m benchmarks.gpu_day fit DIR

Reads any record of the stage ``layers``. The constants are the numbers in capitals of
:mod:`fastres.kernels.tuning.cost`. What is made small is the root mean square of
log(measured / modelled): a layer counts the same whether it is fast or slow, and twice as long as
much as half.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu_day.settings import GPU
from fastres.kernels.spec import ConvSpec
from fastres.kernels.tuning import cost
from fastres.kernels.tuning.conv2d import Conv2dConfig, estimate_conv2d
from fastres.kernels.tuning.gpus import Gpu, by_name

STEPS = (1.4, 1.15, 1.05)
"""Factors by which a constant is tried larger and smaller, the rough ones first."""

MOST = 400
"""Rows that are fitted to: more cost time and say the same."""

Constants = Mapping[str, float]


@dataclass(frozen=True)
class Row:
    """One launch that was measured.

    Attributes:
        batch: images.
        spec, config: what was launched.
        us: microseconds.
    """

    batch: int
    spec: ConvSpec
    config: Conv2dConfig
    us: float


@dataclass(frozen=True)
class Fit:
    """What was found.

    Attributes:
        before, after: constants.
        error_before, error_after: root mean squares of log(measured / modelled).
        rows: fitted to.
    """

    before: Constants
    after: Constants
    error_before: float
    error_after: float
    rows: int


def constants() -> dict[str, float]:
    """Those of the cost model, as they are now."""
    return {
        name: value
        for name, value in vars(cost).items()
        if name.strip("_").isupper() and isinstance(value, float)
    }


@contextlib.contextmanager
def assumed(values: Constants) -> Iterator[None]:
    """Let the cost model have other constants for a while."""
    saved = constants()
    try:
        for name, value in values.items():
            setattr(cost, name, value)
        yield
    finally:
        for name, value in saved.items():
            setattr(cost, name, value)


def seconds(row: Row, gpu: Gpu) -> float:
    """What the model says of a launch."""
    return estimate_conv2d(row.spec, row.config, "fp16", gpu).seconds


def error(rows: Sequence[Row], values: Constants, gpu: Gpu) -> float:
    """Root mean square of log(measured / modelled) with these constants."""
    with assumed(values):
        modelled = [seconds(row, gpu) * 1e6 for row in rows]
    if not all(map(math.isfinite, modelled)):
        return math.inf  # what was measured would not fit
    logs = [math.log(row.us / us) for row, us in zip(rows, modelled, strict=True)]
    return math.sqrt(sum(log * log for log in logs) / len(logs))


def fitted(rows: Sequence[Row]) -> Fit:
    """One constant after the other, larger or smaller, while that helps."""
    gpu = by_name(GPU)
    rows = rows[:: max(1, -(-len(rows) // MOST))]
    rows = [row for row in rows if math.isfinite(seconds(row, gpu)) and math.isfinite(row.us)]
    before = constants()
    if not rows:
        return Fit(before, before, 0.0, 0.0, 0)
    best, first = dict(before), error(rows, before, gpu)
    least = first
    for step in STEPS:
        improved = True
        while improved:
            improved = False
            for name in best:
                for factor in (step, 1 / step):
                    tried = best | {name: best[name] * factor}
                    if _plausible(name, tried[name]):
                        candidate_error = error(rows, tried, gpu)
                        if candidate_error < least * 0.9995:
                            best, least, improved = tried, candidate_error, True
                            break
    return Fit(before, best, first, least, len(rows))


def _plausible(name: str, value: float) -> bool:
    """A share of a data sheet's figure is at most all of it."""
    return value <= 1.0 if name.endswith("SHARE") else value > 0.0


def rows_of(records: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """The launches in a record of the stage ``layers``, by its keys."""
    return [
        Row(spec.n, spec, config_of(each["config"]), each["us"])
        for key, each in records.items()
        if "config" in each and "us" in each and (spec := spec_of(key)) is not None
    ]


def spec_of(key: str) -> ConvSpec | None:
    """``256 x 56x56x64-3x3s1-64: chosen`` and the like; filters are padded to keep the size."""
    match = re.match(r"(\d+) x (\d+)x(\d+)x(\d+)-(\d+)x\d+s(\d+)(?:g(\d+))?-(\d+)", key)
    if match is None:
        return None
    n, h, w, c, r, stride = (int(match[i]) for i in range(1, 7))
    return ConvSpec(
        n,
        c,
        h,
        w,
        int(match[8]),
        r,
        r,
        stride=(stride, stride),
        padding=(r // 2,) * 4,
        groups=int(match[7] or 1),
    )


def config_of(text: str) -> Conv2dConfig:
    """A configuration as it prints itself."""
    values = dict(re.findall(r"(\w+)=(\w+)", text))
    numbers: dict[str, Any] = {
        name: value == "True" if value in ("True", "False") else int(value)
        for name, value in values.items()
    }
    return Conv2dConfig(**numbers)


def report_lines(fit: Fit) -> list[str]:
    """The constants, in lines to read."""
    if not fit.rows:
        return ["constants of the cost model: no layers to fit them to"]
    lines = [
        f"constants of the cost model that fit {fit.rows} launches best; typical factor off "
        f"{math.exp(fit.error_before):.2f} -> {math.exp(fit.error_after):.2f}"
    ]
    changed = [
        f"{name} {fit.before[name]:.4g} -> {value:.4g}"
        for name, value in fit.after.items()
        if value != fit.before[name]
    ]
    lines += ["  " + ", ".join(changed[i : i + 3]) for i in range(0, len(changed), 3)]
    return lines if changed else [*lines, "  as they are"]
