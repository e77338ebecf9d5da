"""What one quirk is: a smallest model, inputs for it, and what must become of its BatchNorms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tests.zoo.statistics import randomise_statistics

IMAGE = (2, 4, 12, 12)


@dataclass(frozen=True)
class Quirk:
    """One awkward thing a model can do.

    Attributes:
        name: in words, for the test's id.
        build: makes the model, in evaluation mode or not.
        folded: BatchNorms that must disappear into a convolution; None where keeping them is as
            good.
        shapes: of the positional inputs.
        named: shapes of the keyword inputs.
        measured: the model's statistics can be measured by a pass in training mode.
        float32_only: in a lower precision eager's answer is right by luck alone.
    """

    name: str
    build: Callable[[], nn.Module]
    folded: int | None
    shapes: tuple[tuple[int, ...], ...] = (IMAGE,)
    named: dict[str, tuple[int, ...]] = field(default_factory=dict)
    measured: bool = True
    float32_only: bool = False

    def model(self) -> nn.Module:
        """The model with statistics that show a lost BatchNorm, in evaluation mode."""
        torch.manual_seed(1)
        built = self.build()
        if self.measured:
            inputs, named = self.inputs(seed=1)
            randomise_statistics(_Bound(built, named), *inputs, seed=1)
        return built.eval()

    def inputs(self, seed: int = 0) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
        """Positional and keyword arguments of one call, float32."""
        generator = torch.Generator().manual_seed(seed)
        positional = tuple(torch.randn(shape, generator=generator) for shape in self.shapes)
        named = {
            name: torch.randn(shape, generator=generator) for name, shape in self.named.items()
        }
        return positional, named


class _Bound(nn.Module):
    """A model with its keyword arguments already given."""

    def __init__(self, model: nn.Module, named: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.named = model, named

    def forward(self, *inputs: Any) -> Any:
        return self.model(*inputs, **self.named)
