"""Convolutions other than the square, zero-padded, two-dimensional one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.quirk import Quirk


def _unit(in_channels: int, channels: int, *shape: Any, **options: Any) -> nn.Module:
    conv = nn.Conv2d(in_channels, channels, *shape, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())


class FourSided(nn.Module):
    """Different padding on each of the four sides, as an operation before the convolution."""

    def __init__(self, *, value: float = 0.0) -> None:
        super().__init__()
        self.value = value
        self.conv, self.norm = nn.Conv2d(4, 6, 3, 2), nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = F.pad(x, (0, 2, 1, 3), value=self.value)
        return torch.relu(self.norm(self.conv(padded)))


class Cropping(nn.Module):
    """Negative padding: a crop."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.conv(F.pad(x, (-1, 1, 0, -2)))))


class StandardisedWeight(nn.Module):
    """The weight is computed from a parameter in every call, as in weight standardisation."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.randn(6, 4, 3, 3))
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raw = self.raw
        weight = (raw - raw.mean((1, 2, 3), keepdim=True)) / raw.std((1, 2, 3), keepdim=True)
        return torch.relu(self.norm(F.conv2d(x, weight, padding=1)))


class WeightFromInput(nn.Module):
    """The filters are an input of the model: nothing can be folded into them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(6)
        self.conv = nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(torch.relu(self.norm(F.conv2d(x, filters))))
        return y


class Transposed(nn.Module):
    """A transposed convolution between two ordinary ones; its weight has the channels swapped."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.down = _unit(4, 6, 3, 2, 1)
        self.up = nn.ConvTranspose2d(6, 8, 3, 2, 1, output_padding=1, groups=groups)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(torch.relu(self.norm(self.up(self.down(x)))))
        return y


class OneDimensional(nn.Module):
    """Conv1d with BatchNorm1d over the rows of a feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.unit = _unit(4, 6, 3, 1, 1)
        self.conv, self.norm = nn.Conv1d(6, 6, 3, padding=1), nn.BatchNorm1d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.unit(x).mean(2)
        return torch.relu(self.norm(self.conv(y)))


class ThreeDimensional(nn.Module):
    """Conv3d with BatchNorm3d over a stack of two feature maps."""

    def __init__(self) -> None:
        super().__init__()
        self.unit = _unit(4, 6, 3, 1, 1)
        self.conv, self.norm = nn.Conv3d(6, 4, (2, 3, 3)), nn.BatchNorm3d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.unit(x)
        return torch.relu(self.norm(self.conv(torch.stack([y, -y], 2))))


CONVOLUTIONS = (
    Quirk("grouped", lambda: _unit(4, 8, 3, padding=1, groups=2), folded=1),
    Quirk("depthwise", lambda: _unit(4, 4, 3, padding=1, groups=4), folded=1),
    Quirk("depthwise with two filters per channel", lambda: _unit(4, 8, 3, groups=4), folded=1),
    Quirk("dilated", lambda: _unit(4, 6, 3, padding=2, dilation=2), folded=1),
    Quirk(
        "oblong kernel, stride and padding", lambda: _unit(4, 6, (1, 5), (2, 1), (0, 3)), folded=1
    ),
    Quirk("stride beyond the kernel", lambda: _unit(4, 6, 1, 3), folded=1),
    Quirk("padding of same", lambda: _unit(4, 6, 3, padding="same"), folded=1),
    Quirk("padding of same, even kernel", lambda: _unit(4, 6, 4, padding="same"), folded=1),
    Quirk("padding of valid", lambda: _unit(4, 6, 3, padding="valid"), folded=1),
    Quirk("reflected padding", lambda: _unit(4, 6, 3, padding=1, padding_mode="reflect"), folded=1),
    Quirk(
        "replicated padding",
        lambda: _unit(4, 6, 3, padding=(2, 1), padding_mode="replicate"),
        folded=1,
    ),
    Quirk("circular padding", lambda: _unit(4, 6, 3, padding=1, padding_mode="circular"), folded=1),
    Quirk("four-sided padding", FourSided, folded=1),
    Quirk("four-sided padding with another value", lambda: FourSided(value=1.5), folded=1),
    Quirk(
        "zero padding as a module",
        lambda: nn.Sequential(nn.ZeroPad2d((1, 2, 0, 1)), *_unit(4, 6, 3).children()),
        folded=1,
    ),
    Quirk("negative padding", Cropping, folded=1),
    Quirk("standardised weight", StandardisedWeight, folded=None),
    Quirk("weight is an input", WeightFromInput, folded=0, shapes=((2, 4, 12, 12), (6, 4, 3, 3))),
    Quirk("transposed", Transposed, folded=None),
    Quirk("transposed and grouped", lambda: Transposed(groups=2), folded=None),
    Quirk("one-dimensional", OneDimensional, folded=None),
    Quirk("three-dimensional", ThreeDimensional, folded=None),
    Quirk("one channel", lambda: _unit(1, 1, 3), folded=1, shapes=((2, 1, 7, 5),)),
    Quirk("image as small as the kernel", lambda: _unit(4, 6, 5), folded=1, shapes=((3, 4, 5, 5),)),
    Quirk("one pixel", lambda: _unit(4, 6, 3, padding=1), folded=1, shapes=((3, 4, 1, 1),)),
)
