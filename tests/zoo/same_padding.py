"""The third family's networks with TensorFlow's conventions, as converters write them in PyTorch.

Images arrive as NHWC; ``SAME`` padding is asymmetric at stride 2 (the odd pixel goes to the bottom
right) and depends on the image's size; max-pooling pads with minus infinity; the shortcut's
BatchNorm has another epsilon (1.001e-5) than the others (1e-5); the head ends in a softmax.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


def same_pad(x: torch.Tensor, kernel: int, stride: int, value: float = 0.0) -> torch.Tensor:
    """Pad H and W so that a window of ``kernel`` gives ``ceil(size / stride)`` outputs."""
    sides: list[int] = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        sides += [total // 2, total - total // 2]
    return F.pad(x, sides, value=value)


class SameConv(nn.Module):
    """A convolution without bias under ``SAME`` padding, then BatchNorm."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int, stride: int = 1, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride, bias=False)
        self.norm = nn.BatchNorm2d(channels, eps=eps, momentum=0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm(self.conv(same_pad(x, self.kernel, self.stride)))
        return y


class SameUnit(nn.Module):
    """A basic unit (``expand=1``) or a bottleneck (``expand=4``) in TensorFlow's manner."""

    def __init__(
        self, in_channels: int, channels: int, expand: int, stride: int, project: bool
    ) -> None:
        super().__init__()
        out_channels = channels * expand
        if expand == 1:
            layers = [
                SameConv(in_channels, channels, 3, stride),
                SameConv(channels, out_channels, 3),
            ]
        else:
            layers = [
                SameConv(in_channels, channels, 1),
                SameConv(channels, channels, 3, stride),
                SameConv(channels, out_channels, 1),
            ]
        self.layers = nn.ModuleList(layers)
        self.shortcut = (
            SameConv(in_channels, out_channels, 1, stride, eps=1.001e-5) if project else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = x if self.shortcut is None else self.shortcut(x)
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return torch.relu(torch.add(kept, self.layers[-1](x)))


class SamePaddingResNet(nn.Module):
    """NHWC images to class probabilities, or to an NHWC feature map without the top.

    Args:
        depths: number of units in each stage.
        expand: 1 for basic units, 4 for bottlenecks.
        include_top: with pooling, logits and softmax, or not.
    """

    def __init__(
        self,
        depths: Sequence[int] = (2, 2, 2, 2),
        expand: int = 1,
        classes: int = 10,
        include_top: bool = True,
    ) -> None:
        super().__init__()
        self.stem = SameConv(3, 64, 7, 2)
        units: list[nn.Module] = []
        channels = 64
        for number, depth in enumerate(depths):
            base = 64 * 2**number
            for index in range(depth):
                stride = 2 if index == 0 and number > 0 else 1
                project = stride != 1 or channels != base * expand
                units.append(SameUnit(channels, base, expand, stride, project))
                channels = base * expand
        self.units = nn.Sequential(*units)
        self.logits = nn.Linear(channels, classes) if include_top else None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.permute(0, 3, 1, 2)
        x = torch.relu(self.stem(x))
        x = F.max_pool2d(same_pad(x, 3, 2, value=float("-inf")), 3, 2)
        x = self.units(x)
        if self.logits is None:
            return x.permute(0, 2, 3, 1)
        return torch.softmax(self.logits(x.mean(dim=(2, 3))), dim=-1)
