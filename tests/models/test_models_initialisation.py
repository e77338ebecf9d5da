"""Fresh weights have the distribution of He et al., https://arxiv.org/abs/1502.01852."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastres import models
from fastres.models.blocks import BasicBlock, Bottleneck

NAMES = ("resnet18", "resnet50", "resnext50_32x4d", "cifar_resnet20")


@pytest.mark.parametrize("name", NAMES)
def test_convolutions_are_normal_with_the_papers_deviation(name: str) -> None:
    seen = 0
    for module in models.build(name).modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight.detach().double()
            n = weight.numel()
            expected = (2 / (module.out_channels * module.weight[0, 0].numel())) ** 0.5
            # Six standard errors of the mean and of the standard deviation of n normal numbers.
            assert abs(weight.mean()) < 6 * expected / n**0.5
            assert abs(weight.std() / expected - 1) < 6 / (2 * n) ** 0.5
            # A uniform distribution of this deviation ends at 1.73 deviations.
            assert weight.abs().max() > 2.4 * expected
            assert module.bias is None
            seen += 1
    assert seen == {"resnet18": 20, "cifar_resnet20": 19}.get(name, 53)


@pytest.mark.parametrize("name", NAMES)
def test_batch_norm_and_classifier(name: str) -> None:
    model = models.build(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert torch.equal(module.bias, torch.zeros_like(module.bias))
            assert (module.eps, module.momentum) == (1e-5, 0.1)
    bound = model.fc.in_features**-0.5  # torch's default: uniform
    for parameter in (model.fc.weight, model.fc.bias):
        assert bound / 2 < parameter.abs().max() <= bound
    assert abs(model.fc.weight.std() / (bound / 3**0.5) - 1) < 0.1


@pytest.mark.parametrize("name", NAMES)
def test_zero_init_residual_makes_every_block_its_shortcut(name: str) -> None:
    blocks = 0
    for block in models.build(name, zero_init_residual=True).eval().modules():
        if isinstance(block, BasicBlock | Bottleneck):
            x = torch.randn(2, block.conv1.in_channels, 5, 5)
            with torch.inference_mode():
                shortcut = x if block.downsample is None else block.downsample(x)
                assert torch.equal(block(x), shortcut.relu())
            blocks += 1
    assert blocks == {"resnet18": 8, "cifar_resnet20": 9}.get(name, 16)


def test_two_models_differ_and_two_equal_seeds_do_not() -> None:
    first, second = models.cifar_resnet20(), models.cifar_resnet20()
    assert not torch.equal(first.conv1.weight, second.conv1.weight)
    torch.manual_seed(3)
    third = models.cifar_resnet20()
    torch.manual_seed(3)
    fourth = models.cifar_resnet20()
    assert torch.equal(third.conv1.weight, fourth.conv1.weight)
