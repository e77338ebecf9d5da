"""The cost model beside what an H100 took: times of the record, never measured here."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from fastres.kernels.configs.conv2d import Conv2dConfig, estimate_conv2d
from fastres.kernels.gpus import by_name
from fastres.spec import ConvSpec

RECORD = Path(__file__).parents[2] / "benchmarks/results/gpu_day/2026-11-28b/layers.jsonl"
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


@pytest.fixture(scope="module")
def measured() -> list[tuple[ConvSpec, float, float]]:
    """(spec, measured, modelled) in seconds, of every configuration in the record."""
    rows = [json.loads(line) for line in RECORD.read_text().splitlines()]
    return [
        (
            spec := spec_of(row["key"]),
            row["us"] * 1e-6,
            estimate_conv2d(spec, config_of(row["config"]), "fp16", H100).seconds,
        )
        for row in rows
        if "config" in row
    ]


def test_the_model_is_off_by_a_fifth(measured: list[tuple[ConvSpec, float, float]]) -> None:
    assert len(measured) > 800
    errors = [math.log(took / modelled) for _, took, modelled in measured]
    assert math.sqrt(sum(error**2 for error in errors) / len(errors)) < 0.21


def test_what_it_finds_fastest_is_nearly_the_fastest(
    measured: list[tuple[ConvSpec, float, float]],
) -> None:
    by_spec: dict[ConvSpec, list[tuple[float, float]]] = defaultdict(list)
    for spec, took, modelled in measured:
        by_spec[spec].append((modelled, took))
    for batch, most in ((256, 1.05), (32, 1.08), (1, 1.12)):
        found = [rows for spec, rows in by_spec.items() if spec.n == batch]
        assert len(found) == 23
        chosen = sum(min(rows)[1] for rows in found)
        best = sum(min(took for _, took in rows) for rows in found)
        assert chosen < most * best, batch
