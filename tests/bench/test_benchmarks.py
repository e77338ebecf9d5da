"""The scripts behind the README, with small networks: they run, and check what they time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fastres
from benchmarks import host_time, ladder, memory, native, overhead, shapes
from fastres import models
from fastres.bench import measure, record
from fastres.bench.peers.peer import Job, Peer, Ready
from fastres.runtime.native import schedule
from fastres.runtime.native.library import Library, load
from tests.support import interpreter


def test_shapes_are_those_of_the_papers_table() -> None:
    found = shapes.of_model("resnet50")
    assert found.total() == 53
    assert found[shapes.ConvShape(224, 224, 3, 64, 7, 2, 3, 1)] == 1
    assert found[shapes.ConvShape(14, 14, 256, 256, 3, 1, 1, 1)] == 5
    assert found[shapes.ConvShape(28, 28, 256, 256, 3, 2, 1, 1)] == 1, "stride on the 3x3"


@pytest.mark.parametrize("name", shapes.MODELS)
def test_multiply_adds_add_up(name: str) -> None:
    found = shapes.of_model(name)
    total = sum(shape.multiply_adds * count for shape, count in found.items())
    model = models.build(name)
    assert total == models.count(model, 224).multiply_adds - model.fc.weight.numel()


def test_distinct_shapes_are_distinct() -> None:
    every = shapes.distinct()
    assert len(set(every)) == len(every) == len({str(shape) for shape in every})
    assert {shape.groups for shape in every} == {1, 32}


def climb(path: Path) -> int:
    return ladder.main(
        [*"--model resnet18 --size 64 --batch 2 --seconds 0 --threads 1 --json".split(), str(path)]  # noqa: SIM905
    )


@pytest.mark.campaign
def test_every_rung_of_the_ladder_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert climb(tmp_path / "ladder.json") == 0
    (batch,) = record.read(tmp_path / "ladder.json").batches
    reasons = [native.why_unavailable(precision) for precision in ("fp32", "fp32", "bf16", "int8")]
    assert [row.reason for row in batch.rows] == [None] * 6 + reasons
    timed = [row for row in batch.rows if row.status == "timed"]
    assert len(timed) == 6 + reasons.count(None)
    assert len({row.key for row in batch.rows}) == 10
    assert capsys.readouterr().out.count("the row above") == len(timed) - 1


@pytest.mark.campaign
def test_without_the_library_its_rungs_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "load", lambda: "its library is elsewhere")
    monkeypatch.setattr(ladder, "RUNGS", (ladder.RUNGS[0], *ladder.RUNGS[6:]))
    assert climb(tmp_path / "ladder.json") == 0
    (batch,) = record.read(tmp_path / "ladder.json").batches
    assert [row.status for row in batch.rows] == ["timed", *["unavailable"] * 4]
    assert {row.reason for row in batch.rows[1:]} == {"no native engine: its library is elsewhere"}


@pytest.mark.campaign
@pytest.mark.skipif(
    native.why_unavailable("fp32") is not None, reason=str(native.why_unavailable("fp32"))
)
def test_only_the_rung_of_own_kernels_multiplies_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "winograd_pays", lambda conv, itemsize: True)
    torch.manual_seed(0)
    images = torch.randn(1, 3, 64, 64)
    job = Job(models.build("resnet18").eval(), images, "fp32", 1, Path(), Path())

    def planned(rung: Callable[[Job], Ready]) -> int:
        fast = rung(job).call
        assert isinstance(fast, fastres.OptimizedModule)
        assert fast.engine == "native"
        return fast.program(images).count(": winograd ")

    library = load()
    assert isinstance(library, Library)
    assert planned(ladder.own_kernels) == 0
    has_kernel = native.instruction_set(library, "fp32") == "avx512"
    assert (planned(ladder.winograd) > 0) == has_kernel


@pytest.mark.campaign
def test_a_broken_rung_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(job: Job) -> Ready:
        ready = ladder.folded(job)
        return Ready(lambda images: ready.call(images * 1.001))

    rungs = (ladder.RUNGS[0], (Peer("folded", "broken", broken), "fp32"))
    monkeypatch.setattr(ladder, "RUNGS", rungs)
    assert climb(tmp_path / "ladder.json") == 1


def test_rungs_compute_with_what_they_are_called_after() -> None:
    torch.manual_seed(0)
    model = models.build("resnet18").eval()
    job = Job(model, torch.randn(1, 3, 64, 64), "fp32", 1, Path(), Path())
    module = ladder._fused_graph(job)
    assert not any("batch_norm" in str(node.target) for node in module.graph.nodes)
    weights = [value for value in module.buffers() if value.ndim == 4]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    ladder._pack(module, job.example)
    assert any(value.is_mkldnn for value in module.buffers())


@pytest.mark.campaign
def test_overhead_measures_whole_calls_and_their_parts() -> None:
    fast = fastres.optimize(models.build("resnet18").eval(), threads=1)
    images = torch.randn(1, 3, 64, 64)
    plan = measure.Plan(seconds=0, min_rounds=5, warmup=2)
    whole, parts = overhead.whole_and_parts(fast, images, plan)
    assert len(whole) == len(parts) == 5
    assert min(parts) > 0
    if fast.engine == "onednn":
        took, kernels = overhead.kernel_time(lambda: fast(images), calls=2)
        assert kernels >= 20
        assert took > 0


@pytest.mark.campaign
def test_memory_is_read_after_every_call() -> None:
    fast = fastres.optimize(models.build("resnet18").eval(), threads=1)
    found = memory.sizes(fast, calls=5, distinct=3)
    assert len(found) == 5
    assert min(found) > 50 << 20
    assert len(set(memory.shapes(50))) == 50


@pytest.mark.campaign
def test_records_of_scripts_are_anonymous(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "memory.json"
    words = ["--model", "resnet18", "--calls", "4", "--shapes", "2", "--json", str(path)]
    assert memory.main(words) == 0
    assert "after     2 calls" in capsys.readouterr().out
    text = path.read_text()
    assert json.loads(text)["resident_bytes"]
    assert str(Path.home()) not in text
    assert str(tmp_path) not in text


def test_steps_compare_neighbours() -> None:
    row = record.Row("a", "A", "fp32", "timed", samples_ns=(400, 800))
    rows = (
        row,
        record.Row("b", "B", "fp32", "failed", "wrong"),
        replace(row, name="c", title="C", samples_ns=(200, 400)),
    )
    assert ladder.steps(record.Batch(1, 16, None, rows)) == [
        "batch 1, C: 2.00x (2.00–2.00) the row above"
    ]


@pytest.mark.campaign
def test_a_call_on_an_idle_device_launches_a_whole_network_once(tmp_path: Path) -> None:
    interpreter.need()
    fast, image = host_time.optimised_on_idle_device("resnet18", 32, "h100")
    assert host_time.bare_launch(fast, image)().shape == fast(image).shape == (1, 1000)
    executable: Any = fast._runner.executable([image])
    (replay,) = executable._recorded_whole[0]
    assert replay is host_time._do_nothing
    path = tmp_path / "host.json"
    host_time.main(["--model", "resnet18", "--size", "32", "--seconds", "0", "--json", str(path)])
    (row,) = json.loads(path.read_text())["rows"]
    assert (row["model"], row["weights"]) == ("resnet18", 42)
    assert row["bare_us"] > 0
