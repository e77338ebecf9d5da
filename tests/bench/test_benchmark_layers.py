"""The script that holds every convolution against the peak, with a small network."""

from __future__ import annotations

import io
import json
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch import nn

from benchmarks import layers, native, openvino_layers
from fastres import models
from fastres.bench import measure
from fastres.bench.peers import openvino_peer
from fastres.runtime.native.library import load
from fastres.workload import inputs, model_source

WORDS = "--model resnet18 --size 64 --batch 2 --threads 1 --seconds 0 --precision fp32".split()  # noqa: SIM905

needs_native = pytest.mark.skipif(
    native.why_unavailable("fp32") is not None, reason=str(native.why_unavailable("fp32"))
)


@pytest.mark.campaign
@needs_native
@pytest.mark.parametrize("with_openvino", [True, False])
def test_every_convolution_has_its_row_and_its_place_in_the_record(
    with_openvino: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not with_openvino:
        monkeypatch.setattr(openvino_peer, "missing", lambda device: "pip install openvino")
    path = tmp_path / "layers.json"
    assert layers.main([*WORDS, "--json", str(path)]) == 0
    said = capsys.readouterr().out
    text = path.read_text(encoding="utf-8")
    record = json.loads(text)
    assert (record["schema"], record["version"], record["batch"]) == ("fastres.layers", 1, 2)
    assert str(Path.home()) not in text
    assert str(tmp_path) not in text
    (found,) = record["precisions"]
    assert found["precision"] == "fp32"
    rounds = len(found["peak"])
    assert rounds >= 10
    assert min(found["peak"]) > 0
    model = models.build("resnet18")
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    assert sorted(row["module"] for row in found["convolutions"]) == sorted(names)
    for row in found["convolutions"]:
        assert row["kind"] in ("convolution", "winograd")
        for engine in ("native_ns", "onednn_ns"):
            assert len(row[engine]) == rounds
            assert min(row[engine]) > 0
        assert row["module"] in said
    if openvino_layers.why_unavailable("fp32") is None:
        assert all(len(row["openvino_ns"]) == rounds for row in found["convolutions"])
    else:
        assert not any(row["openvino_ns"] for row in found["convolutions"])
        assert str(found["openvino"]) in said
    if not with_openvino:
        assert found["openvino"] == "OpenVINO is not here: pip install openvino"


@pytest.mark.campaign
@pytest.mark.skipif(
    native.why_unavailable("int8") is not None, reason=str(native.why_unavailable("int8"))
)
def test_int8_has_its_share_of_the_peak_beside_openvino(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "layers.json"
    words = [*WORDS[:-1], "int8", "--json", str(path)]
    assert layers.main(words) == 0
    (found,) = json.loads(path.read_text(encoding="utf-8"))["precisions"]
    assert (found["precision"], found["openvino"]) == (
        "int8",
        openvino_layers.why_unavailable("int8"),
    )
    library = load()
    assert not isinstance(library, str)
    assert found["isa"] == native.instruction_set(library, "int8")
    rounds = len(found["peak"])
    assert min(found["peak"]) > 0
    for row in found["convolutions"]:
        assert row["kind"] == "convolution"
        assert row["onednn_ns"] == []
        assert len(row["native_ns"]) == rounds
        if found["openvino"] is None:
            assert len(row["openvino_ns"]) == rounds, row["module"]
    assert "int8: the peak of 1 thread" in capsys.readouterr().out


def test_without_the_engine_there_is_no_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native, "load", lambda: "its library was not built")
    assert layers.main(WORDS) == 1
    assert capsys.readouterr().out == "fp32: no native engine: its library was not built\n"


def test_a_batch_that_threads_cannot_share_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        layers.main(["--batch", "5", "--threads", "2"])
    assert raised.value.code == 2
    assert "--batch 5: expected a multiple of 2 threads" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d"])
def test_multiply_adds_are_the_direct_ones(name: str) -> None:
    model = model_source.build(model_source.parse(name), seed=0)
    found = layers.convolutions(model, torch.zeros(1, 3, 64, 64))
    total = sum(each.multiply_adds for each in found)
    assert total == models.count(model, 64).multiply_adds - model.get_parameter("fc.weight").numel()
    assert found[0].shape == "3->64 7x7/2, 32x32"


def test_numbers_of_a_row() -> None:
    """A thousand multiply-adds per image, two images in a microsecond, of a peak of 4e9."""
    row = layers.Convolution(
        "stem", "3->4 1x1/1, 5x5", 1000, "winograd", (900, 1000, 1100), (1800, 2000, 2200), ()
    )
    alone = layers.Convolution("rest", "4->4 1x1/1, 5x5", 1000)
    found = layers.PrecisionResult("fp32", "avx512", (3e9, 4e9, 5e9), "OpenVINO: no", (row, alone))
    said = io.StringIO()
    layers.show(found, 2, 1, Console(width=110, file=said))
    lines = {line.split()[0]: line.split() for line in said.getvalue().splitlines() if line.split()}
    assert lines["stem"][-5:] == ["winograd", "0.001", "50%", "2.00x", "-"]
    assert lines["rest"][-5:] == ["-"] * 5
    assert lines["all"] == ["all", "0.001", "50%", "2.00x", "-"]
    assert "the peak of 1 thread is 4 thousand million" in said.getvalue()
    assert "OpenVINO: no" in said.getvalue()
    assert "may exceed 100 %" in said.getvalue()


def test_nodes_are_matched_by_the_users_modules() -> None:
    def node(name: str, kind: str, microseconds: int) -> SimpleNamespace:
        took = timedelta(microseconds=microseconds)
        return SimpleNamespace(node_name=name, node_type=kind, real_time=took)

    convolution = "Convolution"
    nodes = [
        node("__module.layer1.0.conv1/aten::_convolution/Convolution", convolution, 16),
        node("__module.layer1.0.conv2/aten::_convolution/GroupConvolution", convolution, 7),
        node("__module.layer1.0.conv1/aten::_convolution/Convolution_1", convolution, 4),
        node("__module.layer1.0.relu/aten::relu_/Relu", "Relu", 3),
        node("Multiply_5466", convolution, 351),
        node("x_abcd_acdb___module.conv1/aten::_convolution/Convolution", "Reorder", 61),
    ]
    found = {"layer1.0.conv1": 20_000, "layer1.0.conv2": 7_000}
    assert openvino_layers.by_module(nodes, {}) == found
    quantized = {"Multiply_5466": "layer1.0.conv3", "__module.x/Convolution": "y"}
    assert openvino_layers.by_module(nodes, quantized) == {**found, "layer1.0.conv3": 351_000}


def test_a_quantised_convolutions_module_is_that_of_the_node_it_was_made_of() -> None:
    class Text(str):
        def astype(self, kind: type) -> str:
            return str(self)

    def node(name: str, kind: str, made_of: str) -> SimpleNamespace:
        info = {"layerType": Text(kind), "originalLayersNames": Text(made_of)}
        return SimpleNamespace(get_friendly_name=lambda: name, get_rt_info=lambda: info)

    first, second = (
        f"__module.layer1.0.{name}/aten::_convolution/Convolution" for name in ("conv1", "conv2")
    )
    nodes = [
        node("Multiply_1", "Convolution", f"{first},__module.layer1.0.relu/aten::relu_/Relu"),
        node("Multiply_2", "Convolution", f"{first},{second}"),
        node("Multiply_3", "Convolution", "Multiply_3"),
        node("Multiply_4", "Reorder", second),
        SimpleNamespace(get_friendly_name=lambda: "bare", get_rt_info=dict),
    ]
    assert openvino_layers.modules_of(nodes) == {"Multiply_1": "layer1.0.conv1"}


def test_folding_keeps_the_answer_and_the_model() -> None:
    model = model_source.build(model_source.parse("resnext50_32x4d"), seed=0)
    pool = inputs.synthetic_images(4, 3, 64, seed=0)
    inputs.calibrate_random_weights(model, pool, seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small = openvino_layers.folded(model, pool[:1])
    assert not any(isinstance(module, nn.BatchNorm2d) for module in small.modules())
    with torch.no_grad():
        torch.testing.assert_close(small(pool), model(pool), rtol=1e-3, atol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in small.modules())


class Shared(nn.Module):
    """A convolution whose result is normalised twice, and one that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.twice_read, self.twice_run = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.one, self.two, self.three = (nn.BatchNorm2d(3) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.twice_read(x)
        y = self.one(y) + self.two(y)
        once = self.twice_run(y)
        result: torch.Tensor = self.three(self.twice_run(once))
        return result


def test_what_is_shared_is_not_folded() -> None:
    model = Shared().eval()
    with torch.no_grad():
        for norm in (model.one, model.two, model.three):
            norm.bias.normal_()
    images = torch.randn(2, 3, 4, 4)
    kept = openvino_layers.folded(model, images)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in kept.modules()) == 3
    with torch.no_grad():
        assert torch.equal(kept(images), model(images))


def test_rounds_are_those_of_the_plan() -> None:
    calls = {"native": lambda: 1, "other": lambda: 2}
    said = layers.interleaved(calls, measure.Plan(seconds=0, min_rounds=4, warmup=2))
    assert said == {"native": [1] * 4, "other": [2] * 4}
