"""Who gets into a table, under which label, and who is timed."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastres import bench
from fastres.bench import compare, gate, settings
from fastres.bench.peers import (
    catalogue,
    export_peer,
    fastres_peer,
    nncf_peer,
    onnxruntime_peer,
    torch_peers,
)
from fastres.bench.peers.peer import (
    FASTRES_BOUND,
    FLOATING,
    PEER_BOUND,
    QUANTIZED,
    Job,
    Peer,
    Ready,
)
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
    others = inputs.synthetic_images(8, 3, 32, seed=1)
    stage = compare.Setup(given, model, pool, truth, folder, others)
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


@pytest.mark.campaign
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


@pytest.mark.campaign
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


@pytest.mark.campaign
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


@pytest.mark.campaign
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


def test_int8_has_rows_of_its_own_and_eager_has_none() -> None:
    given = settings.parse("--precision int8 fp32".split())  # noqa: SIM905
    keys = [f"{one.name}-{precision}" for one, precision in compare.entries(given)]
    assert keys[0] == "eager-fp32"
    assert "openvino-fp32" in keys
    assert keys[-3:] == ["onnxruntime-qdq-int8", "openvino-nncf-int8", "fastres-int8"]
    assert [key for key in keys if key.endswith("-int8")] == keys[-3:]
    assert compare.needs_calibration(compare.entries(given))
    floating = settings.parse(["--precision", "fp32"])
    assert not compare.needs_calibration(compare.entries(floating))
    for name, peer in catalogue.PEERS.items():
        assert peer.precisions in (FLOATING, QUANTIZED), name


def quantized_stub(name: str, answer: Answer, seen: list[Job]) -> Peer:
    """A peer for int8 that keeps its job."""
    stub = stub_peer(name, answer)

    def prepare(job: Job) -> Ready:
        seen.append(job)
        return stub.prepare(job)

    return replace(stub, prepare=prepare, precisions=QUANTIZED)


@pytest.mark.campaign
def test_who_quantises_gets_calibration_images_and_is_held_to_an_absolute_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def coarse(model: nn.Module, images: torch.Tensor) -> object:
        return model(images) * 1.2

    def far_off(model: nn.Module, images: torch.Tensor) -> object:
        return model(images) * 1.7

    seen: list[Job] = []
    only(
        monkeypatch,
        quantized_stub("coarse", coarse, seen),
        quantized_stub("far", far_off, seen),
        ours=quantized_stub("fastres", right, seen),
    )
    found = rows(run_batch(tmp_path, words="--precision fp32 int8"))
    assert set(found) == {
        *("eager-fp32", "fastres-fp32"),
        *("coarse-int8", "far-int8", "fastres-int8"),
    }
    assert found["coarse-int8"].status == "timed"
    assert found["coarse-int8"].error == pytest.approx(0.2)
    assert found["coarse-int8"].error_ratio is None
    assert found["far-int8"].status == "failed"
    for job in seen:
        if job.precision == "int8":
            assert job.calibration is not None
            assert job.calibration.shape == (8, 3, 32, 32)
        else:
            assert job.calibration is None
    assert {job.precision for job in seen} == {"fp32", "int8"}


@pytest.mark.campaign
@pytest.mark.parametrize(("off", "status"), [(0.0, "timed"), (1e-9, "failed")])
def test_fastres_in_int8_is_held_to_its_definition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off: float, status: str
) -> None:
    def prepare(job: Job) -> Ready:
        def definition(images: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                answer: torch.Tensor = job.model(images) * 1.1
            return answer

        return Ready(
            lambda images: definition(images).double() + off, definition=definition, is_exact=True
        )

    only(monkeypatch, ours=Peer("fastres", "fastres", prepare, precisions=QUANTIZED))
    ours = rows(run_batch(tmp_path, words="--precision int8"))["fastres-int8"]
    assert ours.status == status
    assert ours.error == pytest.approx(0.1)
    assert ours.error_ratio == pytest.approx(1.0)
    assert (ours.reason is None) == (status == "timed")


def quantizing_job(tmp_path: Path) -> Job:
    """A network of one convolution and a classifier, and images for it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    ).eval()
    calibration = inputs.synthetic_images(5, 3, 12, seed=1)
    example = inputs.synthetic_images(2, 3, 12, seed=0)
    return Job(model, example, "int8", 1, tmp_path, tmp_path / "cache", calibration)


