"""The whole bench with a small network, processes of their own included."""

from __future__ import annotations

import json
import mmap
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastres import bench
from fastres.bench import cold_start, cpu_load, gate, process_memory, record, run, settings
from fastres.bench.peers.peer import Job
from fastres.workload import model_source


@pytest.mark.campaign
def test_a_small_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "record.json"
    words = f"""--model cifar_resnet20 --size 32 --batch 2 3 --peers none --precision fp32
        --threads 1 --seconds 0.2 --json {path}"""
    threads = torch.get_num_threads()
    status = bench.main(words.split())
    assert torch.get_num_threads() == threads
    said = capsys.readouterr()
    assert status == 0, said.err
    assert said.err == "", "progress is for terminals"
    found = record.read(path)
    assert [batch.batch for batch in found.batches] == [2, 3]
    assert [batch.images_checked for batch in found.batches] == [16, 18]
    for batch in found.batches:
        assert [row.key for row in batch.rows] == ["eager-fp32", "fastres-fp32"]
        reference, ours = batch.rows
        assert reference.status == ours.status == "timed"
        assert len(reference.samples_ns) == len(ours.samples_ns) >= 10
        assert min(*reference.samples_ns, *ours.samples_ns) > 0
        assert reference.error_ratio == 1.0
        assert ours.top1 == 1.0
    for row in found.batches[0].rows:
        assert row.fresh is not None
        assert row.fresh.cold_seconds > 0
        assert row.fresh.before_bytes is not None
        assert row.fresh.peak_bytes >= row.fresh.before_bytes > 50 << 20
    assert all(row.fresh is None for row in found.batches[1].rows), "--cold first"
    assert found.command == (*words.split()[:-1], "record.json")
    assert found.model["parameters"] == 269_722
    assert found.environment["torch_threads"] == 1
    assert found.settings["seed"] == 0
    assert "fastres against others in fp32" in said.out


@pytest.mark.campaign
def test_a_fresh_process_that_fails_says_why(tmp_path: Path) -> None:
    model = model_source.build(model_source.parse("cifar_resnet20"), 0)
    images = torch.zeros(1, 3, 32, 32)
    request = cold_start.save(model, model_source.parse("cifar_resnet20"), images, 0, tmp_path)
    job = Job(model, images, "fp32", 1, tmp_path, tmp_path / "cache")
    with pytest.raises(cold_start.ColdStartFailed, match="there is no contender 'nobody'"):
        cold_start.measure(replace(request, model="cifar_resnet20"), "nobody", job)


def test_models_by_function_are_built_anew_in_the_fresh_process(tmp_path: Path) -> None:
    model = model_source.build(model_source.parse("cifar_resnet20"), 0)
    images = torch.zeros(1, 3, 32, 32)
    request = cold_start.save(model, model_source.parse("somewhere:make"), images, 0, tmp_path)
    assert request.weights is None
    assert not (tmp_path / "weights.pt").exists()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells it in /proc")
def test_peak_memory_is_seen_and_can_be_reset() -> None:
    assert process_memory.reset_peak()
    before, counter = process_memory.peak()
    assert counter == "VmHWM"
    block = mmap.mmap(-1, 64 << 20)  # pages that this process does not have yet
    for page in range(0, len(block), mmap.PAGESIZE):
        block[page] = 1
    during, _ = process_memory.peak()
    assert during - before > 48 << 20
    block.close()
    still, _ = process_memory.peak()
    assert during - still < 16 << 20, "the kernel counts pages in batches"
    assert process_memory.reset_peak()
    after, _ = process_memory.peak()
    assert during - after > 48 << 20


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="Linux tells it in /proc")
def test_other_programs_are_seen_and_this_one_is_not() -> None:
    def spin(seconds: float) -> None:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    watch = cpu_load.Watch()
    spin(0.5)
    alone = watch.share()
    code = "import time\nwhile time.process_time() < 30: pass"
    with subprocess.Popen([sys.executable, "-c", code]) as other:
        watch = cpu_load.Watch()
        spin(0.5)
        together = watch.share()
        other.kill()
    assert alone is not None and together is not None
    assert 0 <= alone <= 1
    assert 0.1 < together <= 1


def test_other_programs_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_load, "_STAT", tmp_path / "stat")
    assert cpu_load.Watch().share() is None


def test_memory_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_memory, "_STATUS", tmp_path / "status")
    monkeypatch.setattr(process_memory, "_CLEAR", tmp_path / "no" / "clear_refs")
    assert process_memory.resident() is None
    assert process_memory.reset_peak() is False
    highest, counter = process_memory.peak()
    assert counter == "ru_maxrss"
    assert highest > 50 << 20


def test_requests_are_plain_json(tmp_path: Path) -> None:
    model = model_source.build(model_source.parse("cifar_resnet20"), 0)
    request = cold_start.save(
        model, model_source.parse("cifar_resnet20"), torch.zeros(1, 3, 8, 8), 3, tmp_path
    )
    assert json.loads(json.dumps(vars(request)))["seed"] == 3


@pytest.mark.campaign
def test_a_small_bench_in_int8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "record.json"
    words = f"""--model resnet18 --size 64 --batch 2 --precision int8 --threads 1 --seconds 0.2
        --json {path}"""
    status = bench.main(words.split())
    said = capsys.readouterr()
    assert status == 0, said.err
    assert said.err == ""
    found = record.read(path)
    (batch,) = found.batches
    assert [row.key for row in batch.rows] == [
        *("eager-fp32", "onnxruntime-qdq-int8", "openvino-nncf-int8", "fastres-int8")
    ]
    for row in batch.rows[1:]:
        if row.status == "unavailable":
            assert row.reason is not None
            assert row.reason.startswith("pip install")
            continue
        assert row.status == "timed"
        assert row.error is not None
        assert 1e-3 < row.error < gate.ABSOLUTE["int8"]
        assert row.fresh is not None
        assert row.fresh.cold_seconds > 0
        assert row.error_ratio == (1.0 if row.name == "fastres" else None)
    assert found.model["calibration"] == "32 other synthetic images"
    assert "int8: quantised with 32 other synthetic images" in said.out
    assert "Statistics collection" not in said.out


def test_calibration_images_are_others_than_those_that_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = torch.nn.Conv2d(3, 4, 3)
    given = settings.parse("--size 8 --batch 4 --precision int8".split())  # noqa: SIM905
    pool, others, told = run._pool(given, model, 5)
    assert others is not None
    assert (len(pool), len(others)) == (16, 5)
    assert not any(torch.equal(one, other) for one in pool for other in others)
    again = run._pool(given, model, 5)[1]
    assert again is not None
    assert torch.equal(others, again)
    assert told == {
        "images": "16 synthetic ones, seed 0",
        "calibration": "5 other synthetic images",
    }
    alone, none, told = run._pool(given, model, 0)
    assert torch.equal(alone, pool)
    assert none is None
    assert told == {"images": "16 synthetic ones, seed 0"}

    given = replace(given, images=tmp_path)
    for distinct, same in ((30, ""), (18, ", 3 of them of those that are timed")):

        def photographs(
            folder: Path, count: int, size: int, distinct: int = distinct
        ) -> tuple[torch.Tensor, int]:
            return torch.arange(distinct).repeat(count)[:count], distinct

        monkeypatch.setattr("fastres.workload.inputs.photographs", photographs)
        pool, others, told = run._pool(given, model, 5)
        assert pool.tolist() == list(range(16))
        assert others is not None
        assert others.tolist()[:2] == [16, 17]
        assert told == {"images": "16 photographs", "calibration": f"5 photographs{same}"}
