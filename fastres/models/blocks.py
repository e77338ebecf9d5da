"""What every ResNet here is made of: residual blocks, shortcuts, the initialisation.

A block computes ``relu(F(x) + shortcut(x))``. ``F`` is two 3x3 convolutions (`BasicBlock`) or 1x1,
3x3, 1x1 (`Bottleneck`), each followed by BatchNorm. The shortcut is the identity, a strided 1x1
convolution with BatchNorm (`projection`, option B of the paper) or a strided view padded with zero
channels (`SubsampleAndPad`, option A).

Source: He et al., "Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385,
sections 3.3 and 3.4; grouped 3x3 convolutions: Xie et al., https://arxiv.org/abs/1611.05431.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

from torch import Tensor, nn

from fastres.errors import OptionError

__all__ = [
    "VERSIONS",
    "BasicBlock",
    "Bottleneck",
    "SubsampleAndPad",
    "Version",
    "conv",
    "initialise",
    "projection",
    "stage",
]

Version = Literal["v1.5", "v1"]
VERSIONS: tuple[Version, ...] = ("v1.5", "v1")

Shortcut = Callable[[int, int, int], nn.Module]
"""Makes a shortcut from (input channels, output channels, stride)."""


def conv(
    in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """A square convolution of odd size without bias that keeps the image size at stride 1.

    There is no bias because BatchNorm, which always follows, would subtract it again.
    """
    return nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        groups=groups,
        bias=False,
    )


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Shortcut option B, a 1x1 convolution with BatchNorm.

    (N, C, H, W) becomes (N, K, ceil(H/stride), ceil(W/stride)).
    """
    return nn.Sequential(
        conv(in_channels, out_channels, 1, stride=stride), nn.BatchNorm2d(out_channels)
    )


class SubsampleAndPad(nn.Module):
    """Shortcut option A, no parameters: every ``stride``-th pixel, new channels filled with zero.

    (N, C, H, W) becomes (N, K, ceil(H/stride), ceil(W/stride)), K >= C, in the input's dtype. The
    zero channels come after the C old ones.

    Raises:
        OptionError: for fewer output than input channels.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        if out_channels < in_channels:
            raise OptionError(
                f"shortcut: got option 'A' from {in_channels} to {out_channels} channels, expected "
                "at least as many channels out as in; use option 'B', a projection."
            )
        self.extra_channels = out_channels - in_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return the shortcut of ``x``; shapes as above."""
        kept = x[:, :, :: self.stride, :: self.stride]
        return nn.functional.pad(kept, (0, 0, 0, 0, 0, self.extra_channels))

    def extra_repr(self) -> str:
        """Stride and added channels, for ``print(model)``."""
        return f"stride={self.stride}, extra_channels={self.extra_channels}"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; the first one strides, in "v1" as in "v1.5".

    Input (N, in_channels, H, W), output (N, planes, ceil(H/stride), ceil(W/stride)), floating
    point.

    Raises:
        OptionError: for ``groups`` or ``width_per_group`` other than 1 and 64: the block has no 1x1
            convolutions that could change the width around a grouped 3x3.
    """

    expansion: ClassVar[int] = 1

    def __init__(
        self,
        in_channels: int,
        planes: int,
        *,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        width_per_group: int = 64,
        version: Version = "v1.5",
    ) -> None:
        super().__init__()
        for name, value, only in (
            ("groups", groups, 1),
            ("width_per_group", width_per_group, 64),
        ):
            if value != only:
                raise OptionError(
                    f"{name}: got {value}, expected {only} in a network of basic blocks; "
                    "take one of bottlenecks (resnet50, resnet101, resnet152)."
                )
        self.conv1 = conv(in_channels, planes, 3, stride=stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv(planes, planes, 3)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The BatchNorm just before the addition."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output for ``x``; shapes as above."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y: Tensor = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += shortcut
        out: Tensor = self.relu(y)
        return out


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up to four times ``planes``.

    The inner width is ``groups * floor(planes * width_per_group / 64)``. The 3x3 strides in "v1.5",
    the first 1x1 in "v1" (the paper), which then never looks at three of four pixels.

    Input (N, in_channels, H, W), output (N, 4 * planes, ceil(H/stride), ceil(W/stride)), floating
    point.

    Raises:
        OptionError: if ``width_per_group`` is so small that no channel is left.
    """

    expansion: ClassVar[int] = 4

    def __init__(
        self,
        in_channels: int,
        planes: int,
        *,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        width_per_group: int = 64,
        version: Version = "v1.5",
    ) -> None:
        super().__init__()
        width = planes * width_per_group // 64 * groups
        if width < 1:
            raise OptionError(
                f"width_per_group: got {width_per_group}, expected at least {-(-64 // planes)} "
                f"for a bottleneck of {planes} planes, or no channel is left; pass a greater one."
            )
        stride_1x1, stride_3x3 = (stride, 1) if version == "v1" else (1, stride)
        self.conv1 = conv(in_channels, width, 1, stride=stride_1x1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride=stride_3x3, groups=groups)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, planes * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The BatchNorm just before the addition."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output for ``x``; shapes as above."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y: Tensor = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += shortcut
        out: Tensor = self.relu(y)
        return out


Block = type[BasicBlock] | type[Bottleneck]


def stage(
    block: Block,
    depth: int,
    in_channels: int,
    planes: int,
    *,
    stride: int,
    shortcut: Shortcut,
    groups: int = 1,
    width_per_group: int = 64,
    version: Version = "v1.5",
) -> nn.Sequential:
    """``depth`` blocks; the first one strides and has a shortcut where the shape changes."""
    out_channels = planes * block.expansion
    blocks: list[nn.Module] = []
    for index in range(depth):
        step = stride if index == 0 else 1
        channels = in_channels if index == 0 else out_channels
        changes = step != 1 or channels != out_channels
        blocks.append(
            block(
                channels,
                planes,
                stride=step,
                downsample=shortcut(channels, out_channels, step) if changes else None,
                groups=groups,
                width_per_group=width_per_group,
                version=version,
            )
        )
    return nn.Sequential(*blocks)


def initialise(model: nn.Module, *, zero_init_residual: bool) -> None:
    """Set the weights of every convolution and BatchNorm, in place, for training from scratch.

    Convolutions: normal with mean 0 and variance ``2 / (K * R * S)`` (K output channels, R x S
    filter), He et al., https://arxiv.org/abs/1502.01852. BatchNorm: scale 1, shift 0. With
    ``zero_init_residual`` the last BatchNorm of every block has scale 0, so that each block starts
    as its shortcut (Goyal et al., https://arxiv.org/abs/1706.02677, section 5.1). Linear layers
    keep torch's default.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    if zero_init_residual:
        for module in model.modules():
            if isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_(module.last_norm.weight)
