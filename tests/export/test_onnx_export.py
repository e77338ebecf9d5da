"""The file: its operators, names, sizes, precision, description; and when there is none."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

import fastres
from fastres import models
from fastres.errors import ArtifactError, FastresWarning, ModelError, OptionError
from fastres.export import model_file, session, to_onnx, triton_server
from fastres.export.metadata import CHECKSUM, weights_sha256
from fastres.transforms import Transforms
from tests.support.oracle import unchanged
from tests.support.small import EXAMPLE, OPERATORS, Exported, small_model
from tests.zoo.statistics import randomise_statistics


def metadata(path: Path) -> dict[str, str]:
    return {p.key: p.value for p in onnx.load(path, load_external_data=False).metadata_props}


@pytest.mark.campaign
def test_resnet50_is_53_convolutions_and_nothing_that_is_not_needed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = randomise_statistics(models.resnet50(), torch.randn(4, 3, 64, 64)).eval()
    path = tmp_path / "resnet50.onnx"
    with unchanged(model):
        report = to_onnx(model, path, example_input=torch.zeros(1, 3, 64, 64), openvino=True)
    assert report.operators == {
        **{"Conv": 53, "Relu": 49, "Add": 16, "MaxPool": 1},
        **{"GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1},
    }
    proto = onnx.load(path)
    assert Counter(node.op_type for node in proto.graph.node) == report.operators
    assert all(len(n.input) == 3 for n in proto.graph.node if n.op_type in ("Conv", "Gemm"))
    names = [node.name for node in proto.graph.node]
    assert {"conv1", "layer1.0.conv2", "layer1.0.conv2/Relu", "layer4.2.conv3/Add"} <= set(names)
    assert len(set(names)) == len(names)
    constants = {tensor.name for tensor in proto.graph.initializer}
    assert {"layer3.5.conv1.weight", "layer3.5.conv1.bias", "fc.weight", "fc.bias"} <= constants
    assert report.top1_agreement == 1
    assert report.not_in_tensorrt == ()
    assert any(sentence.startswith("OpenVINO") for sentence in report.checks)
    assert [path] == list(tmp_path.iterdir())
    assert path.stat().st_size == report.bytes


def test_the_report_says_what_there_is(exported: Exported) -> None:
    report = exported.report
    assert report.operators == OPERATORS
    assert report.inputs == ("x float32 [batch, 3, height, width]",)
    assert report.outputs == ("output float32 [batch, 5]",)
    assert (report.opset, report.precision, report.data) == (18, "float32", None)
    assert report.example == {"batch": 1, "height": 40, "width": 40}
    (error,) = report.errors.values()
    assert error[2] <= 2
    assert report.images == report.agreeing == 1 + 2 + 7 + 2
    text = str(report)
    for part in ("opset 18", "6 Conv", "against float64", "first choice", "2x3x47x61"):
        assert part in text


def test_the_file_describes_itself(exported: Exported) -> None:
    given = metadata(exported.path)
    assert given["fastres.version"] == fastres.__version__
    assert given["fastres.model"] == "Small"
    assert given["fastres.source"] == "state_dict"
    assert given["fastres.source_sha256"] == weights_sha256(exported.model)
    assert exported.report.source_sha256 == weights_sha256(exported.model)
    assert json.loads(given["fastres.labels"]) == list("abcde")
    assert "fastres.preprocessing" not in given
    proto = onnx.load(exported.path)
    assert (proto.producer_name, proto.producer_version) == ("fastres", fastres.__version__)
    assert given[CHECKSUM] == model_file.checksum(proto, exported.path.parent)


def test_the_checksum_of_the_source_changes_with_the_weights(exported: Exported) -> None:
    other = small_model()
    assert weights_sha256(other) == weights_sha256(exported.model)
    with torch.no_grad():
        other.get_parameter("fc.bias")[0] += 1e-3
    assert weights_sha256(other) != weights_sha256(exported.model)


def test_an_optimised_model_is_exported_as_it_is(exported: Exported, tmp_path: Path) -> None:
    fast = fastres.optimize(exported.model, EXAMPLE)
    report = to_onnx(fast, tmp_path / "m.onnx")
    assert report.operators == OPERATORS
    assert report.inputs == ("x float32 [batch, 3, 40, 40]",)
    assert metadata(tmp_path / "m.onnx")["fastres.source"] == "folded weights"
    larger = to_onnx(fast, tmp_path / "m.onnx", example_input=torch.zeros(1, 3, 56, 48))
    assert larger.inputs == ("x float32 [batch, 3, 56, 48]",)


def test_a_restored_model_is_exported_too(exported: Exported, tmp_path: Path) -> None:
    fast = fastres.optimize(exported.model, EXAMPLE, engine="eager")
    fast.save(tmp_path / "m.fastres")
    report = to_onnx(fastres.load(tmp_path / "m.fastres"), tmp_path / "m.onnx", dynamic_size=True)
    assert report.operators == OPERATORS
    assert "layer1.conv1/Relu" in {n.name for n in onnx.load(tmp_path / "m.onnx").graph.node}


@pytest.mark.parametrize("float32_io", [False, True])
def test_float16(float32_io: bool, exported: Exported, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    report = to_onnx(
        exported.model, path, example_input=EXAMPLE, precision="fp16", float32_io=float32_io
    )
    outside = "float32" if float32_io else "float16"
    assert report.inputs == (f"x {outside} [batch, 3, 40, 40]",)
    assert report.outputs == (f"output {outside} [batch, 5]",)
    assert report.operators == OPERATORS | ({"Cast": 2} if float32_io else {})
    types = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert types == {onnx.TensorProto.FLOAT16}
    assert report.precision == "float16"


def test_a_float16_model_with_float32_at_its_borders(tmp_path: Path) -> None:
    report = to_onnx(
        small_model().half(), tmp_path / "m.onnx", example_input=EXAMPLE.half(), float32_io=True
    )
    assert report.inputs[0].startswith("x float32")
    assert report.operators == OPERATORS | {"Cast": 2}


@pytest.mark.campaign
def test_weights_in_a_file_of_their_own(exported: Exported, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    first = to_onnx(exported.model, path, example_input=EXAMPLE, external_data=True)
    assert first.data is not None
    assert sorted(tmp_path.iterdir()) == sorted([path, first.data])
    assert path.stat().st_size < first.data.stat().st_size
    onnx.checker.check_model(str(path), full_check=True)
    images = torch.randn(2, 3, 40, 40)
    torch.testing.assert_close(session(path)(images), exported.model(images).detach())
    # Other weights: another second file, and the old one goes.
    other = small_model()
    with torch.no_grad():
        other.get_parameter("layer1.conv1.weight").mul_(1.5)
    second = to_onnx(other, path, example_input=EXAMPLE, external_data=True)
    assert second.data is not None and second.data != first.data
    assert sorted(tmp_path.iterdir()) == sorted([path, second.data])
    # One file again.
    to_onnx(exported.model, path, example_input=EXAMPLE)
    assert list(tmp_path.iterdir()) == [path]


def test_weights_beyond_the_limit_of_one_file(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_file, "LIMIT", 10_000)
    report = to_onnx(exported.model, tmp_path / "m.onnx", example_input=EXAMPLE)
    assert report.data is not None


@pytest.mark.campaign
def test_preprocessing_is_in_the_file_and_described(exported: Exported, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    transforms = Transforms(resize=48, crop=40, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    report = to_onnx(
        exported.model,
        path,
        input_format="uint8_nhwc",
        transforms=transforms,
        resize=True,
        softmax=True,
        top_k=2,
    )
    assert report.inputs == ("x uint8 [batch, height, width, 3]",)  # it resizes: any size
    assert [text.split()[1] for text in report.outputs] == ["float32", "int64"]
    assert report.top1_agreement == 1
    described = json.loads(metadata(path)["fastres.preprocessing"])
    assert Transforms.from_dict(described["transforms"]) == transforms
    pixels = torch.randint(0, 256, (3, 61, 90, 3), dtype=torch.uint8)
    values, indices = session(path)(pixels).values()
    fast = fastres.optimize(
        exported.model,
        input_format="uint8_nhwc",
        transforms=transforms,
        resize=True,
        softmax=True,
        top_k=2,
    )
    wanted, places = fast(pixels)
    assert torch.equal(indices, places)
    torch.testing.assert_close(values, wanted, rtol=2e-2, atol=0)  # bytes may round differently


@pytest.mark.parametrize("top_k", [None, 2])
def test_labels_are_as_many_as_the_classes(
    top_k: int | None, exported: Exported, tmp_path: Path
) -> None:
    fast = fastres.optimize(
        exported.model,
        input_format="uint8_nhwc",
        transforms=Transforms(resize=48, crop=40),
        softmax=True,
        top_k=top_k,
    )
    for wrong in (list("ab"), list("abcdef"), []):
        with pytest.raises(OptionError, match="names for 5 classes"):
            to_onnx(fast, tmp_path / "m.onnx", labels=wrong)
    with pytest.raises(OptionError, match="a sequence of names"):
        to_onnx(fast, tmp_path / "m.onnx", labels=5)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    to_onnx(fast, tmp_path / "m.onnx", labels=list("abcde"))
    given = metadata(tmp_path / "m.onnx")
    assert json.loads(given["fastres.labels"]) == list("abcde")
    assert json.loads(given["fastres.preprocessing"])["labels"] == list("abcde")


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", ["a [b]*.onnx", "a:b.onnx", "空 ü", "..onnx", "m..", "v..2.onnx"])
def test_names_with_other_letters(name: str, exported: Exported, tmp_path: Path) -> None:
    path = tmp_path / "with space" / name
    path.parent.mkdir()
    for factor in (1.0, 1.5):
        model = small_model()
        with torch.no_grad():
            model.get_parameter("fc.weight").mul_(factor)
        report = to_onnx(model, path, example_input=EXAMPLE, external_data=True)
        assert report.data is not None and report.data.is_file()
        assert sorted(path.parent.iterdir()) == sorted([path, report.data])
        images = torch.randn(2, 3, 40, 40)
        torch.testing.assert_close(session(path)(images), model(images).detach())


@pytest.mark.campaign
@pytest.mark.parametrize("external", [False, True])
def test_the_permissions_of_what_was_there_are_kept(
    external: bool, exported: Exported, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    for mode in (0o600, 0o640):
        path.touch()
        path.chmod(mode)
        to_onnx(exported.model, path, example_input=EXAMPLE, external_data=external)
        modes = {each.stat().st_mode & 0o777 for each in tmp_path.iterdir()}
        assert modes == {mode}
        assert len(list(tmp_path.iterdir())) == 1 + external


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["a\0b", 3, None, "\udcff.onnx", "a" * 300 + ".onnx"])
def test_names_that_no_file_can_have(name: Any, exported: Exported, tmp_path: Path) -> None:
    path = tmp_path / name if isinstance(name, str) else name
    fast = fastres.optimize(exported.model, EXAMPLE, engine="eager")
    works: list[Callable[[], Any]] = [
        lambda: to_onnx(fast, path),
        lambda: session(path),
        lambda: triton_server(fast, path, name="m") if name != "\udcff.onnx" else session(path),
    ]
    if name != "\udcff.onnx":  # which is a good name of any other file
        works += [lambda: fast.save(path), lambda: fastres.load(path)]
    for work in works:
        with pytest.raises((OptionError, ArtifactError)):
            work()
    assert not list(tmp_path.iterdir())


def test_names_as_bytes(exported: Exported, tmp_path: Path) -> None:
    fast = fastres.optimize(exported.model, EXAMPLE, engine="eager")
    path: Any = os.fsencode(tmp_path / "a")
    fast.save(path)
    loaded = fastres.load(path, engine="eager")
    assert torch.equal(loaded(EXAMPLE), fast(EXAMPLE))


def test_what_is_no_file_is_not_replaced_by_one(exported: Exported, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OptionError, match="no regular file"):
        to_onnx(exported.model, pipe, example_input=EXAMPLE)
    with pytest.raises(ArtifactError, match="no regular file"):
        fastres.optimize(exported.model, EXAMPLE, engine="eager").save(pipe)
    assert pipe.is_fifo()


def test_a_model_in_training_mode_warns_and_stays(tmp_path: Path) -> None:
    model = small_model().train()
    with unchanged(model), pytest.warns(FastresWarning, match="training mode"):
        to_onnx(model, tmp_path / "m.onnx", example_input=EXAMPLE)


def test_what_stays_with_torch_in_an_optimised_model_is_no_warning_here(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 2, 1)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = to_onnx(model, tmp_path / "m.onnx", example_input=EXAMPLE)
    assert report.operators == {"Conv": 2, "Tanh": 1}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "opset": ({"opset": 12}, "opset: got 12, expected an integer from 13 to 23"),
    "opset as text": ({"opset": "18"}, "opset: got '18'"),
    "bf16": ({"precision": "bf16"}, "expected one of 'fp32', 'fp16', 'int8'"),
    "flag": ({"dynamic_size": "yes"}, "expected True or False"),
    "labels as text": ({"labels": "abcde"}, "a sequence of names"),
    "too few labels": ({"labels": ["a", "b"]}, "got 2 names for 5 classes"),
    "option of nobody": ({"engine": "fast"}, "engine: got 'fast'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_are_refused(case: str, exported: Exported, tmp_path: Path) -> None:
    options, says = REFUSED[case]
    with pytest.raises(OptionError, match=says):
        to_onnx(exported.model, tmp_path / "m.onnx", example_input=EXAMPLE, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "no/such/folder/m.onnx"])
def test_paths_that_cannot_be(name: str, exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"expected the name of a file|there is no directory"):
        to_onnx(exported.model, tmp_path / name, example_input=EXAMPLE)


def test_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"model is a dict: expected an nn\.Module or what"):
        to_onnx({}, tmp_path / "m.onnx")  # type: ignore[arg-type]


def test_bfloat16_cannot_be_checked_and_is_refused(exported: Exported, tmp_path: Path) -> None:
    fast = fastres.optimize(exported.model, EXAMPLE, precision="bf16", engine="eager")
    with pytest.raises(ModelError, match="computes in bfloat16, and ONNX Runtime has no"):
        to_onnx(fast, tmp_path / "m.onnx")


def test_an_optimised_model_has_a_precision(exported: Exported, tmp_path: Path) -> None:
    fast = fastres.optimize(exported.model, EXAMPLE, engine="eager")
    with pytest.raises(OptionError, match="this optimised model computes in float32: give the"):
        to_onnx(fast, tmp_path / "m.onnx", precision="fp16")
    with pytest.raises(OptionError, match="threads: for a model that is not optimised yet"):
        to_onnx(fast, tmp_path / "m.onnx", threads=1)
    with pytest.raises(OptionError, match=r"example_input: got \[1, 4, 40, 40\]"):
        to_onnx(fast, tmp_path / "m.onnx", example_input=torch.zeros(1, 4, 40, 40))


def test_a_model_of_one_size_has_no_file_for_all(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()
    example = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ModelError, match="dynamic_size=True, but this model fixes its image"):
        to_onnx(model, tmp_path / "m.onnx", example_input=example, dynamic_size=True)
    assert to_onnx(model, tmp_path / "m.onnx", example_input=example).operators == {
        "Conv": 1,
        "Flatten": 1,
        "Gemm": 1,
    }


def test_without_the_packages_the_extra_is_named(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastres.export import requirements

    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    with pytest.raises(fastres.TargetError, match=r"needs the package onnx: pip install 'fastres"):
        to_onnx(exported.model, tmp_path / "m.onnx", example_input=EXAMPLE)
