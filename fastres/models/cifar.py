"""ResNet for 32 x 32 images: a 3x3 stem and three stages of 16, 32 and 64 channels.

Source: He et al., https://arxiv.org/abs/1512.03385, section 4.2: depth 6n + 2, basic blocks,
shortcuts without parameters (option A) everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

import torch
from torch import Tensor, nn

from fastres.checks import require_bool, require_integer, require_one_of
from fastres.errors import OptionError
from fastres.models.blocks import (
    BasicBlock,
    Shortcut,
    SubsampleAndPad,
    conv,
    initialise,
    projection,
    stage,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "CifarOptions",
    "CifarResNet",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "cifar_resnet110",
]

_SHORTCUTS: dict[str, Shortcut] = {"A": SubsampleAndPad, "B": projection}


class CifarResNet(nn.Module):
    """A residual network of three stages of basic blocks, for small images.

    Input: (N, in_channels, H, W) in the dtype of the weights, any H and W. Output: logits (N,
    num_classes), or with ``include_top=False`` the last feature map (N, 64, ceil(H/4), ceil(W/4)).

    Args:
        depth: 6n + 2 weight layers, n >= 1 blocks per stage. num_classes: length of the output.
        in_channels: channels of the input image. include_top: whether pooling and classifier are
        part of the model. shortcut: "A" (the paper's) subsamples and pads with zero channels, "B"
        is a strided 1x1 convolution
            with BatchNorm.
        zero_init_residual: start every block as its shortcut.

    Raises:
        OptionError: for a value that an argument cannot have.
    """

    def __init__(
        self,
        depth: int,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        include_top: bool = True,
        shortcut: Literal["A", "B"] = "A",
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        require_integer("depth", depth, "the paper has 20, 32, 44, 56 and 110")
        blocks, remainder = divmod(depth - 2, 6)
        if blocks < 1 or remainder:
            raise OptionError(
                f"depth: got {depth}, expected 6n + 2 with n at least 1; "
                "the paper has 20, 32, 44, 56 and 110."
            )
        require_integer("num_classes", num_classes, "for no classifier pass include_top=False")
        require_integer("in_channels", in_channels, "a colour image has 3")
        require_bool("include_top", include_top)
        require_one_of(
            "shortcut", shortcut, _SHORTCUTS, "'A' has no parameters, 'B' is a 1x1 convolution"
        )
        require_bool("zero_init_residual", zero_init_residual)

        connect = _SHORTCUTS[shortcut]
        self.include_top = include_top
        self.conv1 = conv(in_channels, 16, 3)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = stage(BasicBlock, blocks, 16, 16, stride=1, shortcut=connect)
        self.layer2 = stage(BasicBlock, blocks, 16, 32, stride=2, shortcut=connect)
        self.layer3 = stage(BasicBlock, blocks, 32, 64, stride=2, shortcut=connect)
        if include_top:
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(64, num_classes)
        initialise(self, zero_init_residual=zero_init_residual)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits or feature map for the images ``x``; shapes as above."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        if self.include_top:
            x = self.fc(torch.flatten(self.avgpool(x), 1))
        return x


class CifarOptions(TypedDict, total=False):
    """The keyword arguments of `CifarResNet` that a named network takes."""

    num_classes: int
    in_channels: int
    include_top: bool
    shortcut: Literal["A", "B"]
    zero_init_residual: bool


def cifar_resnet20(**options: Unpack[CifarOptions]) -> CifarResNet:
    """ResNet-20 of the paper's section 4.2: 0.27 million parameters."""
    return CifarResNet(20, **options)


def cifar_resnet32(**options: Unpack[CifarOptions]) -> CifarResNet:
    """ResNet-32 of the paper's section 4.2: 0.46 million parameters."""
    return CifarResNet(32, **options)


def cifar_resnet44(**options: Unpack[CifarOptions]) -> CifarResNet:
    """ResNet-44 of the paper's section 4.2: 0.66 million parameters."""
    return CifarResNet(44, **options)


def cifar_resnet56(**options: Unpack[CifarOptions]) -> CifarResNet:
    """ResNet-56 of the paper's section 4.2: 0.85 million parameters."""
    return CifarResNet(56, **options)


def cifar_resnet110(**options: Unpack[CifarOptions]) -> CifarResNet:
    """ResNet-110 of the paper's section 4.2: 1.7 million parameters."""
    return CifarResNet(110, **options)
