"""The bench on a GPU, as far as it can be followed where there is none."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from fastres import bench
from fastres.bench import compare, device, settings, table
from fastres.bench.peers import catalogue, onnx_file
from fastres.bench.peers.peer import Job
from fastres.errors import OptionError, TargetError
from tests.support.record_sample import sample


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says that there are two, the first of which is the current one."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


@pytest.fixture
def flags() -> Iterator[None]:
    """torch's flags are given back as they were."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def test_without_a_gpu_one_sentence_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert bench.main(["--device", "cuda", "--peers", "all"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "fastres bench: --device cuda: torch sees no GPU here; run this where there is one, or "
        "leave --device out to measure the CPU\n"
    )


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(("text", "index"), [("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)])
def test_which_gpu(text: str, index: int) -> None:
    assert device.parse(text) == torch.device("cuda", index)


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(TargetError, match="torch sees 2 GPUs, cuda:0 to cuda:1"):
        device.parse("cuda:2")


@pytest.mark.parametrize("text", ["gpu", "mps", "cuda:x", ""])
def test_what_is_no_device(text: str) -> None:
    with pytest.raises(OptionError, match="expected cpu, cuda or cuda:NUMBER"):
        device.parse(text)


@pytest.mark.usefixtures("two_gpus")
def test_who_takes_part_on_a_gpu() -> None:
    given = settings.parse(["--device", "cuda:1", "--peers", "all"])
    assert given.device == torch.device("cuda", 1)
    assert given.precisions == ("tf32", "fp16")
    assert given.peers == tuple(catalogue.peers("cuda"))
    assert {
        "cuda-graph",
        "compile-replayed",
        "compile-max",
        "onnxruntime",
        "tensorrt",
        "torch-tensorrt",
    } <= set(given.peers)
    assert "openvino" not in given.peers
    found = [(entry.name, precision) for entry, precision in compare.entries(given)]
    assert found[0] == ("eager", "fp32")
    assert ("fastres", "tf32") in found
    assert found[-1] == ("fastres", "fp16")


@pytest.mark.usefixtures("two_gpus")
def test_int8_on_a_gpu_is_fastres_alone() -> None:
    given = settings.parse(["--device", "cuda", "--precision", "int8"])
    names = [entry.name for entry, precision in compare.entries(given) if precision == "int8"]
    assert names == ["fastres"]


def test_tf32_is_for_gpus() -> None:
    with pytest.raises(OptionError, match="--precision tf32: only GPUs have it; see --device"):
        settings.parse(["--precision", "tf32"])
    with pytest.raises(OptionError, match="--peers tensorrt: expected none, all or some of eager"):
        settings.parse(["--peers", "tensorrt"])


@pytest.mark.usefixtures("flags")
@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("tf32", True)])
def test_a_call_runs_under_its_flags_and_to_its_end(
    monkeypatch: pytest.MonkeyPatch, precision: str, allowed: bool
) -> None:
    happened: list[object] = []
    gpu = torch.device("cuda", 1)

    @contextlib.contextmanager
    def current(where: torch.device) -> Iterator[None]:
        happened.append(("current", where))
        yield
        happened.append("left")

    def call(images: torch.Tensor) -> object:
        happened.append(torch.backends.cudnn.allow_tf32)
        happened.append(torch.backends.cuda.matmul.allow_tf32)
        return images + 1

    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda where: happened.append(("end", where)))
    answer = device.synchronized(call, precision, gpu)(torch.zeros(1))
    assert isinstance(answer, torch.Tensor)
    assert float(answer) == 1.0
    assert happened == [("current", gpu), allowed, allowed, ("end", gpu), "left"]


def test_on_the_cpu_nothing_is_added() -> None:
    def call(images: torch.Tensor) -> object:
        return images

    assert device.synchronized(call, "fp32", torch.device("cpu")) is call


@pytest.mark.sampled(3)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_file_in_another_precision_takes_and_gives_float32(
    tmp_path: Path, precision: str
) -> None:
    import onnx

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).eval()
    job = Job(model, torch.randn(2, 3, 8, 8), precision, 1, tmp_path, tmp_path / "cache")
    path, seconds = onnx_file.write(job)
    assert seconds > 0
    graph = onnx.load(path).graph
    kinds = {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    assert kinds == {onnx.TensorProto.FLOAT}
    weights = {
        "fp32": onnx.TensorProto.FLOAT,
        "fp16": onnx.TensorProto.FLOAT16,
        "bf16": onnx.TensorProto.BFLOAT16,
    }
    filters = [tensor for tensor in graph.initializer if len(tensor.dims) == 4]
    assert {tensor.data_type for tensor in filters} == {weights[precision]}
    assert model[0].weight.dtype == torch.float32


def test_a_record_from_a_gpu_names_it() -> None:
    found = sample()
    gpu = {
        "name": "Some GPU",
        "driver": "123.4",
        "cuda": "13.0",
        "hip": None,
    }
    there = replace(found, environment={**found.environment, "gpu": gpu})
    text = io.StringIO()
    table.show(there, "eager-fp32", Console(file=text))
    assert "Some GPU, driver 123.4, CUDA 13.0" in text.getvalue()
    assert "peak: the GPU's memory that is in use by then, MiB." in text.getvalue()
    on_cpu = table.markdown(found, "eager-fp32")
    assert "Some GPU" not in on_cpu
    assert "peak: largest resident size of that process, MiB." in on_cpu
