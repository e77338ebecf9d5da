"""BatchNorms that are awkward to fold, one per model."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from tests.zoo.quirk import Quirk
from tests.zoo.statistics import randomise_statistics


class StackedUses(nn.Module):
    """One convolution applied twice, each time followed by another BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for norm in self.norms:
            x = torch.relu(norm(self.conv(x)))
        return x


class SharedNorm(nn.Module):
    """Two convolutions followed by the same BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 1)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left: torch.Tensor = self.norm(self.left(x))
        return torch.relu(left + self.norm(self.right(x)))


class RepeatedBlock(nn.Module):
    """The same convolution, BatchNorm and ReLU three times in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x = self.block(x)
        return x


class SharedWeight(nn.Module):
    """Two convolution modules that own the same Parameter, each with a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.right.weight = self.left.weight
        self.left_norm, self.right_norm = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left: torch.Tensor = self.left_norm(self.left(x))
        return left * torch.sigmoid(self.right_norm(self.right(x)))


class SecondConsumer(nn.Module):
    """The convolution's own output is used beside its BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raw: torch.Tensor = self.conv(x)
        return torch.relu(self.norm(raw)) + 0.5 * raw


class SecondNorm(nn.Module):
    """Two BatchNorms read the same convolution's output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm2d(6)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raw = self.conv(x)
        return torch.cat([torch.relu(norm(raw)) for norm in self.norms], 1)


class NormAndOutput(nn.Module):
    """The convolution's own output is returned beside the normalised one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raw = self.conv(x)
        return raw, F.relu(self.norm(raw), inplace=True)


class NormOfSum(nn.Module):
    """A BatchNorm behind an addition, another behind a concatenation: no one convolution's."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.of_sum, self.of_both = nn.BatchNorm2d(4), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.left(x), self.right(x)
        y: torch.Tensor = self.of_both(torch.cat([self.of_sum(left + right), left], 1))
        return y


class ConstantChannel(nn.Module):
    """A channel that a zero scale has made constant, under a BatchNorm that nothing can absorb.

    Its mean is that constant and its variance zero, so epsilon alone divides and what is subtracted
    must cancel as exactly as in torch. (In bfloat16 torch rounds the mean to the very number that
    the constant was rounded to; who keeps the mean's digits does not.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.last = nn.BatchNorm2d(8)
        randomise_statistics(self)
        with torch.no_grad():
            self.norm.weight[0] = 0
            self.norm.bias[0] = 0.7313
        assert self.last.running_mean is not None and self.last.running_var is not None
        self.last.running_mean[0] = 0.7313
        self.last.running_var[0] = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x))
        return self.last(torch.cat([y, torch.relu(y)], 1))


def _with_statistics(norm: nn.BatchNorm2d, variance: float, scale: float) -> nn.BatchNorm2d:
    assert norm.running_var is not None
    norm.running_var.fill_(variance)
    with torch.no_grad():
        norm.weight.fill_(scale)
    return norm


def _scaled_conv(factor: float) -> nn.Conv2d:
    conv = nn.Conv2d(4, 6, 3, bias=False)
    with torch.no_grad():
        conv.weight.mul_(factor)
    return conv


def _overflowing() -> nn.Module:
    """The variance, 1e6, has no float16; the layer's output is of order one."""
    norm = _with_statistics(nn.BatchNorm2d(6), 1e6, 1.0)
    return nn.Sequential(_scaled_conv(1e3), norm, nn.ReLU())


def _tiny() -> nn.Module:
    """A dead channel's variance, 1e-12, far below epsilon, under a negative scale."""
    norm = _with_statistics(nn.BatchNorm2d(6), 1e-12, -0.7)
    return nn.Sequential(_scaled_conv(1e-2), norm, nn.ReLU())


def _frozen() -> nn.Module:
    """torchvision's BatchNorm of buffers, written as arithmetic, not as ``batch_norm``."""
    norm = FrozenBatchNorm2d(6)
    generator = torch.Generator().manual_seed(3)
    for buffer in (norm.weight, norm.running_var):
        buffer.copy_(torch.rand(6, generator=generator) + 0.5)
    for buffer in (norm.bias, norm.running_mean):
        buffer.copy_(torch.randn(6, generator=generator) * 0.3)
    return nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, bias=False), norm, nn.ReLU())


def _half_frozen() -> nn.Module:
    """A BatchNorm in evaluation mode whose scale is frozen and shift is learned."""
    norm = nn.BatchNorm2d(6)
    norm.weight.requires_grad_(False)
    return nn.Sequential(nn.Conv2d(4, 6, 3), norm, nn.ReLU())


def _before(
    padding: int | str = 0, mode: Literal["zeros", "reflect"] = "zeros", groups: int = 1
) -> nn.Module:
    """BatchNorm, then a convolution; a border of zeros is not a border of normalised zeros."""
    conv = nn.Conv2d(4, 6, 3, padding=padding, padding_mode=mode, groups=groups)
    return nn.Sequential(nn.BatchNorm2d(4), conv, nn.ReLU())


BATCH_NORMS = (
    Quirk(
        "convolution with a bias",
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()),
        folded=1,
    ),
    Quirk("shared convolution, two BatchNorms", StackedUses, folded=2),
    Quirk("shared BatchNorm, two convolutions", SharedNorm, folded=None),
    Quirk("block used three times", RepeatedBlock, folded=None),
    Quirk("weight shared by two convolutions", SharedWeight, folded=2),
    Quirk("second consumer of the convolution", SecondConsumer, folded=0),
    Quirk("two BatchNorms of one convolution", SecondNorm, folded=None),
    Quirk("convolution is an output too", NormAndOutput, folded=0),
    Quirk("BatchNorm of a sum and of a concatenation", NormOfSum, folded=0),
    Quirk(
        "BatchNorm without affine",
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False), nn.ReLU()),
        folded=1,
    ),
    Quirk(
        "BatchNorm without running statistics",
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, track_running_stats=False), nn.ReLU()
        ),
        folded=0,
    ),
    Quirk("BatchNorm before an unpadded convolution", _before, folded=1),
    Quirk("BatchNorm before a padded convolution", lambda: _before(1), folded=0),
    Quirk("BatchNorm before padding of same", lambda: _before("same"), folded=0),
    Quirk("BatchNorm before reflected padding", lambda: _before(1, "reflect"), folded=None),
    Quirk("BatchNorm before a grouped convolution", lambda: _before(groups=2), folded=1),
    Quirk(
        "BatchNorm twice in a row",
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.ReLU()),
        folded=2,
    ),
    Quirk(
        "BatchNorm on both sides",
        lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)),
        folded=2,
    ),
    Quirk(
        "BatchNorm after ReLU and pooling",
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, 3), nn.ReLU(), nn.BatchNorm2d(6), nn.MaxPool2d(2), nn.BatchNorm2d(6)
        ),
        folded=0,
    ),
    Quirk(
        "BatchNorm1d after a linear layer",
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(600, 8), nn.BatchNorm1d(8), nn.ReLU()
        ),
        folded=None,
    ),
    Quirk(
        "BatchNorm of the input only",
        lambda: nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1)),
        folded=0,
    ),
    Quirk("frozen BatchNorm as arithmetic", _frozen, folded=None, measured=False),
    Quirk("frozen scale, learned shift", _half_frozen, folded=1),
    Quirk(
        "BatchNorm of a constant channel",
        ConstantChannel,
        folded=1,
        measured=False,
        float32_only=True,
    ),
    Quirk("variance beyond float16", _overflowing, folded=1, measured=False),
    Quirk("tiny variance, negative scale", _tiny, folded=1, measured=False),
)
