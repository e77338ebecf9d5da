"""The distinct convolutions of the reference models, read off the models themselves."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from fastres import models

MODELS = ("resnet18", "resnet50", "resnext50_32x4d")


@dataclass(frozen=True, order=True)
class ConvShape:
    """One convolution's problem, without the batch size.

    Attributes:
        height, width: of the input.
        channels, filters: in and out.
        kernel, stride, padding: the same in both directions.
        groups: of channels.
    """

    height: int
    width: int
    channels: int
    filters: int
    kernel: int
    stride: int
    padding: int
    groups: int

    def __str__(self) -> str:
        groups = f"g{self.groups}" if self.groups > 1 else ""
        size = f"{self.height}x{self.width}x{self.channels}"
        return f"{size}-{self.kernel}x{self.kernel}s{self.stride}{groups}-{self.filters}"

    @property
    def multiply_adds(self) -> int:
        """Per image."""
        rows, columns = (
            (side + 2 * self.padding - self.kernel) // self.stride + 1
            for side in (self.height, self.width)
        )
        per_pixel = self.kernel**2 * self.channels // self.groups * self.filters
        return rows * columns * per_pixel


def of_model(name: str, size: int = 224) -> Counter[ConvShape]:
    """How often each shape is in a model of `fastres.models`, for square images of ``size``."""
    found: Counter[ConvShape] = Counter()

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(module, nn.Conv2d)
        assert not isinstance(module.padding, str)
        _, channels, height, width = inputs[0].shape
        found[
            ConvShape(
                height=height,
                width=width,
                channels=channels,
                filters=module.out_channels,
                kernel=module.kernel_size[0],
                stride=module.stride[0],
                padding=module.padding[0],
                groups=module.groups,
            )
        ] += 1

    with torch.device("meta"):  # shapes only: nothing is allocated or computed
        model = models.build(name).eval()
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_pre_hook(note)
        model(torch.empty((1, 3, size, size), dtype=torch.float32, device="meta"))
    return found


def distinct(names: tuple[str, ...] = MODELS, size: int = 224) -> list[ConvShape]:
    """Every shape that is in one of the models, large images first."""
    return sorted({shape for name in names for shape in of_model(name, size)}, reverse=True)


def main() -> None:
    """Print them."""
    for name in MODELS:
        found = of_model(name)
        print(f"{name}: {found.total()} convolutions, {len(found)} distinct")
        for shape, count in sorted(found.items(), reverse=True):
            print(f"  {count:2} x {shape!s:24} {shape.multiply_adds / 1e6:8.1f} M multiply-adds")


if __name__ == "__main__":
    main()
