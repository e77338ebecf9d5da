"""The receipt: what is counted, what is refused, what it says, and strictness built on it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import fastres
from fastres import models
from fastres.errors import FastresWarning, NotOptimizedError
from fastres.report import KINDS, Report
from tests.support.optimizing import (
    BATCH_NORM_NODES,
    assert_complete,
    nodes,
    operator_name,
    optimize,
)
from tests.support.small import Net, assert_right, conv, images, measured, net
from tests.zoo.resblk import ResBlkNetwork
from tests.zoo.residual_notes import one_channel_network


def image(channels: int = 3, size: int = 64, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, channels, size, size)


@pytest.fixture(scope="module")
def resnet50() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.resnet50()
    return measured(model, image(batch=4, size=32))


@pytest.fixture(scope="module")
def fast50(resnet50: nn.Module) -> Any:
    return optimize(resnet50, image())


@pytest.mark.campaign
def test_resnet50(resnet50: nn.Module, fast50: Any) -> None:
    assert_complete(fast50, batch_norm=53, convolution=53, addition=16, activation=49)
    left = nodes(fast50, *BATCH_NORM_NODES, "relu", "add", "relu_", "add_", "scale_shift")
    assert left == []
    operators = [operator_name(n) for n in fast50.graph_module.graph.nodes if _is_call(n)]
    assert operators.count("conv2d") == 53
    assert sorted(set(operators)) == ["conv2d", "global_avg_pool", "linear", "max_pool2d"]
    assert len(operators) == 56
    assert_right(resnet50, fast50, image(batch=2))


def _is_call(node: Any) -> bool:
    return bool(node.op == "call_function")


@pytest.mark.campaign
def test_resnet50_as_text(fast50: Any) -> None:
    lines = str(fast50.report).splitlines()
    assert re.fullmatch(r"fastres: ResNet, native engine, float32 on cpu, \d+ threads?", lines[0])
    assert lines[1:5] == [
        "  53/53 BatchNorms folded",
        "  53/53 convolutions fused",
        "  16/16 residual additions fused",
        "  49/49 activations fused",
    ]
    assert re.fullmatch(
        r"  error \d\.\d\de-\d\d against float64, \d\.\d\dx that of torch eager in the same "
        r"precision, on a sample \[1, 3, 64, 64\]",
        lines[5],
    )
    assert lines[6] == "  nothing refused, nothing left to torch"
    assert lines[-1].startswith("  seconds: capture ")
    assert len(lines) == 8
    assert list(fast50.report.seconds) == ["capture", "passes", "first call", "check"]


@pytest.mark.campaign
def test_the_code_of_resnet50_has_the_users_names(fast50: Any) -> None:
    code = fast50.graph_module.code
    for name in ("conv1", "layer1_0_conv1", "layer1_0_downsample_0", "layer4_2_conv3", "fc"):
        assert f"{name} = torch.ops.fastres." in code, name
    assert "batch_norm" not in code
    listed = [module for module, operator, _ in fast50.report.layers if "conv2d" in operator]
    convolutions = [n for n, m in torchvision.models.resnet50().named_modules() if _is_conv(m)]
    assert sorted(listed) == sorted(convolutions)


def _is_conv(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d)


@pytest.mark.campaign
def test_resnet50_in_strict_mode(resnet50: nn.Module) -> None:
    fast = optimize(resnet50, image(), strict=True, precision="bf16")
    assert_complete(fast, batch_norm=53, convolution=53, addition=16, activation=49)
    assert "bfloat16 on cpu" in str(fast.report)


@pytest.mark.campaign
def test_profile_of_resnet50(fast50: Any) -> None:
    profile = fast50.profile(image(size=32), rounds=2)
    rows = [(layer.module, layer.operation) for layer in profile.layers]
    assert sum(operation == "fastres.conv2d" for _, operation in rows) == 53
    assert rows[-1] == ("fc", "fastres.linear")
    names = {name for name, _ in torchvision.models.resnet50().named_modules() if name}
    assert {module for module, _ in rows} <= names | {"(model)"}
    total = sum(layer.milliseconds for layer in profile.layers) + profile.between
    assert total == pytest.approx(profile.milliseconds)


COUNTS = {
    "resnet18 in notebook style": (one_channel_network, 1, 17, 20, 8, 17),
    "ResBlk network": (lambda: ResBlkNetwork(talk=False), 3, 14, 14, 5, 9),
    "ResNeXt-50": (models.resnext50_32x4d, 3, 53, 53, 16, 49),
    "ResNet-18": (models.resnet18, 3, 20, 20, 8, 17),
}


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_other_networks(name: str) -> None:
    build, channels, norms, convolutions, additions, activations = COUNTS[name]
    torch.manual_seed(0)
    model = measured(build(), image(channels, 48, batch=2))
    fast = optimize(model, image(channels, 48))
    assert_complete(
        fast,
        batch_norm=norms,
        convolution=convolutions,
        addition=additions,
        activation=activations,
    )
    report = fast.report
    assert report.found["batch_norm"] == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert report.found["convolution"] == sum(isinstance(m, nn.Conv2d) for m in model.modules())


def partly(m: Any, x: torch.Tensor) -> Any:
    y = F.softplus(m.conv(x))
    return torch.maximum(F.relu(m.norm(y)), torch.cos(m.gate(x)))


def partial_model() -> nn.Module:
    return net(partly, conv=conv(), norm=nn.BatchNorm2d(4), gate=conv())


def test_what_was_refused_and_left_is_in_the_text() -> None:
    report = optimize(partial_model(), images(2)).report
    assert not report.complete
    text = str(report)
    assert "  0/1 BatchNorms folded\n  2/2 convolutions fused\n  1/1 activations fused\n" in text
    assert "residual additions" not in text  # there are none
    refused = [line for line in text.splitlines() if line.startswith("  refused: ")]
    assert len(refused) == 1
    assert refused[0].startswith("  refused: norm: BatchNorm: not folded backwards: there is no ")
    left = [line for line in text.splitlines() if line.startswith("  left to torch: ")]
    assert left == [
        f"  left to torch: (the model itself): aten.{name}: no operator of fastres covers it"
        for name in ("softplus.default", "cos.default", "maximum.default")
    ]
    assert "nothing refused" not in text


def test_one_warning_says_that_not_all_was_optimised() -> None:
    model = partial_model()
    with pytest.warns(FastresWarning) as caught:
        fastres.optimize(model, images(2))
    (warning,) = caught
    assert warning.filename == __file__
    text = str(warning.message)
    assert text.startswith("not everything was optimised (norm: BatchNorm: not folded backwards: ")
    assert text.endswith(" and 3 more); print(fast.report) has the details")


def test_training_mode_and_leftovers_are_one_warning() -> None:
    model = partial_model().train()
    with pytest.warns(FastresWarning) as caught:
        fastres.optimize(model, images(2))
    (warning,) = caught
    text = str(warning.message)
    assert text.startswith("the model was in training mode (first module: (the model itself)): ")
    assert "; not everything was optimised (" in text


@pytest.mark.filterwarnings("error")
def test_a_complete_model_warns_of_nothing() -> None:
    fastres.optimize(measured(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU())), images(2))


def test_strict_names_the_first_thing() -> None:
    with pytest.raises(NotOptimizedError) as caught:
        fastres.optimize(partial_model(), images(2), strict=True)
    assert caught.value.module == "norm"
    assert caught.value.reason.startswith("BatchNorm: not folded backwards: ")
    report = optimize(partial_model(), images(2)).report
    first = [*report.refused, *report.left][0]
    assert caught.value.reason == f"{first.what}: {first.reason}"


def test_what_is_used_twice_is_counted_twice() -> None:
    model = measured(
        Net(
            lambda m, x: m.norm(m.conv(F.relu(m.norm(m.conv(x))))),
            conv=conv(),
            norm=nn.BatchNorm2d(4),
        )
    )
    assert_complete(optimize(model, images(2)), batch_norm=2, convolution=2, activation=1)


def test_printing_in_forward_is_noted() -> None:
    model = measured(ResBlkNetwork(), image(size=48, batch=2))
    fast = optimize(model, image(size=48))
    (note,) = [note for note in fast.report.notes if "print" in note]
    assert note.startswith("print in forward is dropped: it ran once, during capture, and wrote 'R")


def test_writing_to_the_input_is_noted() -> None:
    model = Net(lambda m, x: m.conv(F.relu(x, inplace=True)), conv=conv()).eval()
    fast = optimize(model, images(2))
    assert any("the model writes to its input 'x' in place" in note for note in fast.report.notes)
    x = images(2)
    kept = x.clone()
    fast(x)
    assert torch.equal(x, kept)


def test_an_empty_report() -> None:
    report = Report("Model", engine="eager", precision="float32")
    assert str(report) == (
        "fastres: Model, eager engine, float32 on cpu\n  nothing refused, nothing left to torch"
    )
    report.found["batch_norm"] = 3
    report.done["batch_norm"] = 2
    report.refuse("a", "BatchNorm", "of a reason")
    for _ in range(2):
        report.leave("b", "aten.x", "nobody knows it")
    report.notes.append("something else")
    assert [report.count(kind) for kind in KINDS][:2] == [
        "2/3 BatchNorms folded",
        "0/0 convolutions fused",
    ]
    assert str(report).splitlines()[1:] == [
        "  2/3 BatchNorms folded",
        "  refused: a: BatchNorm: of a reason",
        "  left to torch: b: aten.x: nobody knows it",
        "  note: something else",
    ]
