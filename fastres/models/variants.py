"""The named networks: which block, how many, how wide.

All take the keyword arguments of `ResNet`: ``num_classes``, ``in_channels``, ``include_top``,
``groups``, ``width_per_group``, ``version``, ``zero_init_residual``. A name that contains a width
or a number of groups (ResNeXt, wide) fixes it: another value raises OptionError.

Sources: ResNet https://arxiv.org/abs/1512.03385 table 1, ResNeXt https://arxiv.org/abs/1611.05431
table 1, wide ResNet https://arxiv.org/abs/1605.07146 (WRN-50-2). The parameters and multiply-adds
given are those of the default options at 224 x 224; the tests count them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from fastres.errors import OptionError
from fastres.models.blocks import BasicBlock, Block, Bottleneck, Version
from fastres.models.resnet import ResNet

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "ResNetOptions",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "wide_resnet50_2",
]


class ResNetOptions(TypedDict, total=False):
    """The keyword arguments of `ResNet` that a named network takes."""

    num_classes: int
    in_channels: int
    include_top: bool
    groups: int
    width_per_group: int
    version: Version
    zero_init_residual: bool


def _make(
    name: str,
    block: Block,
    layers: tuple[int, int, int, int],
    options: ResNetOptions,
    fixed: ResNetOptions | None = None,
) -> ResNet:
    fixed = fixed or {}
    for option, value in fixed.items():
        requested = options.get(option, value)
        if requested != value:
            raise OptionError(
                f"{option}: got {requested!r}, expected {value!r}, which is what the name {name} "
                f"says; leave it out, or build ResNet(Bottleneck, {layers}, "
                f"{option}={requested!r}, ...)."
            )
    merged: ResNetOptions = {**options, **fixed}
    return ResNet(block, layers, **merged)


def resnet18(**options: Unpack[ResNetOptions]) -> ResNet:
    """ResNet-18, basic blocks: 11,689,512 parameters, 1.814e9 multiply-adds."""
    return _make("resnet18", BasicBlock, (2, 2, 2, 2), options)


def resnet34(**options: Unpack[ResNetOptions]) -> ResNet:
    """ResNet-34, basic blocks: 21,797,672 parameters, 3.664e9 multiply-adds."""
    return _make("resnet34", BasicBlock, (3, 4, 6, 3), options)


def resnet50(**options: Unpack[ResNetOptions]) -> ResNet:
    """ResNet-50, bottlenecks: 25,557,032 parameters, 4.089e9 multiply-adds ("v1": 3.858e9)."""
    return _make("resnet50", Bottleneck, (3, 4, 6, 3), options)


def resnet101(**options: Unpack[ResNetOptions]) -> ResNet:
    """ResNet-101, bottlenecks: 44,549,160 parameters, 7.801e9 multiply-adds ("v1": 7.570e9)."""
    return _make("resnet101", Bottleneck, (3, 4, 23, 3), options)


def resnet152(**options: Unpack[ResNetOptions]) -> ResNet:
    """ResNet-152, bottlenecks: 60,192,808 parameters, 11.514e9 multiply-adds ("v1": 11.282e9)."""
    return _make("resnet152", Bottleneck, (3, 8, 36, 3), options)


def resnext50_32x4d(**options: Unpack[ResNetOptions]) -> ResNet:
    """ResNeXt-50, 32 groups of 4 channels: 25,028,904 parameters, 4.230e9 multiply-adds."""
    fixed: ResNetOptions = {"groups": 32, "width_per_group": 4}
    return _make("resnext50_32x4d", Bottleneck, (3, 4, 6, 3), options, fixed)


def resnext101_32x8d(**options: Unpack[ResNetOptions]) -> ResNet:
    """ResNeXt-101, 32 groups of 8 channels: 88,791,336 parameters, 16.414e9 multiply-adds."""
    fixed: ResNetOptions = {"groups": 32, "width_per_group": 8}
    return _make("resnext101_32x8d", Bottleneck, (3, 4, 23, 3), options, fixed)


def wide_resnet50_2(**options: Unpack[ResNetOptions]) -> ResNet:
    """ResNet-50, 3x3 convolutions twice as wide: 68,883,240 parameters, 11.398e9 multiply-adds."""
    fixed: ResNetOptions = {"width_per_group": 128}
    return _make("wide_resnet50_2", Bottleneck, (3, 4, 6, 3), options, fixed)
