"""Networks that come with libraries of their own, as plain modules: for segmentation and faces.

Written here so that the command needs none of those libraries; the operators and their order are
theirs, with random weights. Encoders are this project's own ResNets.
"""

from __future__ import annotations

import itertools
import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastres import models

CLASSES = 21
"""Of the segmentation networks: those of Pascal VOC."""


class Encoder(nn.Module):
    """A ResNet's feature maps at strides 2, 4, 8, 16 and 32."""

    def __init__(self, name: str) -> None:
        super().__init__()
        parts = dict(models.build(name).named_children())
        self.stem = nn.Sequential(parts["conv1"], parts["bn1"], parts["relu"])
        self.pool = parts["maxpool"]
        self.stages = nn.ModuleList(parts[f"layer{stage}"] for stage in range(1, 5))

    def forward(self, x: Tensor) -> list[Tensor]:
        """From images [N, 3, H, W] to five feature maps, the largest first."""
        features = [self.stem(x)]
        x = self.pool(features[0])
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def _conv_bn_relu(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """A U-Net on a ResNet-34: nearest upsampling, concatenation, two convolutions a stage."""

    WIDTHS = (256, 128, 64, 32, 16)

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder("resnet34")
        skips = (256, 128, 64, 64, 0)
        inputs = (512, *self.WIDTHS[:-1])
        self.blocks = nn.ModuleList(
            [
                nn.Sequential(_conv_bn_relu(i + skip, width), _conv_bn_relu(width, width))
                for i, skip, width in zip(inputs, skips, self.WIDTHS, strict=True)
            ]
        )
        self.head = nn.Conv2d(self.WIDTHS[-1], CLASSES, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes, H, W]; H and W are multiples of 32."""
        *skips, x = self.encoder(x)
        for block in self.blocks:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            if skips:
                x = torch.cat([x, skips.pop()], dim=1)
            x = block(x)
        result: Tensor = self.head(x)
        return result


class _Smooth(nn.Module):
    """3x3 convolution, GroupNorm, ReLU, and twice the size by bilinear interpolation."""

    def __init__(self, inputs: int, outputs: int, upsample: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(32, outputs)
        self.upsample = upsample

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        if self.upsample:
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
        return x


class FPN(nn.Module):
    """A feature pyramid on a ResNet-50, its levels brought to stride 4 and added."""

    PYRAMID = 256
    WIDTH = 128

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder("resnet50")
        self.lateral = nn.ModuleList(
            [nn.Conv2d(c, self.PYRAMID, 1) for c in (256, 512, 1024, 2048)]
        )
        self.levels = nn.ModuleList()
        for doublings in range(4):
            widths = (self.PYRAMID, *[self.WIDTH] * max(1, doublings))
            self.levels.append(
                nn.Sequential(
                    *(
                        _Smooth(a, b, upsample=bool(doublings))
                        for a, b in itertools.pairwise(widths)
                    )
                )
            )
        self.head = nn.Conv2d(self.WIDTH, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes, H, W]; H and W are multiples of 32."""
        features = self.encoder(x)[1:]
        pyramid = [self.lateral[3](features[3])]
        for lateral, feature in zip(
            (self.lateral[2], self.lateral[1], self.lateral[0]), features[2::-1], strict=True
        ):
            upper = F.interpolate(pyramid[0], scale_factor=2.0, mode="nearest")
            pyramid.insert(0, upper + lateral(feature))
        merged = self.levels[0](pyramid[0])
        for level, each in zip(list(self.levels)[1:], pyramid[1:], strict=True):
            merged = merged + level(each)
        logits = self.head(merged)
        return F.interpolate(logits, scale_factor=4.0, mode="bilinear", align_corners=True)


class _FaceBlock(nn.Module):
    """BatchNorm, 3x3, BatchNorm, PReLU, 3x3 with the stride, BatchNorm, and the shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        y = self.bn3(self.conv2(y))
        result: Tensor = y + self.downsample(x)
        return result


class FaceResNet(nn.Module):
    """An IResNet-50 as face recognition uses it: images of 112 pixels, 512 features."""

    FEATURES = 512

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64)
        )
        blocks: list[nn.Module] = []
        inputs = 64
        for width, depth in ((64, 3), (128, 4), (256, 14), (512, 3)):
            for index in range(depth):
                blocks.append(_FaceBlock(inputs, width, 2 if index == 0 else 1))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs * 7 * 7, self.FEATURES)
        self.features = nn.BatchNorm1d(self.FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, 512] of faces [N, 3, 112, 112]."""
        x = self.bn(self.blocks(self.stem(x)))
        result: Tensor = self.features(self.fc(torch.flatten(x, 1)))
        return result


class _HalfInstanceNorm(nn.Module):
    """InstanceNorm of the first half of the channels, BatchNorm of the second."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = channels // 2
        self.instance = nn.InstanceNorm2d(self.first, affine=True)
        self.batch = nn.BatchNorm2d(channels - self.first)

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.split(x, [self.first, x.shape[1] - self.first], dim=1)
        return torch.cat([self.instance(first.contiguous()), self.batch(second.contiguous())], 1)


def ibn_resnet50() -> nn.Module:
    """A ResNet-50 with the first norm of each bottleneck halved, but for the last stage's."""
    network = models.build("resnet50")
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d) and re.fullmatch(r"layer[123]\.\d+\.bn1", name):
            block = network.get_submodule(name.rpartition(".")[0])
            block.bn1 = _HalfInstanceNorm(module.num_features)
    return network


class _PreActivation(nn.Module):
    """BatchNorm and ReLU before each of three convolutions; the shortcut follows the first."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        y = self.conv1(y)
        y = self.conv2(F.relu(self.bn2(y)))
        result: Tensor = self.conv3(F.relu(self.bn3(y))) + shortcut
        return result


class PreActivationResNet(nn.Module):
    """A pre-activation ResNet-50."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        blocks: list[nn.Module] = []
        inputs = 64
        for width, depth, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for index in range(depth):
                blocks.append(_PreActivation(inputs, width, stride if index == 0 else 1))
                inputs = 4 * width
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes]."""
        x = F.relu(self.bn(self.blocks(self.pool(self.conv1(x)))))
        result: Tensor = self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return result
