"""From a name or a depth, as a command line or a configuration file has it, to a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastres.errors import OptionError
from fastres.models import cifar, variants
from fastres.models.cifar import CifarOptions, CifarResNet
from fastres.models.resnet import ResNet
from fastres.models.variants import ResNetOptions

__all__ = ["available", "build"]

_IMAGENET: dict[str, Callable[..., ResNet]] = {
    constructor.__name__: constructor
    for constructor in (
        variants.resnet18,
        variants.resnet34,
        variants.resnet50,
        variants.resnet101,
        variants.resnet152,
        variants.resnext50_32x4d,
        variants.resnext101_32x8d,
        variants.wide_resnet50_2,
    )
}
_CIFAR: dict[str, Callable[..., CifarResNet]] = {
    constructor.__name__: constructor
    for constructor in (
        cifar.cifar_resnet20,
        cifar.cifar_resnet32,
        cifar.cifar_resnet44,
        cifar.cifar_resnet56,
        cifar.cifar_resnet110,
    )
}


def available() -> tuple[str, ...]:
    """The names that `build` knows, ImageNet's first, each family from shallow to deep."""
    return (*_IMAGENET, *_CIFAR)


def build(name_or_depth: str | int, **options: Any) -> ResNet | CifarResNet:
    """Build a network by its name (see `available`) or an ImageNet ResNet by its depth.

    Args:
        name_or_depth: for example "resnext50_32x4d", or 50 for "resnet50".
        options: what the constructor of that name takes.

    Raises:
        OptionError: for a name, depth or option that does not exist, or a value that an option
        cannot have.
    """
    name = f"resnet{name_or_depth}" if isinstance(name_or_depth, int) else name_or_depth
    known: frozenset[str]
    constructor: Callable[..., ResNet | CifarResNet]
    if name in _IMAGENET:
        constructor, known = _IMAGENET[name], ResNetOptions.__optional_keys__
    elif name in _CIFAR:
        constructor, known = _CIFAR[name], CifarOptions.__optional_keys__
    else:
        raise OptionError(
            f"model: got {name_or_depth!r}, expected a depth of 18, 34, 50, 101 or 152, or one of "
            f"the names {', '.join(available())}; for other networks build ResNet(...) or "
            "CifarResNet(...)."
        )
    unknown = sorted(options.keys() - known)
    if unknown:
        raise OptionError(
            f"{unknown[0]}: not an option of {name}, expected some of {', '.join(sorted(known))}; "
            "leave it out or correct its spelling."
        )
    return constructor(**options)
