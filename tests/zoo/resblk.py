"""The fifth family: ``ResBlk`` in both versions, and concatenation instead of addition.

The shortcut is an EMPTY ``nn.Sequential`` where the channels agree; ReLU comes before the addition
and not after it; ``forward`` prints. The first version forgets to return, and a stride with equal
channels cannot be added.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class ResBlk(nn.Module):
    """ReLU on the main path before the addition, nothing after it.

    Args:
        in_channels, channels: of the input and the output.
        stride: of the first 3x3 and of the shortcut's 1x1, which is there only if the channels
            change.
        talk: print the shapes, as the notebook does.
    """

    def __init__(
        self, in_channels: int, channels: int, stride: int = 1, *, talk: bool = True
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.extra = nn.Sequential()
        if channels != in_channels:
            self.extra = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride), nn.BatchNorm2d(channels)
            )
        self.talk = talk

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.talk:
            print(f"ResBlk gets {x.shape}")
        main = F.relu(self.bn1(self.conv1(x)))
        main = F.relu(self.bn2(self.conv2(main)))
        total: torch.Tensor = self.extra(x) + main
        if self.talk:
            print(f"ResBlk gives {total.shape}")
        return total


class EarlyResBlk(ResBlk):
    """The first version: no stride, no ReLU at the end of the main path.

    Args:
        returns: give the sum back; the notebook forgets to.
    """

    def __init__(self, in_channels: int, channels: int, *, returns: bool = True) -> None:
        super().__init__(in_channels, channels, talk=False)
        self.returns = returns

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        main = F.relu(self.bn1(self.conv1(x)))
        main = self.bn2(self.conv2(main))
        main = self.extra(x) + main
        if self.returns:
            return main
        return None  # type: ignore[return-value]


class ResBlkNetwork(nn.Module):
    """A small classifier of these blocks: ``[N, 3, H, W]`` to ``[N, classes]``."""

    def __init__(self, classes: int = 10, *, talk: bool = True) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 3), nn.BatchNorm2d(16))
        self.blocks = nn.Sequential(
            ResBlk(16, 32, 2, talk=talk),
            ResBlk(32, 32, talk=talk),
            EarlyResBlk(32, 32),
            ResBlk(32, 64, 2, talk=talk),
            EarlyResBlk(64, 48),
        )
        self.outlayer = nn.Linear(48, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(F.relu(self.stem(x)))
        x = F.adaptive_avg_pool2d(x, (1, 1)).view(x.size(0), -1)
        logits: torch.Tensor = self.outlayer(x)
        return logits


class ConcatenationNetwork(nn.Module):
    """DenseNet's answer to the same question: channels are appended, and normalised each time.

    Every BatchNorm reads the whole concatenation and is followed by a ReLU, so none of the ones
    inside can move into the convolution after it.
    """

    def __init__(self, growth: int = 8, layers: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 2 * growth, 3, 1, 1, bias=False)
        self.layers = nn.ModuleList()
        channels = 2 * growth
        for _ in range(layers):
            self.layers.append(
                nn.Sequential(
                    nn.BatchNorm2d(channels),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(channels, 4 * growth, 1, bias=False),
                    nn.BatchNorm2d(4 * growth),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False),
                )
            )
            channels += growth
        self.transition = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels // 2, 1, bias=False),
            nn.AvgPool2d(2),
        )
        self.last = nn.BatchNorm2d(channels // 2)
        self.classifier = nn.Linear(channels // 2, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        y = F.relu(self.last(self.transition(torch.cat(features, 1))), inplace=True)
        logits: torch.Tensor = self.classifier(F.adaptive_avg_pool2d(y, (1, 1)).flatten(1))
        return logits
