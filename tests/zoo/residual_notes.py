"""The residual blocks of notebooks: a projection without BatchNorm, biases everywhere.

Three families share the shape of this block and differ in details that decide whether an optimiser
copes: a one-channel network without a head, a ten-class network of nested ``nn.Sequential`` that
adds in place, and a thousand-class network that pools with ``F.avg_pool2d`` over the size it finds.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

Addition = Literal["new tensor", "in place"]

STAGES = ((64, 64), (64, 128), (128, 256), (256, 512))


class NotebookBlock(nn.Module):
    """Two biased 3x3 convolutions with BatchNorm, an optional biased 1x1 projection without.

    Args:
        in_channels: channels of the input.
        channels: channels of the output.
        project: put the 1x1 convolution on the shortcut; without it the shortcut is the input
            itself.
        strides: stride of the first 3x3 and of the projection.
        addition: how the two paths are summed, as a new tensor or into the main path's tensor.
        idle_relu: also own an in-place ReLU that ``forward`` never calls.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        project: bool = False,
        strides: int = 1,
        *,
        addition: Addition = "new tensor",
        idle_relu: bool = False,
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, channels, 3, strides, 1)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1)
        self.projection = nn.Conv2d(in_channels, channels, 1, strides) if project else None
        self.first_norm = nn.BatchNorm2d(channels)
        self.second_norm = nn.BatchNorm2d(channels)
        self.addition = addition
        if idle_relu:
            self.idle = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        main = F.relu(self.first_norm(self.first(x)))
        main = self.second_norm(self.second(main))
        if self.projection:
            x = self.projection(x)
        if self.addition == "in place":
            main += x
            return F.relu(main)
        return F.relu(main + x)


def notebook_stage(
    in_channels: int,
    channels: int,
    blocks: int,
    first_stage: bool = False,
    *,
    addition: Addition = "new tensor",
    idle_relu: bool = False,
) -> nn.Sequential:
    """A stage whose first block halves the image, except right after the stem."""
    if first_stage:
        assert in_channels == channels
    built: list[nn.Module] = []
    for index in range(blocks):
        shrink = index == 0 and not first_stage
        built.append(
            NotebookBlock(
                in_channels if shrink else channels,
                channels,
                project=shrink,
                strides=2 if shrink else 1,
                addition=addition,
                idle_relu=idle_relu,
            )
        )
    return nn.Sequential(*built)


def misspelt_stage(
    in_channels: int, channels: int, blocks: int, first_stage: bool = False
) -> nn.Sequential:
    """The stage as its notebook wrote it: it passes ``stride`` for what is named ``strides``.

    Raises:
        TypeError: for every stage but the first, from the misspelt keyword.
        AssertionError: for a first stage that changes the number of channels.
    """
    if first_stage:
        assert in_channels == channels
    built: list[nn.Module] = []
    for index in range(blocks):
        if index == 0 and not first_stage:
            misspelt = {"stride": 2}
            built.append(NotebookBlock(in_channels, channels, True, **misspelt))  # type: ignore[arg-type]
        else:
            built.append(NotebookBlock(channels, channels))
    return nn.Sequential(*built)


def notebook_stem(in_channels: int) -> list[nn.Module]:
    """7x7 stride 2 with a bias, BatchNorm, ReLU, 3x3 stride 2 max-pool."""
    return [
        nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
    ]


def one_channel_network() -> nn.Sequential:
    """The first family as it was meant: one input channel, stages added by name, no head.

    The output is the last feature map, ``[N, 512, H/32, W/32]``.
    """
    net = nn.Sequential(*notebook_stem(1))
    for number, (in_channels, channels) in enumerate(STAGES, start=1):
        stage = notebook_stage(
            in_channels, channels, 2, first_stage=in_channels == channels, idle_relu=True
        )
        net.add_module(f"resnet_block{number}", stage)
    return net


def one_channel_network_as_written() -> nn.Sequential:
    """The first family as its notebook builds it: every stage claims to be the first.

    Raises:
        AssertionError: from the second stage, 64 channels are not 128.
    """
    net = nn.Sequential(*notebook_stem(1))
    for number, (in_channels, channels) in enumerate(STAGES, start=1):
        net.add_module(
            f"resnet_block{number}", misspelt_stage(in_channels, channels, 2, first_stage=True)
        )
    return net


def nested_sequential_network(classes: int = 10) -> nn.Sequential:
    """The second family: ResNet-18 as ``nn.Sequential`` of ``nn.Sequential``, adding in place."""
    stages = [
        notebook_stage(
            in_channels, channels, 2, first_stage=in_channels == channels, addition="in place"
        )
        for in_channels, channels in STAGES
    ]
    return nn.Sequential(
        nn.Sequential(*notebook_stem(3)),
        *stages,
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
        nn.Linear(512, classes),
    )


class FunctionalPoolNetwork(nn.Module):
    """The fourth family: ResNet-18 pooling over the size that is left, flattening by ``view``."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv = nn.Sequential()
        self.conv.add_module("block", nn.Sequential(*notebook_stem(3)))
        for number, (in_channels, channels) in enumerate(STAGES, start=1):
            stage = notebook_stage(in_channels, channels, 2, first_stage=in_channels == channels)
            self.conv.add_module(f"resnet_block{number}", stage)
        self.fc = nn.Linear(512, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.conv(images)
        features = F.avg_pool2d(features, kernel_size=features.shape[2:])
        logits: torch.Tensor = self.fc(features.view(images.shape[0], -1))
        return logits
