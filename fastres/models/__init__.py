"""Reference networks with torchvision's ``state_dict`` names, and what they cost.

>>> from fastres import models
>>> model = models.resnet50(num_classes=10)
>>> models.count(model, 224)
Cost(parameters=23528522, multiply_adds=4087156736)
"""

from __future__ import annotations

from fastres.models.blocks import BasicBlock, Bottleneck
from fastres.models.cifar import (
    CifarResNet,
    cifar_resnet20,
    cifar_resnet32,
    cifar_resnet44,
    cifar_resnet56,
    cifar_resnet110,
)
from fastres.models.cost import Cost, count
from fastres.models.registry import available, build
from fastres.models.resnet import ResNet
from fastres.models.variants import (
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    resnext50_32x4d,
    resnext101_32x8d,
    wide_resnet50_2,
)

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "CifarResNet",
    "Cost",
    "ResNet",
    "available",
    "build",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "cifar_resnet110",
    "count",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "wide_resnet50_2",
]
