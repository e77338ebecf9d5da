"""torchvision's networks, random weights, go through and agree with float64."""

from __future__ import annotations

import pytest
import torch
import torchvision.models
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from tests.support.optimizing import assert_complete, nodes, optimize
from tests.support.oracle import assert_as_accurate
from tests.zoo.statistics import randomise_statistics


def build(name: str, size: int = 64) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = getattr(torchvision.models, name)(weights=None)
    return randomise_statistics(model, torch.randn(4, 3, size, size)).eval()


# BatchNorms, convolutions, additions, activations.
COUNTS = {
    "resnet18": (20, 20, 8, 17),
    "resnet34": (36, 36, 16, 33),
    "resnet50": (53, 53, 16, 49),
    "resnet101": (104, 104, 33, 100),
    "resnext50_32x4d": (53, 53, 16, 49),
    "wide_resnet50_2": (53, 53, 16, 49),
    "mobilenet_v2": (52, 52, 10, 35),
}
KINDS = ("batch_norm", "convolution", "addition", "activation")


@pytest.mark.campaign
@pytest.mark.parametrize("name", COUNTS)
def test_a_network_is_optimised_whole(name: str) -> None:
    model = build(name)
    fast = optimize(model, torch.randn(1, 3, 64, 64))
    assert_complete(fast, **dict(zip(KINDS, COUNTS[name], strict=True)))
    assert len(nodes(fast, "conv2d")) == COUNTS[name][1]
    assert_as_accurate(model, fast, torch.randn(2, 3, 64, 64))
    assert_as_accurate(model, fast, torch.randn(1, 3, 71, 96))


@pytest.mark.campaign
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "mobilenet_v2"])
def test_a_network_is_as_accurate_in_bfloat16(name: str) -> None:
    model = build(name)
    fast = optimize(model, torch.randn(1, 3, 64, 64), precision="bf16")
    assert_complete(fast, **dict(zip(KINDS, COUNTS[name], strict=True)))
    assert_as_accurate(model, fast, torch.randn(4, 3, 64, 64), precision="bf16")


@pytest.mark.campaign
def test_densenet_keeps_the_batch_norms_that_follow_no_convolution() -> None:
    model = build("densenet121")
    fast = optimize(model, torch.randn(1, 3, 64, 64))
    report = fast.report
    # The stem's one and the second of each of the 58 dense layers follow a convolution directly.
    assert (report.found["batch_norm"], report.done["batch_norm"]) == (121, 59)
    unfolded = {remark.module for remark in report.refused + report.left}
    assert {"features.denseblock1.denselayer1.norm1", "features.norm5"} <= unfolded
    assert_as_accurate(model, fast, torch.randn(2, 3, 64, 64))
    assert_as_accurate(model, fast, torch.randn(1, 3, 75, 64))


@pytest.mark.campaign
def test_frozen_batch_norms_are_folded_though_written_as_arithmetic() -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(norm_layer=FrozenBatchNorm2d)
    randomise_statistics(model).eval()
    fast = optimize(model, torch.randn(1, 3, 64, 64))
    assert nodes(fast, "rsqrt") == []
    assert_as_accurate(model, fast, torch.randn(2, 3, 64, 64))


@pytest.mark.campaign
def test_the_default_example_comes_from_the_first_convolution() -> None:
    model = build("resnet18")
    fast = optimize(model)
    assert_complete(fast, **dict(zip(KINDS, COUNTS["resnet18"], strict=True)))
    assert_as_accurate(model, fast, torch.randn(1, 3, 64, 64))
