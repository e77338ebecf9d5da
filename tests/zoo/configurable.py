"""The third family: one class for every depth, with groups, width and an optional head.

Basic blocks share one ReLU module; bottlenecks may put the stride on the 3x3 (v1.5) or, as the
paper has it (v1), on the first 1x1. ``same_padding`` has the same networks with TensorFlow's
conventions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class BasicUnit(nn.Module):
    """Two 3x3 convolutions; takes and ignores the options only bottlenecks know."""

    growth = 1

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        shortcut: nn.Module | None = None,
        **ignored: object,
    ) -> None:
        super().__init__()
        self.conv_a = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.norm_a = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()
        self.conv_b = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm_b = nn.BatchNorm2d(channels)
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = x if self.shortcut is None else self.shortcut(x)
        y = self.act(self.norm_a(self.conv_a(x)))
        y = self.norm_b(self.conv_b(y))
        y += kept
        result: torch.Tensor = self.act(y)
        return result


class BottleneckUnit(nn.Module):
    """1x1 down, 3x3 (perhaps grouped), 1x1 up, with one in-place ReLU module used three times."""

    growth = 4

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        shortcut: nn.Module | None = None,
        *,
        groups: int = 1,
        width_per_group: int = 64,
        stride_first: bool = False,
    ) -> None:
        super().__init__()
        width = int(channels * (width_per_group / 64.0)) * groups
        strides = (stride, 1) if stride_first else (1, stride)
        self.conv_a = nn.Conv2d(in_channels, width, 1, strides[0], bias=False)
        self.norm_a = nn.BatchNorm2d(width)
        self.conv_b = nn.Conv2d(width, width, 3, strides[1], 1, groups=groups, bias=False)
        self.norm_b = nn.BatchNorm2d(width)
        self.conv_c = nn.Conv2d(width, channels * self.growth, 1, bias=False)
        self.norm_c = nn.BatchNorm2d(channels * self.growth)
        self.act = nn.ReLU(inplace=True)
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = x
        if self.shortcut is not None:
            kept = self.shortcut(x)
        y = self.act(self.norm_a(self.conv_a(x)))
        y = self.act(self.norm_b(self.conv_b(y)))
        y = self.norm_c(self.conv_c(y))
        y += kept
        result: torch.Tensor = self.act(y)
        return result


class ConfigurableResNet(nn.Module):
    """A ResNet of either unit.

    Args:
        unit: ``BasicUnit`` or ``BottleneckUnit``.
        depths: number of units in each of the four stages.
        classes: outputs of the head.
        include_top: with pooling and head, or the last feature map.
        groups, width_per_group: of the bottlenecks' 3x3 convolutions.
        stride_first: bottlenecks put the stride on the first 1x1 (v1).
    """

    def __init__(
        self,
        unit: type[BasicUnit] | type[BottleneckUnit],
        depths: Sequence[int],
        classes: int = 1000,
        *,
        include_top: bool = True,
        groups: int = 1,
        width_per_group: int = 64,
        stride_first: bool = False,
    ) -> None:
        super().__init__()
        self.include_top = include_top
        self.options = {
            "groups": groups,
            "width_per_group": width_per_group,
            "stride_first": stride_first,
        }
        self.stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.stem_norm = nn.BatchNorm2d(64)
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, 2, 1)
        channels = 64
        for number, depth in enumerate(depths):
            base = 64 * 2**number
            stage = self._stage(unit, channels, base, depth, 1 if number == 0 else 2)
            self.add_module(f"stage{number + 1}", stage)
            channels = base * unit.growth
        if include_top:
            self.global_pool = nn.AdaptiveAvgPool2d((1, 1))
            self.head = nn.Linear(channels, classes)

    def _stage(
        self,
        unit: type[BasicUnit] | type[BottleneckUnit],
        in_channels: int,
        base: int,
        depth: int,
        stride: int,
    ) -> nn.Sequential:
        out_channels = base * unit.growth
        shortcut = None
        if stride != 1 or in_channels != out_channels:
            shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )
        units: list[nn.Module] = [unit(in_channels, base, stride, shortcut, **self.options)]  # type: ignore[arg-type]
        units += [unit(out_channels, base, **self.options) for _ in range(depth - 1)]  # type: ignore[arg-type]
        return nn.Sequential(*units)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.act(self.stem_norm(self.stem(x))))
        for name, stage in self.named_children():
            if name.startswith("stage"):
                x = stage(x)
        if self.include_top:
            x = self.head(torch.flatten(self.global_pool(x), 1))
        return x


def configurable_resnet34(*, include_top: bool = True) -> ConfigurableResNet:
    """34 layers of basic units."""
    return ConfigurableResNet(BasicUnit, (3, 4, 6, 3), include_top=include_top)


def configurable_resnet50(
    *, include_top: bool = True, stride_first: bool = False
) -> ConfigurableResNet:
    """50 layers of bottlenecks, v1.5 or v1."""
    return ConfigurableResNet(
        BottleneckUnit, (3, 4, 6, 3), include_top=include_top, stride_first=stride_first
    )


def configurable_resnext50() -> ConfigurableResNet:
    """ResNeXt-50 with 32 groups of four channels."""
    return ConfigurableResNet(BottleneckUnit, (3, 4, 6, 3), groups=32, width_per_group=4)
