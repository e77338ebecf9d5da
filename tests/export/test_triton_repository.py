"""Model repositories for Triton Inference Server, read with the server's own message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fastres
from fastres.errors import OptionError, VerificationError
from fastres.export import Session, session, triton_server
from fastres.export.serving import triton_config, triton_repository
from fastres.transforms import Transforms
from tests.support.small import EXAMPLE, Exported, PairNet, conv, net, small_model

text_format = pytest.importorskip("google.protobuf.text_format")
model_config_pb2 = pytest.importorskip("tritonclient.grpc").model_config_pb2


def parsed(folder: Path) -> Any:
    config = model_config_pb2.ModelConfig()
    text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), config)
    return config


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_repository(exported: Exported, tmp_path: Path) -> None:
    report = triton_server(
        exported.model,
        tmp_path / "models",
        name="small",
        max_batch_size=16,
        preferred_batch_sizes=[4, 16],
        max_queue_delay_us=250,
        instance_count=2,
        kind="gpu",
        gpus=[0, 1],
        tensorrt=True,
        labels=list("abcde"),
        example_input=EXAMPLE,
    )
    assert files(tmp_path / "models") == [
        "small/1/model.onnx",
        "small/config.pbtxt",
        "small/labels.txt",
    ]
    assert list((tmp_path / "models").iterdir()) == [report.path]
    config = parsed(report.path)
    assert (config.name, config.backend, config.max_batch_size) == ("small", "onnxruntime", 16)
    assert config.default_model_filename == "model.onnx"
    (given,), (result,) = config.input, config.output
    assert (given.name, list(given.dims)) == ("x", [3, 40, 40])
    assert (result.name, list(result.dims)) == ("output", [5])
    assert given.data_type == result.data_type == model_config_pb2.TYPE_FP32
    assert result.label_filename == "labels.txt"
    assert (report.path / "labels.txt").read_text() == "a\nb\nc\nd\ne\n"
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 16]
    assert config.dynamic_batching.max_queue_delay_microseconds == 250
    (group,) = config.instance_group
    kinds = model_config_pb2.ModelInstanceGroup
    assert (group.kind, group.count, list(group.gpus)) == (kinds.KIND_GPU, 2, [0, 1])
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert accelerator.parameters["precision_mode"] == "FP32"
    assert config.version_policy.latest.num_versions == 1
    warm = config.model_warmup
    assert [each.batch_size for each in warm] == [1, 4, 16]
    for each in warm:
        sample = each.inputs["x"]
        assert (list(sample.dims), sample.zero_data) == ([3, 40, 40], True)
        assert sample.data_type == model_config_pb2.TYPE_FP32
    assert report.checks == (
        "config.pbtxt parsed into Triton's own message",
        "run in ONNX Runtime as declared, batches 1, 4, 16",
    )
    assert "run in ONNX Runtime as declared" in str(report)
    images = torch.randn(2, 3, 40, 40)
    answers = session(report.path / "1" / "model.onnx")(images)
    torch.testing.assert_close(answers, exported.model(images).detach(), rtol=1e-4, atol=1e-5)


def test_any_image_size_and_float16_on_a_cpu(exported: Exported, tmp_path: Path) -> None:
    report = triton_server(
        exported.model,
        tmp_path,
        name="half",
        example_input=EXAMPLE,
        dynamic_size=True,
        precision="fp16",
        kind="cpu",
        threads=2,
        versions=[1, 3],
        max_batch_size=4,
    )
    config = parsed(report.path)
    assert list(config.input[0].dims) == [3, -1, -1]
    assert config.input[0].data_type == model_config_pb2.TYPE_FP16
    assert [list(w.inputs["x"].dims) for w in config.model_warmup] == [[3, 40, 40]] * 3
    assert [w.batch_size for w in config.model_warmup] == [1, 2, 4]
    assert list(config.version_policy.specific.versions) == [1, 3]
    assert config.parameters["intra_op_thread_count"].string_value == "2"
    assert not config.HasField("optimization")


def test_tensorrt_computes_in_the_files_precision(exported: Exported, tmp_path: Path) -> None:
    report = triton_server(
        *(exported.model, tmp_path),
        name="half",
        example_input=EXAMPLE,
        precision="fp16",
        tensorrt=True,
    )
    (accelerator,) = parsed(
        report.path
    ).optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.parameters["precision_mode"] == "FP16"


@pytest.mark.campaign
def test_another_version(exported: Exported, tmp_path: Path) -> None:
    def write(version: int, **options: Any) -> None:
        triton_server(
            *(exported.model, tmp_path), name="m", version=version, example_input=EXAMPLE, **options
        )

    write(1, versions="all")
    before = (tmp_path / "m" / "config.pbtxt").stat().st_mtime_ns
    write(2, versions="all")
    assert files(tmp_path) == ["m/1/model.onnx", "m/2/model.onnx", "m/config.pbtxt"]
    assert (tmp_path / "m" / "config.pbtxt").stat().st_mtime_ns == before
    assert parsed(tmp_path / "m").version_policy.HasField("all")
    with pytest.raises(OptionError, match=r"m/2: this version exists; write version=3"):
        write(2, versions="all")
    for other in ({"max_batch_size": 2}, {"labels": list("abcde")}, {"dynamic_size": True}):
        with pytest.raises(OptionError, match="all versions share it"):
            write(3, versions="all", **other)
    assert files(tmp_path) == ["m/1/model.onnx", "m/2/model.onnx", "m/config.pbtxt"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def test_a_folder_that_was_left_half_written(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()  # by somebody else; named after the class by default
    with pytest.raises(OptionError, match=r"small/config.pbtxt: it is not there, and part"):
        triton_server(exported.model, tmp_path, example_input=EXAMPLE)
    assert files(tmp_path) == []
    (tmp_path / "small").rmdir()
    report = triton_server(exported.model, tmp_path, example_input=EXAMPLE)
    assert report.path == tmp_path / "small"
    fast = fastres.optimize(exported.model, EXAMPLE, engine="eager")
    with pytest.raises(OptionError, match="small/1: this version exists"):
        triton_server(fast, tmp_path)


def test_labels_of_a_model_that_answers_with_places(exported: Exported, tmp_path: Path) -> None:
    """The server would look for a label by the place among the largest: it must not."""
    transforms = Transforms(resize=48, crop=40)
    given: dict[str, Any] = {"input_format": "uint8_nhwc", "transforms": transforms}
    names = list("abcde")
    report = triton_server(
        *(exported.model, tmp_path), name="k", top_k=2, softmax=True, labels=names, **given
    )
    assert (report.path / "labels.txt").read_text() == "a\nb\nc\nd\ne\n"
    assert [output.label_filename for output in parsed(report.path).output] == ["", ""]
    with pytest.raises(OptionError, match=r"'b\\nc' is not one line"):
        triton_server(
            exported.model, tmp_path, name="n", labels=["a", "b\nc", *"def"], example_input=EXAMPLE
        )
    assert [each.name for each in tmp_path.iterdir()] == ["k"]


def test_two_inputs_have_one_batch_on_the_server(tmp_path: Path) -> None:
    model = PairNet(lambda m, x, y: (m.conv(x), m.conv(y)), conv=conv()).eval()
    example = (torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 8, 8))
    report = triton_server(model, tmp_path, name="pair", example_input=example)
    assert [list(given.dims) for given in parsed(report.path).input] == [[4, 8, 8], [4, 8, 8]]


def test_results_without_sizes_beside_the_batch(tmp_path: Path) -> None:
    model = net(lambda m, x: m.conv(x).mean((1, 2, 3)), conv=conv())
    report = triton_server(model, tmp_path, name="m", example_input=torch.zeros(1, 4, 9, 8))
    (result,) = parsed(report.path).output
    assert (list(result.dims), list(result.reshape.shape)) == ([1], [])
    assert result.HasField("reshape")


def test_a_model_without_an_open_batch_is_served_one_by_one(tmp_path: Path) -> None:
    model = net(lambda m, x: m.conv(x).mean(), conv=conv())
    example = torch.zeros(2, 4, 9, 8)
    with pytest.raises(OptionError, match=r"output float32 \[\] has no open batch .* give max_b"):
        triton_server(model, tmp_path, name="m", example_input=example)
    assert list(tmp_path.iterdir()) == []
    report = triton_server(model, tmp_path, name="m", example_input=example, max_batch_size=0)
    config = parsed(report.path)
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [-1, 4, 9, 8]
    (warm,) = config.model_warmup
    assert (warm.batch_size, list(warm.inputs["x"].dims)) == (0, [2, 4, 9, 8])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "../m"}, "name: got '../m', expected letters"),
        ({"name": ""}, "name: got ''"),
        ({"version": 0}, "version: got 0, expected an integer of at least 1"),
        ({"versions": "newest"}, "expected 'latest', 'all' or a list"),
        ({"versions": []}, r"versions: got \(\)"),
        ({"max_batch_size": -1}, "max_batch_size: got -1"),
        ({"preferred_batch_sizes": [16]}, r"got \[16\], expected sizes from 1 to max_batch_size=8"),
        ({"max_queue_delay_us": 0.5}, "max_queue_delay_us: got 0.5"),
        ({"instance_count": 0}, "instance_count: got 0"),
        ({"kind": "tpu"}, "kind: got 'tpu', expected one of 'auto', 'cpu', 'gpu'"),
        ({"kind": "cpu", "tensorrt": True}, "TensorRT runs on GPUs"),
        ({"gpus": [0]}, r"gpus: got \[0\], expected indices of GPUs, with kind='gpu'"),
        ({"threads": 0}, "threads: got 0"),
        ({"opset": 3}, "opset: got 3"),
    ],
)
def test_bad_arguments(
    options: dict[str, Any], says: str, exported: Exported, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=says):
        triton_server(
            exported.model, tmp_path / "r", **{"name": "m", "example_input": EXAMPLE, **options}
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.sampled(3)
@pytest.mark.parametrize("fault", ["syntax", "name", "shape"])
def test_a_configuration_that_does_not_fit_is_not_written(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = triton_config.text

    def faulty(*args: Any) -> str:
        text = real(*args)
        old, new = {"syntax": ("input {", "input {{"), "name": ('"x"', '"y"')}[fault]
        return text.replace(old, new)

    if fault == "shape":
        monkeypatch.setattr(
            triton_repository,
            "_example",
            lambda loaded, report: [[1, 3, 40, 40] for _ in loaded.inputs],
        )
        monkeypatch.setattr(Session, "__call__", lambda self, x: torch.zeros(len(x), 4))
    else:
        monkeypatch.setattr(triton_config, "text", faulty)
    with pytest.raises(VerificationError, match=r"cannot be parsed|declares \['y'|declared as"):
        triton_server(small_model(), tmp_path / "r", name="m", example_input=EXAMPLE)
    assert list(tmp_path.iterdir()) == []


def test_without_tritonclient_the_configuration_is_not_parsed_and_says_so(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_repository, "find_spec", lambda name: None)
    report = triton_server(exported.model, tmp_path, name="m", example_input=EXAMPLE)
    assert report.checks[0].startswith("config.pbtxt was not parsed: pip install tritonclient")
