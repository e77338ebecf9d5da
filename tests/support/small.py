"""Models of a few layers, each written as one function, and what is asked of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastres.export import OnnxReport
from tests.support.optimizing import nodes, optimize
from tests.support.oracle import Error, assert_as_accurate
from tests.zoo.resblk import ResBlk
from tests.zoo.statistics import randomise_statistics

# On a handful of numbers the ratio of two rounding errors can be 3 by chance; what these tests
# look for, a BatchNorm or a summand lost, is off by thousands.
FACTOR = 5.0


class Net(nn.Module):
    """``forward(x)`` is ``function(self, x)``.

    Args:
        function: gets the module, so that it can use its parts, and the input or inputs.
        parts: submodules, and tensors, which become buffers.
    """

    def __init__(self, function: Callable[..., Any], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            else:
                self.register_buffer(name, part)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


class PairNet(Net):
    """The same with two inputs."""

    def forward(self, x: Tensor, other: Tensor) -> Any:  # type: ignore[override]
        return self.function(self, x, other)


def images(batch: int = 3, channels: int = 4, height: int = 9, width: int = 8) -> Tensor:
    return torch.randn(batch, channels, height, width)


def measured(model: nn.Module, *inputs: Tensor) -> nn.Module:
    """``model`` in eval mode, with statistics that make a lost BatchNorm impossible to overlook."""
    return randomise_statistics(model, *(inputs or (images(),))).eval()


def net(function: Callable[..., Any], **parts: nn.Module | Tensor) -> nn.Module:
    """A measured :class:`Net`."""
    return measured(Net(function, **parts))


def classifier(classes: int = 10, channels: int = 3) -> nn.Module:
    """A measured network of three convolutions, one residual addition and a linear layer."""
    return measured(
        Net(
            lambda m, x: m.fc(m.pool(m.block(m.stem(x)) + m.stem(x)).flatten(1)),
            stem=nn.Sequential(conv(channels, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()),
            block=nn.Sequential(
                *(conv(8, 8, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
                *(conv(8, 8, bias=False), nn.BatchNorm2d(8)),
            ),
            pool=nn.AdaptiveAvgPool2d(1),
            fc=nn.Linear(8, classes),
        ),
        images(4, channels, 16, 16),
    )


def pair_net(
    function: Callable[..., Any], x: Tensor, other: Tensor, **parts: nn.Module | Tensor
) -> nn.Module:
    """A measured :class:`PairNet`."""
    return measured(PairNet(function, **parts), x, other)


def conv(in_channels: int = 4, channels: int = 4, kernel: int = 3, **options: Any) -> nn.Conv2d:
    """A convolution that keeps the size, unless options say otherwise."""
    return nn.Conv2d(in_channels, channels, kernel, **{"padding": kernel // 2, **options})


def optimized(model: nn.Module, *inputs: Tensor, **options: Any) -> Any:
    """The optimised model, after a look at its answers for several sizes.

    Args:
        model: in eval mode.
        inputs: of one call; an image when left out, and then other images are tried too.
        options: of ``fastres.optimize``.
    """
    given = inputs or (images(2),)
    fast = optimize(model, given, **options)
    precision = options.get("precision", "fp32")
    tried = [given] if inputs else [given, (images(1),), (images(3, height=11, width=13),)]
    for arguments in tried:
        assert_right(model, fast, *arguments, precision=precision)
    return fast


def assert_right(
    model: nn.Module, fast: Callable[..., Any], *inputs: Any, precision: str = "fp32"
) -> Error:
    """As accurate as eager, within what a handful of numbers can tell."""
    return assert_as_accurate(model, fast, *inputs, precision=precision, factor=FACTOR)


def folded(fast: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution of an optimised model."""
    (node,) = nodes(fast, "conv2d")
    stored = dict(fast.graph_module.named_buffers())
    weight, bias = (stored[str(getattr(argument, "target", None))] for argument in node.args[1:3])
    return weight, bias


def counts(fast: Any, kind: str) -> tuple[int, int]:
    """(done, found) for "batch_norm", "convolution", "addition" or "activation"."""
    return fast.report.done[kind], fast.report.found[kind]


def assert_refused(fast: Any, module: str, what: str, reason: str) -> None:
    """The receipt holds exactly one refusal of ``what`` in ``module``, for this reason.

    Args:
        reason: a regular expression for a part of the sentence.
    """
    matching = [r for r in fast.report.refused if r.module == module and r.what == what]
    assert len(matching) == 1, str(fast.report)
    assert re.search(reason, matching[0].reason), str(fast.report)
    assert f"refused: {module}: {what}: " in str(fast.report)


def assert_left(fast: Any, module: str, operator: str) -> None:
    """The receipt says that an operation of ``module`` stayed with torch."""
    found = {(remark.module, remark.what) for remark in fast.report.left}
    assert (module, operator) in found, str(fast.report)


class Small(nn.Module):
    """Stem, two residual blocks, classifier."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = ResBlk(8, 8, talk=False)
        self.layer2 = ResBlk(8, 16, stride=2, talk=False)
        self.fc = nn.Linear(16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.pool(torch.relu(self.bn1(self.conv1(x))))
        y = self.layer2(self.layer1(y)).mean((2, 3))
        logits: torch.Tensor = self.fc(y)
        return logits


EXAMPLE = torch.zeros(1, 3, 40, 40)
OPERATORS = {"Conv": 6, "Relu": 5, "Add": 2, "MaxPool": 1, "GlobalAveragePool": 1} | {
    "Flatten": 1,
    "Gemm": 1,
}


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return randomise_statistics(Small(), torch.randn(16, 3, 40, 40)).eval()


@dataclass(frozen=True)
class Exported:
    """A model and its file, which takes images of any size."""

    model: nn.Module
    path: Path
    report: OnnxReport
