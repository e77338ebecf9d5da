"""The cost model beside what an H100 took: times of the record, never measured here."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import pytest

from fastres.kernels.spec import ConvSpec
from fastres.kernels.tuning.conv2d import Conv2dConfig, estimate_conv2d, fastest
from fastres.kernels.tuning.gpus import by_name
from tests.support import ROOT

RECORD = ROOT / "benchmarks/results/gpu_day/2026-11-28b/layers.jsonl"
H100 = by_name("h100")


def spec_of(key: str) -> ConvSpec:
    """``256 x 56x56x64-3x3s1-64: chosen``: images, image, filter and stride, filters."""
    found = re.match(r"(\d+) x (\d+)x(\d+)x(\d+)-(\d+)x\d+s(\d+)-(\d+):", key)
    assert found is not None, key
    n, h, w, c, r, stride, k = map(int, found.groups())
    return ConvSpec(n, c, h, w, k, r, r, stride=(stride,) * 2, padding=(r // 2,) * 4)


def config_of(words: str) -> Conv2dConfig:
    values: dict[str, Any] = {
        name: json.loads(value.lower()) for name, value in re.findall(r"(\w+)=(\w+)", words)
    }
    return Conv2dConfig(**values)


@dataclass(frozen=True)
class Measured:
    """What a convolution took in a configuration."""

    spec: ConvSpec
    config: Conv2dConfig
    seconds: float

    @property
    def modelled(self) -> float:
        """What the model says it takes."""
        return estimate_conv2d(self.spec, self.config, "fp16", H100).seconds


@pytest.fixture(scope="module")
def measured() -> list[Measured]:
    """Every configuration in the record."""
    rows = [json.loads(line) for line in RECORD.read_text().splitlines()]
    return [
        Measured(spec_of(row["key"]), config_of(row["config"]), row["us"] * 1e-6)
        for row in rows
        if "config" in row
    ]


def test_the_model_is_off_by_a_fifth(measured: list[Measured]) -> None:
    assert len(measured) > 800
    errors = [math.log(each.seconds / each.modelled) for each in measured]
    assert math.sqrt(sum(error**2 for error in errors) / len(errors)) < 0.21


@pytest.mark.parametrize(("batch", "most"), [(256, 1.04), (32, 1.07), (1, 1.10)])
def test_what_it_chooses_is_nearly_the_fastest(
    measured: list[Measured], batch: int, most: float
) -> None:
    by_spec: dict[ConvSpec, list[Measured]] = defaultdict(list)
    for each in measured:
        if each.spec.n == batch:
            by_spec[each.spec].append(each)
    assert len(by_spec) == 23
    chosen = best = 0.0
    for rows in by_spec.values():
        config = fastest([(each.modelled, each.config) for each in rows])
        chosen += next(each.seconds for each in rows if each.config == config)
        best += min(each.seconds for each in rows)
    assert chosen < most * best