def error_of(ready: Ready, job: Job) -> float:
    truth = gate.float64_outputs(job.model, job.example)
    return gate.relative_error(gate.collect(ready.call, [job.example]), truth)


@pytest.mark.campaign
def test_fastres_in_int8_brings_its_definition(tmp_path: Path) -> None:
    asked = quantizing_job(tmp_path)
    ready = fastres_peer.prepare(asked)
    assert ready.notes[0].startswith("engine ")
    assert ready.is_exact
    assert ready.definition is not None
    ours, defined = (
        gate.collect(call, [asked.example]).values for call in (ready.call, ready.definition)
    )
    assert torch.equal(ours, defined)
    assert 0 < error_of(ready, asked) < 0.05
    wider = fastres_peer.prepare(job(tmp_path, "fp32"))
    assert (wider.definition, wider.is_exact) == (None, False)


@pytest.mark.campaign
@pytest.mark.parametrize("peer", ["onnxruntime-qdq", "openvino-nncf"])
def test_peers_quantise_by_their_own_tools(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], peer: str
) -> None:
    needs = catalogue.PEERS[peer].missing("cpu")
    if needs is not None:
        pytest.skip(needs)
    asked = quantizing_job(tmp_path)
    ready = catalogue.PEERS[peer].prepare(asked)
    assert 1e-4 < error_of(ready, asked) < 0.05
    assert any("quantised by" in note for note in ready.notes)
    assert ready.export_seconds is not None
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", ""), "the table is all that the bench prints"
    assert "NNCF_CI" not in os.environ
    assert next(asked.model.parameters()).dtype == torch.float32
    if peer == "onnxruntime-qdq":
        import onnx

        graph = onnx.load(tmp_path / "quantized.onnx").graph
        kinds = {node.op_type for node in graph.node}
        assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
        assert "BatchNormalization" not in kinds
        (filters,) = (each for each in graph.initializer if list(each.dims) == [16, 3, 3, 3])
        assert filters.data_type == onnx.TensorProto.INT8
        assert any(list(each.dims) == [16] for each in graph.initializer if "scale" in each.name)


@pytest.mark.campaign
def test_without_instructions_for_bytes_onnx_runtime_gets_seven_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx
    from onnx import numpy_helper

    monkeypatch.setattr(onnxruntime_peer, "can_sum_bytes", lambda: False)
    ready = onnxruntime_peer.prepare_quantized(quantizing_job(tmp_path))
    assert "weights of seven bits, without instructions for eight" in ready.notes
    graph = onnx.load(tmp_path / "quantized.onnx").graph
    (filters,) = (each for each in graph.initializer if list(each.dims) == [16, 3, 3, 3])
    assert abs(numpy_helper.to_array(filters)).max() <= 64


@pytest.mark.parametrize(
    ("architecture", "isa", "can"),
    [
        ("x86_64", ("avx2",), False),
        ("x86_64", ("avx2", "avx512f"), False),
        ("x86_64", ("avx2", "avx_vnni"), True),
        ("x86_64", ("avx512f", "avx512_vnni"), True),
        ("aarch64", (), True),
    ],
)
def test_who_can_sum_bytes(
    monkeypatch: pytest.MonkeyPatch, architecture: str, isa: tuple[str, ...], can: bool
) -> None:
    cpu = SimpleNamespace(architecture=architecture, isa=isa)
    monkeypatch.setattr(target, "cpu", lambda: cpu)
    assert onnxruntime_peer.can_sum_bytes() is can


@pytest.mark.parametrize(("batch", "batches"), [(1, 5), (2, 3), (8, 1)])
def test_calibration_images_come_in_whole_batches(tmp_path: Path, batch: int, batches: int) -> None:
    asked = quantizing_job(tmp_path)
    asked = replace(asked, example=asked.example[:1].repeat(batch, 1, 1, 1))
    assert asked.calibration is not None
    found = onnxruntime_peer.calibration_batches(asked)
    assert [len(each) for each in found] == [batch] * batches
    assert torch.equal(torch.cat(found)[:5], asked.calibration)
    assert torch.equal(torch.cat(found)[5:], asked.calibration[: batch * batches - 5])


def test_without_nncf_its_row_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nncf_peer, "find_spec", lambda name: None)
    assert catalogue.PEERS["openvino-nncf"].missing("cpu") == "pip install nncf openvino"
    monkeypatch.setattr(nncf_peer, "find_spec", lambda name: None if name == "nncf" else name)
    assert nncf_peer.missing("cpu") == "pip install nncf"
