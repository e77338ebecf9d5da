"""Who gets into a table, under which label, and who is timed."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from fastres import bench
from fastres.bench import compare, gate, settings
from fastres.bench.peers import catalogue, export_peer, fastres_peer, onnxruntime_peer, torch_peers
from fastres.bench.peers.peer import FASTRES_BOUND, PEER_BOUND, Job, Peer, Ready
from fastres.bench.record import Batch, Row
from fastres.errors import ModelError
from fastres.system import target
from fastres.system.progress import Progress
from fastres.workload import inputs, model_source

Answer = Callable[[nn.Module, torch.Tensor], object]


def stub_peer(name: str, answer: Answer, *notes: str) -> Peer:
    """One that answers with what a function makes of the model and the images."""

    def prepare(job: Job) -> Ready:
        model = copy.deepcopy(job.model)

        def call(images: torch.Tensor) -> object:
            with torch.no_grad():
                return answer(model, images)

        return Ready(call, notes=notes)

    return Peer(name, f"the {name}", prepare)


def right(model: nn.Module, images: torch.Tensor) -> object:
    return model(images)


def wrong(model: nn.Module, images: torch.Tensor) -> object:
    return model(images) * 1.001


def explodes(model: nn.Module, images: torch.Tensor) -> object:
    raise ArithmeticError("reading /home/somebody/secret/file failed\nand more")


def run_batch(folder: Path, batch: int = 4, words: str = "--precision fp32") -> Batch:
    """A table with a small network, without fresh processes."""
    given = settings.parse(f"--model cifar_resnet20 --size 32 --seconds 0 {words}".split())
    model = model_source.build(given.source, given.seed)
    pool = inputs.synthetic_images(16, 3, 32, seed=0)
    inputs.calibrate_random_weights(model, pool, seed=0)
    truth = gate.float64_outputs(model, pool)
    stage = compare.Setup(given, model, pool, truth, folder)
    return compare.run_batch(stage, compare.entries(given), batch, cold=False, progress=Progress())


def rows(batch: Batch) -> dict[str, Row]:
    return {row.key: row for row in batch.rows}


def only(monkeypatch: pytest.MonkeyPatch, *peers: Peer, ours: Peer | None = None) -> None:
    """Let the catalogue hold these beside the reference."""
    everybody = {peer.name: peer for peer in (catalogue.REFERENCE, *peers)}
    monkeypatch.setattr(catalogue, "PEERS", everybody)
    monkeypatch.setattr(
        catalogue, "FASTRES", replace(ours or stub_peer("fastres", right), bound=FASTRES_BOUND)
    )


def test_the_reference_is_first_and_each_row_says_its_precision() -> None:
    def keys(words: str) -> list[str]:
        entries = compare.entries(settings.parse(words.split()))
        return [f"{one.name}-{precision}" for one, precision in entries]

    assert keys("--precision bf16 fp32 --peers onnxruntime eager") == [
        *("eager-fp32", "onnxruntime-fp32", "fastres-fp32"),
        *("eager-bf16", "onnxruntime-bf16", "fastres-bf16"),
    ]
    assert keys("--precision bf16 --peers none") == ["eager-fp32", "fastres-bf16"]


@pytest.mark.campaign
def test_both_engines_stand_in_one_table(tmp_path: Path) -> None:
    found = rows(
        run_batch(tmp_path, words="--precision fp32 fp16 --threads 1 --peers fastres-onednn")
    )
    ours = found["fastres-onednn-fp32"]
    assert ours.status == "timed"
    assert ours.title == "fastres, oneDNN engine"
    assert ours.notes[0] == "engine onednn"
    assert found["fastres-fp32"].status == "timed"
    if not target.onednn_supports(torch.float16):
        half = found["fastres-onednn-fp16"]
        assert half.status == "unavailable"
        assert half.reason == "oneDNN has no float16 kernels on this machine"


def test_who_answers_rightly_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, stub_peer("honest", right, "in its own way"))
    batch = run_batch(tmp_path)
    assert batch.batch == 4
    assert batch.images_checked == 16
    assert [row.status for row in batch.rows] == ["timed"] * 3
    assert {len(row.samples_ns) for row in batch.rows} == {10}
    honest = rows(batch)["honest-fp32"]
    assert honest.notes == ("in its own way",)
    assert honest.title == "the honest"
    assert honest.top1 == 1.0


def test_who_answers_wrongly_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, stub_peer("liar", wrong), stub_peer("bomb", explodes))
    found = rows(run_batch(tmp_path))
    liar, bomb = found["liar-fp32"], found["bomb-fp32"]
    assert liar.status == bomb.status == "failed"
    assert liar.samples_ns == bomb.samples_ns == ()
    assert liar.error == pytest.approx(1e-3, rel=0.01)
    assert liar.reason is not None
    assert "error 1.0e-03" in liar.reason
    assert bomb.reason == "ArithmeticError: reading file failed"
    assert found["eager-fp32"].status == found["fastres-fp32"].status == "timed"


def test_fastres_is_held_to_its_own_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slightly_off(model: nn.Module, images: torch.Tensor) -> object:
        return model(images) * (1 + 2.5e-6)  # about five times eager's error

    only(
        monkeypatch,
        stub_peer("peer", slightly_off),
        ours=stub_peer("fastres", slightly_off),
    )
    found = rows(run_batch(tmp_path))
    assert found["peer-fp32"].status == "timed"
    assert found["fastres-fp32"].status == "failed"
    ratio = found["fastres-fp32"].error_ratio
    assert ratio is not None
    assert FASTRES_BOUND < ratio < PEER_BOUND


def test_the_exit_status_is_1_when_fastres_answers_wrongly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = """--model cifar_resnet20 --size 32 --batch 4 --seconds 0 --cold none --threads 1
        --precision fp32"""
    only(monkeypatch, stub_peer("liar", wrong))
    assert bench.main(words.split()) == 0, "a peer's failure is its own"
    only(monkeypatch, ours=stub_peer("fastres", wrong))
    assert bench.main(words.split()) == 1
    said = capsys.readouterr()
    assert "fastres-fp32 failed its check: error 1.0e-03" in said.err


def test_a_reference_that_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "REFERENCE", stub_peer("eager", explodes))
    only(monkeypatch)
    with pytest.raises(ModelError, match="eager itself cannot run the model in fp32: Arithmetic"):
        run_batch(tmp_path)


def test_a_model_whose_answers_are_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = stub_peer("eager", lambda model, images: model(images) + torch.randn(len(images), 1))
    monkeypatch.setattr(catalogue, "REFERENCE", noisy)
    only(monkeypatch)
    with pytest.raises(ModelError, match="the reference cannot be timed: error"):
        run_batch(tmp_path)


@pytest.mark.campaign
def test_onnx_runtime_says_that_it_has_no_bfloat16(tmp_path: Path) -> None:
    words = "--precision bf16 --peers onnxruntime"
    found = rows(run_batch(tmp_path, words=words))["onnxruntime-bf16"]
    assert found.status == "unavailable"
    assert found.reason == "its CPU provider has no bfloat16 convolution"
    assert found.samples_ns == ()
    assert onnxruntime_peer.refuses("fp32", "cpu") is None
    assert onnxruntime_peer.refuses("bf16", "cuda") is None


@pytest.mark.campaign
def test_onnx_runtime_has_a_row_for_our_export_too(tmp_path: Path) -> None:
    found = rows(run_batch(tmp_path, words="--precision fp32 bf16 --peers onnxruntime-export"))
    ours = found["onnxruntime-export-fp32"]
    assert (ours.title, ours.status) == ("ONNX Runtime, fastres export", "timed")
    assert ours.samples_ns
    assert any("the comparison with the model" in note for note in ours.notes)
    refused = found["onnxruntime-export-bf16"]
    assert (refused.status, refused.reason) == (
        "unavailable",
        "fastres.export writes float32 and float16",
    )
    assert export_peer.refuses("fp16", "cuda") is None


def test_a_peer_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = Peer(
        "absent",
        "Absent",
        stub_peer("absent", right).prepare,
        missing=lambda device: "pip install absent",
    )
    only(monkeypatch, absent)
    found = rows(run_batch(tmp_path))["absent-fp32"]
    assert (found.status, found.reason) == ("unavailable", "pip install absent")


def job(tmp_path: Path, precision: str) -> Job:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).eval()
    return Job(model, torch.randn(2, 3, 8, 8), precision, 1, tmp_path, tmp_path / "cache")


@pytest.mark.parametrize("prepare", [torch_peers.eager, torch_peers.channels_last])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_torch_computes_in_the_precision_it_is_labelled_with(
    tmp_path: Path, prepare: Callable[[Job], Ready], precision: str
) -> None:
    asked = job(tmp_path, precision)
    seen: list[torch.dtype] = []
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype)
    )
    try:
        (answer,) = gate.leaves(prepare(asked).call(asked.example))
    finally:
        hook.remove()
    assert set(seen) == {torch.float32 if precision == "fp32" else torch.bfloat16}
    assert answer.dtype == torch.float32
    assert next(asked.model.parameters()).dtype == torch.float32


def test_compile_leaves_no_setting_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    seen: list[tuple[bool, str]] = []

    def instead_of_compiling(
        model: nn.Module, dynamic: bool, mode: str | None
    ) -> Callable[[torch.Tensor], object]:
        def call(images: torch.Tensor) -> object:
            seen.append((config.freezing, os.environ["TORCHINDUCTOR_CACHE_DIR"]))
            return model(images)

        return call

    monkeypatch.setattr(torch, "compile", instead_of_compiling)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    before = config.freezing
    with pytest.raises(RuntimeError, match="compiled nothing and ran the model eagerly"):
        torch_peers.compiled(job(tmp_path, "fp32"))
    assert seen == [(True, str(tmp_path / "cache"))]
    assert config.freezing is before
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_compile_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    needed = torch_peers.missing_compiler("cpu")
    assert needed is not None
    assert "a C++ compiler" in needed


def test_on_a_gpu_channels_last_has_its_kernels_chosen_by_timing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = job(tmp_path, "fp16")
    seen: list[bool] = []

    class Watching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(torch.backends.cudnn.benchmark)
            return x.mean((1, 2, 3))

    monkeypatch.setattr(torch_peers, "_channels_last_copy", lambda job: Watching())
    monkeypatch.setattr(Job, "device", torch.device("cuda", 0))
    ready = torch_peers.channels_last(given)
    ready.call(given.example)
    assert seen == [True, True]
    assert not torch.backends.cudnn.benchmark
    assert ready.notes == ("cuDNN's kernels are chosen by timing",)


def test_the_row_of_fastres_in_tf32_leaves_the_precision_to_torchs_flags(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[object] = []

    def optimize(*args: object, precision: str | None, **kwargs: object) -> object:
        asked.append(precision)
        raise RuntimeError("seen")

    monkeypatch.setattr("fastres.optimize", optimize)
    for precision in ("tf32", "fp32", "fp16"):
        with pytest.raises(RuntimeError, match="seen"):
            fastres_peer.prepare(job(tmp_path, precision))
    assert asked == [None, "fp32", "fp16"]
