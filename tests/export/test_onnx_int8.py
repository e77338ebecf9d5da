"""int8 models as files in QDQ form: their integers, form, faults; and when there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torchvision.models
from onnx import ModelProto, numpy_helper
from torch import nn

import fastres
from fastres import models
from fastres.errors import OptionError, VerificationError
from fastres.export import OnnxReport, requirements, session, to_onnx
from fastres.export.check import steps
from fastres.ir.propagate import propagate
from fastres.ir.views import QuantizedConv2d
from fastres.runtime.triton import fuse_blocks
from fastres.system import target
from fastres.transforms import Transforms
from tests.export.test_onnx_faults import bypass, seed
from tests.passes.test_fuse_blocks import Bottleneck
from tests.support.optimizing import nodes
from tests.support.small import EXAMPLE, classifier, conv, measured, net, small_model
from tests.support.stored import optimized, there_and_back
from tests.zoo.statistics import randomise_statistics

IMAGES = torch.zeros(1, 4, 9, 8)


def quantized(model: nn.Module, example: torch.Tensor = EXAMPLE, **options: Any) -> Any:
    """An int8 model, calibrated on noise."""
    batches = [torch.randn(8, *example.shape[1:]) for _ in range(2)]
    chosen = {"precision": "int8", "calibration": batches, "engine": "eager", **options}
    return optimized(model, example, **chosen)


@pytest.fixture(scope="module")
def fast() -> Any:
    torch.manual_seed(0)
    return quantized(small_model())


@pytest.fixture(scope="module")
def path(fast: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("int8") / "small.onnx"
    to_onnx(fast, file, dynamic_size=True)
    return file


def checked(fast: Any, path: Path, **options: Any) -> OnnxReport:
    """Export; what has been written was compared, tensor by tensor, in both runtimes."""
    report = to_onnx(fast, path, openvino=True, **options)
    assert report.precision == "int8"
    assert [
        sentence.split()[0] for sentence in report.checks if "against the int8" in sentence
    ] == [
        "ONNX",
        "OpenVINO",
    ]
    return report


def initializers(proto: ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def test_the_form(fast: Any, path: Path) -> None:
    proto = onnx.load(path)
    held, made = initializers(proto), {n.output[0]: n for n in proto.graph.node}
    convolutions = {n.name: n for n in proto.graph.node if n.op_type == "Conv"}
    for node in nodes(fast, "quantized_conv2d"):
        view = QuantizedConv2d.of(node)
        written = convolutions[node.meta["module"]]
        x, weight, bias = (made[name] for name in written.input)
        assert {x.op_type, weight.op_type, bias.op_type} == {"DequantizeLinear"}
        assert [held[name].item() for name in x.input[1:]] == pytest.approx(
            [view.x_scale, view.x_zero_point], rel=1e-7
        )
        filters, scale, zero = (held[name] for name in weight.input)
        assert filters.dtype == np.int8 and zero.dtype == np.int8 and not zero.any()
        assert [a.i for a in weight.attribute if a.name == "axis"] == [0]
        stored = dict(fast.graph_module.named_buffers())
        assert np.array_equal(filters, stored[str(view.weight.target)])
        assert np.array_equal(scale, stored[str(view.weight_scale.target)])
        units, unit, _ = (held[name] for name in bias.input)
        assert units.dtype == np.int32 and np.array_equal(units, stored[str(view.bias.target)])
        np.testing.assert_allclose(unit, scale * np.float64(view.x_scale), rtol=1e-6)
    names = {node.name for node in proto.graph.node}
    assert {"conv1", "layer1.conv2/Add", "layer1.conv2/QuantizeLinear", "fc"} <= names
    assert "layer2.conv1/weight/DequantizeLinear" in names
    # Only the residual is read from integers: what is added to it was not rounded before.
    for node in (node for node in proto.graph.node if node.op_type == "Add"):
        kinds = [made[name].op_type for name in node.input]
        assert kinds.count("DequantizeLinear") == 1 and {*kinds} & {"Conv", "Relu"}


@pytest.mark.campaign
def test_the_report_says_what_it_was_compared_with(fast: Any, tmp_path: Path) -> None:
    report = checked(fast, tmp_path / "m.onnx")
    assert report.images == report.agreeing == 10
    for part in (
        "int8",
        "integers differ",
        "as in the int8 model on 10 of 10",
    ):
        assert part in str(report)
    assert any("TensorRT quantises around 0" in note for note in report.notes)
    given = {p.key: p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert given["fastres.precision"] == "int8"


def test_a_loaded_file_answers_as_the_model(fast: Any, path: Path) -> None:
    images = torch.randn(16, 3, 51, 40)
    ours, theirs = fast(images), session(path, providers="cpu")(images)
    assert isinstance(theirs, torch.Tensor)
    assert torch.equal(ours.argmax(1), theirs.argmax(1))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=0.02 * float(ours.abs().max()))


@pytest.mark.campaign
def test_saved_and_loaded_it_gives_the_same_file(fast: Any, tmp_path: Path) -> None:
    (tmp_path / "stored").mkdir()
    loaded = there_and_back(fast, tmp_path / "stored", engine="eager")
    for each, name in ((fast, "a.onnx"), (loaded, "b.onnx")):
        to_onnx(each, tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.campaign
def test_sums_rounded_for_onnx_runtime(fast: Any, tmp_path: Path) -> None:
    report = checked(fast, tmp_path / "m.onnx", round_sums=True)
    proto = onnx.load(tmp_path / "m.onnx")
    made = {n.output[0]: n.op_type for n in proto.graph.node}
    sums = [node for node in proto.graph.node if node.op_type == "Add"]
    assert len(sums) == 2
    assert {made[name] for node in sums for name in node.input} == {"DequantizeLinear"}
    assert report.agreeing >= 8
    with pytest.raises(OptionError, match="round_sums=True: this model computes in float32"):
        to_onnx(small_model(), tmp_path / "m.onnx", example_input=EXAMPLE, round_sums=True)


@pytest.mark.campaign
@pytest.mark.parametrize("opset", [13, 17, 19, 21, 23])
def test_every_opset(opset: int, fast: Any, tmp_path: Path) -> None:
    assert checked(fast, tmp_path / "m.onnx", opset=opset).opset == opset


def test_an_opset_without_scales_for_channels_is_refused(fast: Any, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="opset: got 12, expected an integer from 13"):
        to_onnx(fast, tmp_path / "m.onnx", opset=12)


def activated(name: str) -> nn.Module:
    act: Callable[[], nn.Module] = getattr(nn, name)
    return measured(nn.Sequential(conv(4, 8), nn.BatchNorm2d(8), act(), conv(8, 8), act()))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "additions by themselves": lambda: net(
        lambda m, x: m.c(torch.relu(m.a(x) + m.b(x)) + torch.relu(m.a(x) + m.b(x))),
        **{"a": conv(4, 8), "b": conv(4, 8, 1), "c": conv(8, 8)},
    ),
    "groups": lambda: net(
        lambda m, x: m.b(torch.relu(m.a(x))), a=conv(4, 16), b=conv(16, 8, groups=4)
    ),
    "padding of four sides": lambda: measured(
        nn.Sequential(nn.ZeroPad2d((1, 2, 0, 3)), nn.Conv2d(4, 8, 3, 2), nn.ReLU(), conv(8, 8))
    ),
    "depthwise stays wider": lambda: measured(
        nn.Sequential(
            *(conv(4, 8), nn.BatchNorm2d(8), nn.ReLU6()),
            *(conv(8, 8, groups=8), nn.BatchNorm2d(8), nn.ReLU6(), conv(8, 4, 1)),
        )
    ),
    "relu6": lambda: activated("ReLU6"),
    "hardswish": lambda: activated("Hardswish"),
    "two classifiers": lambda: measured(
        nn.Sequential(
            *(conv(4, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            *(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5)),
        )
    ),
    "an activation in front of the residual": lambda: net(
        lambda m, x: torch.relu(torch.relu(m.b(m.a(x))) + m.a(x)), a=conv(4, 4), b=conv(4, 4)
    ),
    "dilation and a pooling in ceil mode": lambda: measured(
        nn.Sequential(conv(4, 8, dilation=2), nn.MaxPool2d(2, 2, ceil_mode=True), conv(8, 4, 1))
    ),
}


@pytest.mark.campaign
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_a_few_layers(name: str, tmp_path: Path) -> None:
    fast = quantized(NETWORKS[name](), IMAGES)
    assert nodes(fast, "quantized_conv2d")
    report = checked(fast, tmp_path / "m.onnx", dynamic_size=name != "two classifiers")
    assert report.operators["QuantizeLinear"] >= 2


WIDER: dict[str, dict[str, str]] = {
    "a convolution": {"layer1.conv1": "fp32"},
    "in bfloat16": {"layer1.conv1": "bf16"},
    "a classifier in bfloat16": {"fc": "bf16"},
    "a block with its residual": {"layer2": "fp32", "fc": "fp32"},
    "several, of both kinds": {"conv1": "fp32", "layer1": "bf16"},
}


@pytest.mark.campaign
@pytest.mark.parametrize("case", WIDER)
def test_layers_that_stay_wider(case: str, tmp_path: Path) -> None:
    """Even where ONNX Runtime would like to quantise them."""
    fast = quantized(small_model(), keep=WIDER[case])
    report = checked(fast, tmp_path / "m.onnx")
    weights = [t for t in onnx.load(tmp_path / "m.onnx").graph.initializer if len(t.dims) == 4]
    wide = [t.name for t in weights if t.data_type == onnx.TensorProto.FLOAT]
    assert len(wide) == len(nodes(fast, "conv2d"))
    assert ("Cast" in report.operators) == ("bf16" in WIDER[case].values())


@pytest.mark.campaign
@pytest.mark.parametrize("top_k", [None, 2])
def test_from_bytes_to_classes(top_k: int | None, tmp_path: Path) -> None:
    pixels = [torch.randint(0, 256, (8, 50, 60, 3), dtype=torch.uint8)]
    fast = optimized(
        small_model(),
        precision="int8",
        calibration=pixels,
        engine="eager",
        input_format="uint8_nhwc",
        transforms=Transforms(resize=48, crop=40),
        resize=top_k is not None,
        softmax=True,
        top_k=top_k,
    )
    path = tmp_path / "m.onnx"
    report = to_onnx(fast, path, labels=list("abcde"))
    assert report.inputs[0].startswith("x uint8 [batch, ")
    assert report.images and report.top1_agreement == 1
    given = pixels[0] if top_k else torch.randint(0, 256, (3, 40, 40, 3), dtype=torch.uint8)
    answers = session(path, providers="cpu")(given)
    chances = answers["output_0"] if isinstance(answers, dict) else answers
    wanted = fast(given)[0] if top_k else fast(given)
    torch.testing.assert_close(chances, wanted, rtol=0.05, atol=1e-3)


@pytest.mark.campaign
def test_by_calibration_in_one_step(tmp_path: Path) -> None:
    model, path = classifier(), tmp_path / "m.onnx"
    options: dict[str, Any] = {"precision": "int8", "example_input": torch.zeros(1, 3, 16, 16)}
    report = to_onnx(model, path, calibration=[torch.randn(8, 3, 16, 16)], **options)
    assert report.precision == "int8" and report.operators["QuantizeLinear"] > 3
    given = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert given["fastres.source"] == "state_dict"
    path.unlink()
    with pytest.raises(OptionError, match="needs calibration="):
        to_onnx(model, path, **options)
    with pytest.raises(OptionError, match="computes in float32"):
        to_onnx(fastres.optimize(model, engine="eager"), path, precision="int8")
    assert not list(tmp_path.iterdir())


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[ModelProto], None]:
    """A fault in what a node takes: ``"conv1/QuantizeLinear:2"`` is its third input."""

    def fault(proto: ModelProto) -> None:
        named, index = name.split(":")
        (found,) = (node for node in proto.graph.node if node.name == named)
        old = initializers(proto)[found.input[int(index)]]
        value = change(old.copy()).astype(old.dtype)
        proto.graph.initializer.append(numpy_helper.from_array(value, f"{name}/fault"))
        found.input[int(index)] = f"{name}/fault"

    return fault


def together(*faults: Callable[[ModelProto], None]) -> Callable[[ModelProto], None]:
    def fault(proto: ModelProto) -> None:
        for each in faults:
            each(proto)

    return fault


FAULTS: dict[str, tuple[Callable[[ModelProto], None], str]] = {
    "a zero point is off by one, going in and out": (
        together(
            changed("layer1.conv1/QuantizeLinear:2", lambda v: v + 1),
            changed("layer1.conv1/DequantizeLinear:2", lambda v: v + 1),
        ),
        r"'layer1\.conv1/QuantizeLinear' .*by up to 1 quantisation steps",
    ),
    "a zero point is that of another tensor": (
        changed("x_uint8/DequantizeLinear:2", lambda v: v - 20),
        r"'conv1/QuantizeLinear'",
    ),
    "one scale for all filters": (
        changed("layer2.conv1/weight/DequantizeLinear:1", lambda v: v * 0 + v.mean()),
        r"'layer2\.conv1/QuantizeLinear'",
    ),
    "a bias counts something else": (
        changed("layer2.conv1/bias/DequantizeLinear:1", lambda v: v * 1.3),
        r"'layer2\.conv1/QuantizeLinear'",
    ),
    "one weight": (
        changed("conv1/weight/DequantizeLinear:0", lambda v: np.where(v == v.max(), 90, v)),
        r"'conv1/QuantizeLinear'",
    ),
    "an addition is lost": (bypass("layer1.conv2/Add"), r"'layer1\.conv2/QuantizeLinear'"),
    "the last scales": (
        changed("fc/weight/DequantizeLinear:1", lambda v: v * 1.001),
        r"output has an error of 1\.\d\de-03",
    ),
}


@pytest.mark.sampled(20)
@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_leaves_no_file_and_names_the_tensor(
    case: str, fast: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault, says = FAULTS[case]
    seed(monkeypatch, fault)
    with pytest.raises(VerificationError, match=says):
        to_onnx(fast, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.campaign
def test_another_first_choice_is_told(
    fast: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(self: steps.Stepwise, *_: Any) -> list[Any]:
        return [torch.eye(5)[:1]]

    monkeypatch.setattr(steps.Stepwise, "_answers", other)
    monkeypatch.setattr("fastres.export.check.check.BATCHES", (1,))
    report = to_onnx(fast, tmp_path / "m.onnx")
    assert (report.images, report.agreeing) in ((1, 0), (1, 1))
    told = [note for note in report.notes if "another first choice than the int8 model's" in note]
    assert len(told) == 1 - report.agreeing


@pytest.mark.campaign
@pytest.mark.parametrize("isa", [("avx2",), ("avx2", "avx_vnni")])
def test_a_processor_without_vnni(
    isa: tuple[str, ...], fast: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime is told to add the products of bytes exactly, and only there."""
    processor = replace(target.cpu(), architecture="x86_64", isa=isa)
    monkeypatch.setattr(target, "cpu", lambda: processor)
    settings = requirements.need_onnxruntime().SessionOptions()
    requirements.keep_sums_whole(settings)
    if "avx_vnni" in isa:
        with pytest.raises(RuntimeError, match="x64quantprecision"):
            settings.get_session_config_entry("session.x64quantprecision")
        return
    assert settings.get_session_config_entry("session.x64quantprecision") == "1"
    to_onnx(fast, tmp_path / "m.onnx")
    assert session(tmp_path / "m.onnx", providers="cpu")(EXAMPLE) is not None


