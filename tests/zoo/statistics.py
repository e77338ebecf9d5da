"""BatchNorm statistics that make a lost, doubled or misplaced BatchNorm impossible to overlook."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every BatchNorm of a model by name, torchvision's and timm's frozen ones included."""
    for name, module in model.named_modules():
        frozen = hasattr(module, "running_mean") and hasattr(module, "running_var")
        if isinstance(module, _BatchNorm) or frozen:
            yield name, module


def randomise_statistics(model: nn.Module, *example: Any, seed: int = 0) -> nn.Module:
    """Give every BatchNorm of ``model`` its own, deterministic and sane statistics, in place.

    Freshly built BatchNorms are nearly the identity, and networks whose statistics are drawn
    blindly explode or die within a few blocks. So the scale is drawn from ±[0.3, 0.9] (one
    channel in four negative, one in eight zero), the shift from N(0, 0.3); then, if an example
    input is given, one forward pass with the BatchNorms alone in training mode measures the true
    mean and variance of each layer's input under these scales; finally both are moved off the truth
    (the mean by 0.2 standard deviations, the variance by a factor in [0.7, 1.4]), as a trained
    network's are.

    Args:
        model: changed in place; module modes are as before afterwards.
        example: positional inputs with at least two images, or nothing to draw statistics blindly.
        seed: of the generator; the same seed gives the same model.

    Returns:
        ``model``.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [module for _, module in batch_norms(model)]
    with torch.no_grad():
        for norm in norms:
            _draw_affine(norm, generator)
        if example:
            _measure(model, norms, example)
        for norm in norms:
            _move_statistics(norm, generator, measured=bool(example))
    return model


def _uniform(
    like: torch.Tensor, low: float, high: float, generator: torch.Generator
) -> torch.Tensor:
    return torch.rand(like.shape, generator=generator).to(like) * (high - low) + low


def _draw_affine(norm: nn.Module, generator: torch.Generator) -> None:
    if norm.weight is None:
        return
    assert isinstance(norm.weight, torch.Tensor) and isinstance(norm.bias, torch.Tensor)
    scale = _uniform(norm.weight, 0.3, 0.9, generator)
    norm.weight.copy_(scale)
    first = int(torch.randint(8, (), generator=generator))
    norm.weight[first::8] = 0  # the output is then the shift alone, whatever the convolution gave
    norm.weight[(first + 1) % 4 :: 4] *= -1
    norm.bias.copy_(torch.randn(norm.bias.shape, generator=generator).to(norm.bias) * 0.3)


def _measure(model: nn.Module, norms: list[nn.Module], example: tuple[Any, ...]) -> None:
    modes = {module: module.training for module in model.modules()}
    model.eval()  # in training mode dropout would be measured as well
    momenta = {norm: norm.momentum for norm in norms if isinstance(norm, _BatchNorm)}
    for norm in norms:
        norm.train()
        if isinstance(norm, _BatchNorm):
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average: exactly this pass's statistics
    model(*example)
    for measured, momentum in momenta.items():
        measured.momentum = momentum
    for module, mode in modes.items():
        module.training = mode


def _move_statistics(norm: nn.Module, generator: torch.Generator, *, measured: bool) -> None:
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        return
    assert isinstance(mean, torch.Tensor) and isinstance(variance, torch.Tensor)
    if not measured or not isinstance(norm, _BatchNorm):
        mean.zero_()
        variance.fill_(1)
    mean += torch.randn(mean.shape, generator=generator).to(mean) * 0.2 * variance.sqrt()
    variance *= _uniform(variance, 0.7, 1.4, generator)
    # What a zero scale further up made constant has no variance; divided by it, rounding would be
    # all that is seen.
    largest = float(variance.max())
    variance.clamp_(min=0.1 * largest if largest > 1e-6 else 1.0)
