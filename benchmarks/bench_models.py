"""Whole models at batch 1, for watching one machine over time: ``--benchmark-autosave --compare``.

To compare with other runtimes, or on a noisy machine, use ``python -m fastres.bench``: there the
peers take turns.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import shapes
from fastres.bench import gate
from fastres.bench.peers import catalogue, torch_peers
from fastres.bench.peers.peer import DTYPES, Job
from fastres.system import target
from fastres.workload import inputs, model_source

WAYS = {
    "eager": torch_peers.eager,
    "channels_last": torch_peers.channels_last,
    "fastres": catalogue.FASTRES.prepare,
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", shapes.MODELS)
def test_model(
    benchmark: BenchmarkFixture, tmp_path: Path, name: str, way: str, precision: str
) -> None:
    if not target.onednn_supports(DTYPES[precision]):
        pytest.skip(f"oneDNN has no {precision} on this processor")
    benchmark.group = f"{name} {precision}"
    pool = inputs.synthetic_images(16, 3, 224, seed=0)
    model = model_source.build(model_source.parse(name), seed=0)
    inputs.calibrate_random_weights(model, pool, seed=0)
    images = pool[:1]
    job = Job(model, images, precision, target.cpu_threads(), tmp_path, tmp_path / "cache")
    ready = WAYS[way](job)
    error = gate.relative_error(
        gate.collect(ready.call, [images]), gate.float64_outputs(model, images)
    )
    assert error < gate.ABSOLUTE[precision]
    benchmark(ready.call, images)
