"""Calls and answers other than one tensor in, one tensor out."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.quirk import IMAGE, Quirk
from tests.zoo.quirks_residual import conv_norm


class Features(NamedTuple):
    """Two named results."""

    early: torch.Tensor
    late: torch.Tensor


class Answers(nn.Module):
    """Two layers whose results are returned in a structure of choice.

    Args:
        form: how ``forward`` packs (input, first feature map, second feature map).
    """

    def __init__(self, form: str) -> None:
        super().__init__()
        self.first, self.second = conv_norm(4, 6), conv_norm(6, 8, 3, 2)
        self.form = form

    def forward(self, x: torch.Tensor) -> Any:
        a = F.relu(self.first(x))
        b = F.relu(self.second(a))
        match self.form:
            case "headless":
                return b
            case "tuple":
                return a, b
            case "list":
                return [a, b]
            case "dict":
                return {"late": b, "early": a}
            case "ordered dict":
                return OrderedDict(late=b, early=a)
            case "named tuple":
                return Features(a, b)
            case "nested":
                return {"maps": [a, (b,)], "mean": {"of": b.mean((2, 3))}}
            case "duplicates":
                return b, a, b
            case "input":
                return x, b
            case "input, dropped out":
                return F.dropout(x, 0.5, self.training), nn.Sequential()(x), b
            case "view of the input":
                return x.flatten(1), b
            case "views of each other":
                return b, b.flatten(1), b[:, :2]
            case "scalars":
                return b, 3, 0.5, True, None, "features"
            case "zero-dimensional":
                return b, b.mean()
            case "integers":
                return b, b.mean((2, 3)).argmax(1)
            case "size":
                return b, x.shape[0]
        raise AssertionError(self.form)


class Keywords(nn.Module):
    """A mask by keyword, a factor with a default."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = conv_norm(4, 6)

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None = None, factor: float = 2.0
    ) -> torch.Tensor:
        y = F.relu(self.layer(x))
        if mask is not None:
            y = y * mask
        return y * factor


class SeveralInputs(nn.Module):
    """Two images of different sizes and channels, joined late."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = conv_norm(4, 6, 3, 2), conv_norm(3, 6)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return F.relu(self.left(left) + self.right(right))


class Idle(nn.Module):
    """All that does nothing in inference: dropouts, identities, an empty Sequential, a cast."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Identity(),
            nn.Conv2d(4, 6, 3),
            nn.Dropout2d(0.3),
            nn.Identity(),
            nn.BatchNorm2d(6),
            nn.Sequential(),
            nn.ReLU(),
            nn.AlphaDropout(0.2),
            nn.Dropout(0.5, inplace=True),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x.contiguous()).detach()
        return F.dropout(y.to(y.dtype), 0.5, self.training)


class Constants(nn.Module):
    """A buffer, a tensor made in the call, and a plain tensor attribute take part."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = conv_norm(4, 6)
        self.register_buffer("offset", torch.linspace(-1, 1, 6).view(1, 6, 1, 1), persistent=False)
        self.plain = torch.full((6, 1, 1), 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ramp = torch.arange(6, device=x.device, dtype=x.dtype).view(6, 1, 1)
        y: torch.Tensor = self.layer(x) + self.offset
        return F.relu(y * ramp + self.plain.to(x.dtype))


def _head(pool: nn.Module) -> nn.Module:
    """A classifier on a feature map."""
    return nn.Sequential(conv_norm(4, 6), nn.ReLU(), pool, nn.Flatten(), nn.LazyLinear(5))


def _classifier(pool: nn.Module) -> nn.Module:
    model = _head(pool)
    model.eval()(torch.zeros(IMAGE))
    return model


SIGNATURES = (
    *(
        Quirk(f"output: {form}", lambda form=form: Answers(form), folded=2)  # type: ignore[misc]
        for form in (
            "headless",
            "tuple",
            "list",
            "dict",
            "ordered dict",
            "named tuple",
            "nested",
            "duplicates",
            "input",
            "input, dropped out",
            "view of the input",
            "views of each other",
            "scalars",
            "zero-dimensional",
            "integers",
            "size",
        )
    ),
    Quirk("keyword argument left out", Keywords, folded=1),
    Quirk("keyword argument given", Keywords, folded=1, named={"mask": (2, 1, 12, 12)}),
    Quirk("several inputs", SeveralInputs, folded=2, shapes=((2, 4, 13, 13), (2, 3, 7, 7))),
    Quirk("everything that does nothing", Idle, folded=1),
    Quirk("constants of three kinds", Constants, folded=1),
    Quirk("pooled to 1x1", lambda: _classifier(nn.AdaptiveAvgPool2d(1)), folded=1),
    Quirk("pooled to 3x3", lambda: _classifier(nn.AdaptiveAvgPool2d(3)), folded=1),
    Quirk("pooled to 5x7", lambda: _classifier(nn.AdaptiveAvgPool2d((5, 7))), folded=1),
    Quirk("adaptive max-pool", lambda: _classifier(nn.AdaptiveMaxPool2d(2)), folded=1),
    Quirk(
        "max-pool with dilation and ceil",
        lambda: _classifier(nn.MaxPool2d(2, 3, dilation=2, ceil_mode=True)),
        folded=1,
    ),
    Quirk("flattened without pooling", lambda: _classifier(nn.Identity()), folded=1),
)
