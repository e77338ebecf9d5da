"""timm's networks, random weights, go through and agree with float64."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from tests.support.optimizing import assert_complete, nodes, optimize
from tests.support.oracle import assert_as_accurate
from tests.zoo.statistics import randomise_statistics

pytestmark = pytest.mark.campaign


def build(name: str, images: torch.Tensor, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, pretrained=False, **options)
    return randomise_statistics(model, images).eval()


KINDS = ("batch_norm", "convolution", "addition", "activation")
# BatchNorms, convolutions, additions, activations.
COUNTS = {
    "resnet18": (20, 20, 8, 17),
    "resnet50": (53, 53, 16, 49),
    "resnet50d": (55, 55, 16, 51),
    "resnext50_32x4d": (53, 53, 16, 49),
}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_network_is_optimised_whole(name: str, precision: str) -> None:
    model = build(name, torch.randn(4, 3, 64, 64))
    fast = optimize(model, torch.randn(1, 3, 64, 64), precision=precision)
    report = fast.report
    found = tuple(report.found[kind] for kind in KINDS)
    assert found == COUNTS[name], str(report)
    assert report.done == report.found, str(report)
    assert nodes(fast, "batch_norm", "relu", "add") == []
    assert_as_accurate(model, fast, torch.randn(2, 3, 64, 64), precision=precision)
    assert_as_accurate(model, fast, torch.randn(3, 3, 67, 96), precision=precision)


def test_squeeze_and_excite_is_folded_and_as_accurate() -> None:
    model = build("seresnet50", torch.randn(4, 3, 64, 64))
    fast = optimize(model, torch.randn(1, 3, 64, 64))
    report = fast.report
    # 16 gates of two convolutions each stand beside the 53 convolutions of a ResNet-50.
    assert (report.found["batch_norm"], report.done["batch_norm"]) == (53, 53)
    assert report.found["convolution"] == 53 + 2 * 16
    assert nodes(fast, "batch_norm") == []
    assert_as_accurate(model, fast, torch.randn(2, 3, 64, 64))


def test_small_greyscale_images() -> None:
    model = build("resnet10t", torch.randn(8, 1, 32, 32), in_chans=1, num_classes=10)
    fast = optimize(model, torch.randn(1, 1, 32, 32))
    report = fast.report
    assert (report.found["batch_norm"], report.found["convolution"]) == (14, 14)
    assert report.done == report.found, str(report)
    assert_as_accurate(model, fast, torch.randn(5, 1, 32, 32))


def test_pre_activation_folds_what_follows_a_convolution() -> None:
    model = build("resnetv2_18", torch.randn(4, 3, 64, 64))
    fast = optimize(model, torch.randn(1, 3, 64, 64))
    report = fast.report
    found, done = report.found["batch_norm"], report.done["batch_norm"]
    assert 8 <= done < found
    assert {remark.module for remark in report.refused + report.left} >= {"norm"}
    assert_as_accurate(model, fast, torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize("options", [{"num_classes": 0}, {"global_pool": "", "num_classes": 0}])
def test_headless(options: dict[str, Any]) -> None:
    model = build("resnet18", torch.randn(4, 3, 64, 64), **options)
    fast = optimize(model, torch.randn(1, 3, 64, 64))
    assert_complete(fast, batch_norm=20, convolution=20)
    assert_as_accurate(model, fast, torch.randn(2, 3, 64, 64))


def test_feature_maps_of_every_stage() -> None:
    model = build("resnet18", torch.randn(4, 3, 64, 64), features_only=True)
    fast = optimize(model, torch.randn(1, 3, 64, 64))
    assert fast.report.done["batch_norm"] == 20
    images = torch.randn(2, 3, 64, 64)
    assert len(fast(images)) == 5
    assert_as_accurate(model, fast, images)
