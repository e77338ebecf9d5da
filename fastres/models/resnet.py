"""ResNet for images of ImageNet's size: a stem that divides by 4, four stages, a classifier.

Module names, and with them the keys of ``state_dict()``, are torchvision's, so that weights go both
ways.

Source: He et al., "Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385,
table 1. The stride on the 3x3 convolution ("v1.5") is described at
https://catalog.ngc.nvidia.com/orgs/nvidia/resources/resnet_50_v1_5_for_pytorch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastres.checks import require_bool, require_integer, require_integers, require_one_of
from fastres.errors import OptionError
from fastres.models.blocks import (
    VERSIONS,
    BasicBlock,
    Block,
    Bottleneck,
    Version,
    conv,
    initialise,
    projection,
    stage,
)

__all__ = ["ResNet"]


class ResNet(nn.Module):
    """A residual network of four stages.

    Input: (N, in_channels, H, W) in the dtype of the weights, any H and W. Output: logits (N,
    num_classes), or with ``include_top=False`` the last feature map (N, 512 * block.expansion,
    ceil(H/32), ceil(W/32)).

    Args:
        block: `BasicBlock` or `Bottleneck`.
        layers: number of blocks in each of the four stages.
        num_classes: length of the output.
        in_channels: channels of the input image.
        include_top: whether pooling and classifier are part of the model.
        groups: groups of every 3x3 convolution (ResNeXt's cardinality); bottlenecks only.
        width_per_group: channels of each group in the first stage; bottlenecks only.
        version: "v1.5" puts a bottleneck's stride on its 3x3 convolution, "v1" on its first 1x1.
        zero_init_residual: start every block as its shortcut.

    Raises:
        OptionError: for a value that an argument cannot have.
    """

    def __init__(
        self,
        block: Block,
        layers: Sequence[int],
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        include_top: bool = True,
        groups: int = 1,
        width_per_group: int = 64,
        version: Version = "v1.5",
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        if block not in (BasicBlock, Bottleneck):
            raise OptionError(
                f"block: got {block!r}, expected the class BasicBlock or Bottleneck; "
                "import it from fastres.models."
            )
        require_integers(
            "layers", layers, 4, "the blocks of each stage; ResNet-50 has (3, 4, 6, 3)"
        )
        require_integer("num_classes", num_classes, "for no classifier pass include_top=False")
        require_integer("in_channels", in_channels, "a colour image has 3")
        require_bool("include_top", include_top)
        require_integer("groups", groups, "an ordinary ResNet has 1, ResNeXt 32")
        require_integer("width_per_group", width_per_group, "an ordinary ResNet has 64")
        require_one_of(
            "version", version, VERSIONS, "'v1.5' strides on the 3x3, 'v1' on the first 1x1"
        )
        require_bool("zero_init_residual", zero_init_residual)

        def make(index: int, channels: int) -> nn.Sequential:
            return stage(
                block,
                layers[index],
                channels,
                64 << index,
                stride=1 if index == 0 else 2,
                shortcut=projection,
                groups=groups,
                width_per_group=width_per_group,
                version=version,
            )

        expansion = block.expansion
        self.include_top = include_top
        self.conv1 = conv(in_channels, 64, 7, stride=2)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = make(0, 64)
        self.layer2 = make(1, 64 * expansion)
        self.layer3 = make(2, 128 * expansion)
        self.layer4 = make(3, 256 * expansion)
        if include_top:
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(512 * expansion, num_classes)
        initialise(self, zero_init_residual=zero_init_residual)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits or feature map for the images ``x``; shapes as above."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        if self.include_top:
            x = self.fc(torch.flatten(self.avgpool(x), 1))
        return x
