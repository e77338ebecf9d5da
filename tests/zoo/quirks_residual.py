"""Additions and activations that are awkward to fuse, one per model."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.quirk import Quirk
from tests.zoo.resblk import EarlyResBlk, ResBlk


def conv_norm(in_channels: int, channels: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution without bias that keeps the size at stride 1, and BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(channels),
    )


class Combine(nn.Module):
    """Two branches of convolution and BatchNorm, joined by a function of (first, second, input)."""

    def __init__(
        self, join: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> None:
        super().__init__()
        self.first, self.second = conv_norm(4, 4), conv_norm(4, 4, 1)
        self.join = join

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.join(self.first(x), self.second(x), x)


class Chain(nn.Module):
    """Four residual additions in a row with nothing between them, then one ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([conv_norm(4, 4) for _ in range(4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return F.relu(x)


class LongSkip(nn.Module):
    """One tensor is the shortcut of three blocks, so it must outlive all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(4, 6)
        self.layers = nn.ModuleList([conv_norm(6, 6) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = F.relu(self.stem(x))
        y = kept
        for layer in self.layers:
            y = F.relu(layer(y) + kept)
        return y


class ReluTwice(nn.Module):
    """The sum before its ReLU is used once more, so it cannot be fused away."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = conv_norm(4, 4), conv_norm(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = self.layer(x) + x
        return self.last(F.relu(total)) - total


class LaterOperand(nn.Module):
    """The shortcut is computed only after the convolution it is added to."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.side = conv_norm(4, 4), conv_norm(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        main = self.main(x)
        side = torch.sigmoid(self.side(main))
        return F.relu(main + side)


class ScaledBranch(nn.Module):
    """A learned scale per channel on the branch, LayerScale's way."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = conv_norm(4, 4)
        self.gamma = nn.Parameter(torch.tensor([0.5, -1.0, 0.0, 2.0]).view(1, 4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.branch(x) * self.gamma)


class SqueezeExcite(nn.Module):
    """A block whose branch is scaled by a gate computed from its own mean."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = conv_norm(4, 8)
        self.down, self.up = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.shortcut = conv_norm(4, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.branch(x)
        gate = self.up(F.relu(self.down(y.mean((2, 3), keepdim=True)), inplace=True))
        return F.relu(y * torch.sigmoid(gate) + self.shortcut(x))


class AverageShortcut(nn.Module):
    """The D variant: three 3x3 in the stem, average pooling before the shortcut's 1x1."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv_norm(4, 6, 3, 2), nn.ReLU(), conv_norm(6, 6), nn.ReLU(), conv_norm(6, 8)
        )
        self.main = nn.Sequential(conv_norm(8, 12, 3, 2), nn.ReLU(), conv_norm(12, 12))
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False), conv_norm(8, 12, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2, 1)
        return F.relu(self.main(x) + self.shortcut(x))


class PreActivation(nn.Module):
    """BatchNorm and ReLU come before each convolution; the addition is the last operation."""

    def __init__(self) -> None:
        super().__init__()
        self.first_norm, self.second_norm = nn.BatchNorm2d(4), nn.BatchNorm2d(6)
        self.first = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.second = nn.Conv2d(6, 4, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(F.relu(self.first_norm(x)))
        y = self.second(F.relu(self.second_norm(y)))
        return x + y


class InPlaceOnAlias(nn.Module):
    """Writes through a view and through a second name for the same tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = conv_norm(4, 4), conv_norm(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        alias = y
        y[:, :2] += x[:, 2:]
        alias.relu_()
        y[:, 3].mul_(2.0)
        y.view(-1)[0] = 3.0
        return self.last(y) + alias


class InPlaceOnInputCopy(nn.Module):
    """In-place operations on a tensor that an empty Sequential hands through."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Sequential()
        self.layer = conv_norm(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = self.nothing(x.clone())
        y = self.layer(kept)
        y += kept
        kept.neg_()
        return F.relu_(y) + kept


class InPlaceBeforeSecondUse(nn.Module):
    """The ReLU in place changes what the other consumer of the tensor reads afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.side = conv_norm(4, 4), conv_norm(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        activated = F.relu(y, inplace=True)
        return self.side(activated) + y


class WritesInput(nn.Module):
    """The first operation is an in-place ReLU on the caller's own tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.layer = nn.ReLU(inplace=True), conv_norm(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(self.relu(x))
        return F.relu(y + x)


RESIDUALS = (
    Quirk("ReLU before the addition", lambda: ResBlk(4, 4, talk=False), folded=2),
    Quirk("ReLU before the addition, projection", lambda: ResBlk(4, 6, 2, talk=False), folded=3),
    Quirk("empty Sequential shortcut", lambda: EarlyResBlk(4, 4), folded=2),
    Quirk("print in forward", lambda: ResBlk(4, 6, 2), folded=3),
    Quirk("two branches", lambda: Combine(lambda a, b, x: F.relu(a + b)), folded=2),
    Quirk(
        "both branches activated, then added",
        lambda: Combine(lambda a, b, x: F.relu(F.relu(a) + F.relu(b))),
        folded=2,
    ),
    Quirk(
        "alpha in the addition",
        lambda: Combine(lambda a, b, x: F.relu(torch.add(a, b, alpha=0.25))),
        folded=2,
    ),
    Quirk(
        "alpha in the in-place addition",
        lambda: Combine(lambda a, b, x: F.relu(a.add_(x, alpha=-2)) + b),
        folded=2,
    ),
    Quirk("subtraction", lambda: Combine(lambda a, b, x: F.relu(a - b)), folded=2),
    Quirk("reversed subtraction", lambda: Combine(lambda a, b, x: 1.0 - a + b), folded=2),
    Quirk("added to itself", lambda: Combine(lambda a, b, x: F.relu(a + a) + F.relu(b)), folded=2),
    Quirk(
        "residual of one pixel, broadcast",
        lambda: Combine(lambda a, b, x: F.relu(a + b.mean((2, 3), keepdim=True))),
        folded=2,
    ),
    Quirk(
        "residual of one channel, broadcast",
        lambda: Combine(lambda a, b, x: F.relu(a + x[:, :1] + b)),
        folded=2,
    ),
    Quirk(
        "residual broadcasts the convolution",
        lambda: Combine(lambda a, b, x: F.relu(a.mean((2, 3), keepdim=True) + b)),
        folded=2,
    ),
    Quirk("a number is added", lambda: Combine(lambda a, b, x: F.relu(a + 0.5) + b), folded=2),
    Quirk("three summands", lambda: Combine(lambda a, b, x: F.relu(a + b + x)), folded=2),
    Quirk(
        "other activations",
        lambda: Combine(lambda a, b, x: F.hardswish(a) + F.silu(b) + F.leaky_relu(a, 0.1)),
        folded=2,
    ),
    Quirk(
        "ReLU6 and clamp", lambda: Combine(lambda a, b, x: F.relu6(a) + b.clamp(min=0)), folded=2
    ),
    Quirk("maximum of both", lambda: Combine(lambda a, b, x: torch.maximum(a, b)), folded=2),
    Quirk("chain of additions", Chain, folded=4),
    Quirk("one shortcut for three blocks", LongSkip, folded=4),
    Quirk("sum used before and after its ReLU", ReluTwice, folded=2),
    Quirk("shortcut computed later", LaterOperand, folded=2),
    Quirk("scaled branch", ScaledBranch, folded=1),
    Quirk("squeeze and excite", SqueezeExcite, folded=2),
    Quirk(
        "deep stem and average-pooled shortcut", AverageShortcut, folded=6, shapes=((2, 4, 21, 21),)
    ),
    Quirk("pre-activation", PreActivation, folded=1),
    Quirk("in-place writes through aliases", InPlaceOnAlias, folded=2),
    Quirk("in-place on a handed-through copy", InPlaceOnInputCopy, folded=1),
    Quirk("in-place ReLU on the caller's tensor", WritesInput, folded=1),
    Quirk("in-place ReLU before a second use", InPlaceBeforeSecondUse, folded=2),
)
