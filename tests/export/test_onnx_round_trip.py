"""Whole networks through ONNX and back: first choices all agree, errors are at most twice eager's.

``to_onnx`` compares with float64 and refuses what differs, so its report is what is read here; then
the file is loaded and answers other images.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision.models
from torch import nn

from fastres.errors import ModelError
from fastres.export import session, to_onnx
from fastres.export.tensorrt_operators import OPERATORS
from tests.networks.test_reference_families import FAMILIES
from tests.support.oracle import assert_as_accurate
from tests.zoo.quirks import QUIRKS
from tests.zoo.quirks_signature import SIGNATURES
from tests.zoo.resblk import ConcatenationNetwork
from tests.zoo.same_padding import SamePaddingResNet
from tests.zoo.statistics import randomise_statistics


def round_trip(model: nn.Module, images: torch.Tensor, path: Path, **options: Any) -> Any:
    """Export for images like these, load, and compare on them."""
    report = to_onnx(model, path, example_input=images[:1], **options)
    assert report.top1_agreement == 1
    assert set(report.operators) <= OPERATORS
    assert all(ratio <= 2 for _, _, ratio in report.errors.values())
    ready = session(path, providers="cpu")
    with torch.no_grad():
        wanted, got = model(images), ready(images)
    assert isinstance(got, torch.Tensor)
    assert torch.equal(wanted.flatten(1).argmax(1), got.flatten(1).argmax(1))
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))
    return report


@pytest.mark.campaign
@pytest.mark.parametrize("name", FAMILIES)
def test_reference_families(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    counts = family.counts()
    report = round_trip(family.model(), family.images(2, 5), tmp_path / "m.onnx")
    assert report.operators["Conv"] == counts["convolution"]
    assert report.operators["Add"] == counts["addition"]
    assert report.operators["Relu"] == counts["activation"]
    assert "BatchNormalization" not in report.operators


@pytest.mark.campaign
@pytest.mark.parametrize("name", ["one channel, no head", "functional pooling", "ResBlk"])
def test_one_file_for_images_of_any_size(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    model = family.model()
    round_trip(model, family.images(2, 5), tmp_path / "m.onnx", dynamic_size=True)
    assert_as_accurate(model, session(tmp_path / "m.onnx"), family.images(2, 6, grow=13))


@pytest.mark.campaign
def test_tensorflows_conventions(tmp_path: Path) -> None:
    model = SamePaddingResNet(depths=(1, 2, 1, 1))
    randomise_statistics(model, torch.randn(8, 64, 64, 3)).eval()
    report = round_trip(model, torch.randn(3, 64, 64, 3), tmp_path / "m.onnx")
    assert report.inputs == ("images float32 [batch, 64, 64, 3]",)
    assert report.operators["Transpose"] == 1


def test_concatenation(tmp_path: Path) -> None:
    model = ConcatenationNetwork()
    randomise_statistics(model, torch.randn(8, 3, 32, 32)).eval()
    report = round_trip(model, torch.randn(3, 3, 29, 30), tmp_path / "m.onnx", dynamic_size=True)
    assert (report.operators["Mul"], report.operators["Concat"]) == (6, 5)


def of_one_block_each(**options: Any) -> Callable[[], nn.Module]:
    """A variant of ResNet-50 with one block a stage: its kinds of blocks, in little memory."""
    return lambda: torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], **options
    )


TORCHVISION: dict[str, Callable[[], nn.Module]] = {
    "resnet18": torchvision.models.resnet18,
    "bottlenecks": of_one_block_each(),
    "resnext, 32x4d": of_one_block_each(groups=32, width_per_group=4),
    "resnext, 32x8d": of_one_block_each(groups=32, width_per_group=8),
    "wide resnet": of_one_block_each(width_per_group=128),
}
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "torchvision mobilenet_v2": lambda: torchvision.models.mobilenet_v2(weights=None),
    "timm resnet50d": lambda: timm.create_model("resnet50d", pretrained=False),
    "timm seresnet50": lambda: timm.create_model("seresnet50", pretrained=False),
}


@pytest.mark.campaign
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_resnets(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TORCHVISION[name]()
    randomise_statistics(model, torch.randn(4, 3, 32, 32)).eval()
    report = round_trip(model, torch.randn(2, 3, 32, 32), tmp_path / "m.onnx")
    kinds = {"Conv", "Relu", "Add", "MaxPool", "GlobalAveragePool", "Flatten", "Gemm"}
    assert set(report.operators) == kinds


@pytest.mark.campaign
@pytest.mark.parametrize("name", OTHERS)
def test_other_networks(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = randomise_statistics(OTHERS[name](), torch.randn(4, 3, 32, 32)).eval()
    report = round_trip(model, torch.randn(2, 3, 32, 32), tmp_path / "m.onnx")
    assert "BatchNormalization" not in report.operators


@pytest.mark.campaign
def test_densenet_keeps_its_batch_norms_as_scale_and_shift(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.DenseNet(8, (2, 2, 2), 16)
    randomise_statistics(model, torch.randn(8, 3, 48, 48)).eval()
    report = round_trip(model, torch.randn(2, 3, 48, 48), tmp_path / "m.onnx", dynamic_size=True)
    assert report.operators["Mul"] > 0
    assert {"Concat", "AveragePool"} <= set(report.operators)


WRITES_THROUGH_ALIASES = "in-place writes through aliases"


@pytest.mark.sampled(3)
@pytest.mark.parametrize("quirk", SIGNATURES, ids=lambda quirk: str(quirk.name))
def test_inputs_and_results_of_any_structure(quirk: Any, tmp_path: Path) -> None:
    arguments = quirk.inputs()
    if quirk.name == WRITES_THROUGH_ALIASES:
        with pytest.raises(ModelError, match=r"aten\.\w+_scatter\.default has no translation"):
            to_onnx(quirk.model(), tmp_path / "m.onnx", example_input=arguments)
        return
    report = to_onnx(quirk.model(), tmp_path / "m.onnx", example_input=arguments)
    assert all(ratio <= 2 for _, _, ratio in report.errors.values())


def test_every_quirk_is_known_to_be_one_of_these() -> None:
    assert {quirk.name for quirk in SIGNATURES} <= {quirk.name for quirk in QUIRKS}