WHOLE: dict[str, Callable[[], nn.Module]] = {
    "cifar_resnet20": models.cifar_resnet20,
    "resnet18": torchvision.models.resnet18,
    "bottlenecks": lambda: torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck, [1, 1, 1, 1]
    ),
    "resnext, 32x8d": lambda: torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], groups=32, width_per_group=8
    ),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(weights=None),
    "mobilenet_v3": lambda: torchvision.models.mobilenet_v3_small(weights=None),
}


@pytest.mark.campaign
@pytest.mark.parametrize("name", WHOLE)
def test_whole_networks(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = randomise_statistics(WHOLE[name](), torch.randn(4, 3, 32, 32)).eval()
    example = torch.zeros(1, 3, 32, 32)
    checked(quantized(model, example), tmp_path / "m.onnx", external_data=name == "resnet18")


def test_a_stem_as_one_operator(tmp_path: Path) -> None:
    """As below."""
    model = nn.Sequential(conv(4, 6), nn.ReLU(), nn.MaxPool2d(3, 2, 1), conv(6, 3, 1), nn.ReLU())
    fast = quantized(measured(model), IMAGES)
    graph = fast.graph_module
    x = torch.randn(2, 4, 9, 8)
    wanted = fast.by_definition(x)
    fuse_blocks.run(graph, fuse_blocks.BlockContext(propagate(graph, [x]), lambda spec: None))
    assert len(nodes(fast, "quantized_conv2d_max_pool2d")) == 1
    assert not nodes(fast, "max_pool2d")
    assert torch.equal(fast.by_definition(x), wanted)
    checked(fast, tmp_path / "m.onnx")


def test_a_bottleneck_as_one_operator(tmp_path: Path) -> None:
    """An engine makes it, from the graph that is exported; here it is exported itself."""
    model = nn.Sequential(Bottleneck(4, 6, 8), conv(8, 3, 1), nn.ReLU())
    fast = quantized(measured(model), IMAGES)
    graph = fast.graph_module
    x = torch.randn(2, 4, 9, 8)
    wanted = fast.by_definition(x)
    fuse_blocks.run(graph, fuse_blocks.BlockContext(propagate(graph, [x]), lambda spec: None))
    (node,) = nodes(fast, "quantized_bottleneck")
    assert len(node.users) == 2 and node.args[8] is not None and node.args[12] is not None
    assert torch.equal(fast.by_definition(x), wanted)
    checked(fast, tmp_path / "m.onnx")
