"""Small random networks: a list of steps that read any earlier value, and what runs it.

The steps are drawn by hypothesis (`networks`), so a failing network shrinks to few steps and prints
as a list that can be read, and pasted into a test.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from torch import nn

Kind = Literal[
    "conv", "again", "norm", "relu", "relu_", "relu6", "add", "add_", "subtract", "concat", "scale",
    "max_pool", "avg_pool", "excite", "dropout", "identity",
]  # fmt: skip

Norm = Literal["none", "affine", "plain"]

BINARY_KINDS = ("add", "add_", "subtract", "concat")


@dataclass(frozen=True)
class Step:
    """One operation on earlier values; value 0 is the input, value n the result of step n.

    Attributes:
        kind: the operation; "again" applies an earlier convolution once more.
        of: index of its operand.
        other: index of its second operand; for "again" index of the step whose layer is used.
        conv: options of a convolution, as ``nn.Conv2d`` takes them.
        norm: a convolution is followed by such a BatchNorm; a norm is one.
        act: a convolution ends in ReLU.
        alpha: factor of an addition's second operand.
    """

    kind: Kind
    of: int
    other: int = 0
    conv: tuple[tuple[str, Any], ...] = ()
    norm: Norm = "none"
    act: bool = False
    alpha: float = 1.0


@dataclass(frozen=True)
class Network:
    """Everything that makes one random network.

    Attributes:
        image: channels, height and width of the input.
        steps: in order.
        outputs: indices of the values returned: one alone, or several as a tuple.
        head: classes after global pooling of the last value, or 0 for none.
        seed: of the weights.
    """

    image: tuple[int, int, int]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    head: int
    seed: int

    def build(self) -> Generated:
        """The network with freshly drawn weights."""
        torch.manual_seed(self.seed)
        return Generated(self)


class Generated(nn.Module):
    """Runs the steps of a `Network`."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.layers = nn.ModuleDict()
        channels = _shapes(network)
        for number, step in enumerate(network.steps, start=1):
            layer = _layer(step, channels[step.of][0])
            if layer is not None:
                self.layers[str(number)] = layer
        if network.head:
            self.head = nn.Linear(channels[-1][0], network.head)

    def forward(self, x: torch.Tensor) -> Any:
        values = [x]
        for number, step in enumerate(self.network.steps, start=1):
            values.append(self._run(number, step, values))
        if self.network.head:
            return self.head(F.adaptive_avg_pool2d(values[-1], 1).flatten(1))
        results = tuple(values[index] for index in self.network.outputs)
        return results[0] if len(results) == 1 else results

    def _run(self, number: int, step: Step, values: list[torch.Tensor]) -> torch.Tensor:
        x = values[step.of]
        match step.kind:
            case "again":
                number = step.other
            case "relu" | "relu_":
                return F.relu(x, inplace=step.kind == "relu_")
            case "relu6":
                return F.relu6(x)
            case "add":
                return torch.add(x, values[step.other], alpha=step.alpha)
            case "add_":
                return x.add_(values[step.other], alpha=step.alpha)
            case "subtract":
                return x - values[step.other]
            case "concat":
                return torch.cat([x, values[step.other]], 1)
            case "scale":
                return x * step.alpha
            case "max_pool":
                return F.max_pool2d(x, 3, 2, 1)
            case "avg_pool":
                return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
            case "excite":
                return x * torch.sigmoid(x.mean((2, 3), keepdim=True))
            case "dropout":
                return F.dropout(x, 0.5, self.training)
            case "identity":
                return nn.Sequential()(x)
        result: torch.Tensor = self.layers[str(number)](x)
        return result


def _layer(step: Step, channels: int) -> nn.Module | None:
    if step.kind == "norm":
        return nn.BatchNorm2d(channels, affine=step.norm == "affine")
    if step.kind != "conv":
        return None
    options = dict(step.conv)
    parts: list[nn.Module] = [nn.Conv2d(channels, **options)]
    if step.norm != "none":
        parts.append(nn.BatchNorm2d(options["out_channels"], affine=step.norm == "affine"))
    if step.act:
        parts.append(nn.ReLU(inplace=True))
    return nn.Sequential(*parts)


Shape = tuple[int, int, int]


def _result(step: Step, shapes: list[Shape], steps: tuple[Step, ...]) -> Shape | None:
    """Channels, height and width of a step's value; None where the step cannot be."""
    channels, height, width = shapes[step.of]
    if step.kind == "again":
        earlier = steps[step.other - 1]
        if earlier.kind != "conv" or shapes[earlier.of][0] != channels:
            return None
        step = replace(earlier, of=step.of)
    match step.kind:
        case "conv":
            options = dict(step.conv)
            meta = torch.empty(1, channels, height, width, device="meta")
            try:
                result = nn.Conv2d(channels, **options, device="meta")(meta)
            except (RuntimeError, ValueError):
                return None
            return tuple(result.shape[1:]) if 0 not in result.shape else None
        case "add" | "add_" | "subtract":
            return shapes[step.of] if shapes[step.other] == shapes[step.of] else None
        case "concat":
            more, *size = shapes[step.other]
            return (channels + more, height, width) if size == [height, width] else None
        case "max_pool":
            return channels, (height - 1) // 2 + 1, (width - 1) // 2 + 1
        case "avg_pool":
            return channels, (height + 1) // 2, (width + 1) // 2
    return shapes[step.of]


def _shapes(network: Network) -> list[Shape]:
    shapes: list[Shape] = [network.image]
    for step in network.steps:
        shape = _result(step, shapes, network.steps)
        assert shape is not None, step
        shapes.append(shape)
    return shapes


@st.composite
def convolutions(draw: st.DrawFn, channels: int) -> tuple[tuple[str, Any], ...]:
    """Options of one convolution with ``channels`` inputs, sizes of output unchecked."""
    groups = draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0]))
    kernel = draw(st.sampled_from([1, 3, 3, 2, (1, 3), (5, 2)]))
    options: dict[str, Any] = {
        "out_channels": groups * draw(st.integers(1, max(1, 8 // groups))),
        "kernel_size": kernel,
        "groups": groups,
        "bias": draw(st.booleans()),
        "padding": draw(st.sampled_from([1, 0, 2, (0, 1), "same"])),
    }
    if options["padding"] != "same":
        options["stride"] = draw(st.sampled_from([1, 1, 2, (2, 1), 3]))
        options["dilation"] = draw(st.sampled_from([1, 1, 1, 2]))
    return tuple(options.items())


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """A network of two to eight steps with at least one convolution."""
    size = st.integers(3, 13)
    image = (draw(st.integers(1, 6)), draw(size), draw(size))
    shapes: list[Shape] = [image]
    steps: list[Step] = []
    for number in range(draw(st.integers(2, 8))):
        kind = "conv" if number == 0 else draw(st.sampled_from(_KINDS))
        step = draw(_steps(kind, shapes, len(steps)))
        shape = _result(step, shapes, tuple(steps))
        if shape is None:  # the wish cannot be had here: a 1x1 convolution always can
            conv = (("out_channels", shapes[step.of][0]), ("kernel_size", 1), ("bias", False))
            step = Step("conv", step.of, conv=conv, norm="affine", act=step.act)
            shape = _result(step, shapes, tuple(steps))
            assert shape is not None
        steps.append(step)
        shapes.append(shape)
    last = len(steps)
    outputs = (*draw(st.lists(st.integers(0, last), max_size=2)), last)
    head = draw(st.sampled_from([0, 5]))
    if not _reaches_convolution(steps, {last} if head else set(outputs)):
        head, outputs = 0, (*outputs, 1)  # step 1 is a convolution
    return Network(image, tuple(steps), outputs, head, draw(st.integers(0, 99)))


def _reaches_convolution(steps: list[Step], wanted: set[int]) -> bool:
    """Whether one of the wanted values depends on a convolution."""
    for index in range(len(steps), 0, -1):
        step = steps[index - 1]
        if index in wanted:
            if step.kind in ("conv", "again"):
                return True
            wanted |= {step.of, step.other} if step.kind in BINARY_KINDS else {step.of}
    return False


# Named more often, a kind is drawn more often.
_KINDS: tuple[Kind, ...] = (
    "conv", "conv", "conv", "conv", "again", "norm", "relu", "relu_", "relu6", "add", "add", "add_",
    "subtract", "concat", "scale", "max_pool", "avg_pool", "excite", "dropout", "identity",
)  # fmt: skip

_NORMS: tuple[Norm, ...] = ("affine", "affine", "affine", "plain", "none")


@st.composite
def _steps(draw: st.DrawFn, kind: Kind, shapes: list[Shape], steps: int) -> Step:
    # Mostly the latest value, now and then an earlier one: that makes second consumers.
    last = len(shapes) - 1
    of = draw(st.sampled_from([last, last, last, *range(last + 1)]))
    if kind == "again":
        return Step(kind, of, other=draw(st.integers(1, max(1, steps))))
    if kind in BINARY_KINDS:
        alike = [
            index
            for index, shape in enumerate(shapes)
            if shape == shapes[of] or (kind == "concat" and shape[1:] == shapes[of][1:])
        ]
        alpha = draw(st.sampled_from([1.0, 1.0, 1.0, -0.5])) if kind in ("add", "add_") else 1.0
        return Step(kind, of, other=draw(st.sampled_from(alike)), alpha=alpha)
    if kind == "conv":
        norm = draw(st.sampled_from(_NORMS))
        options = draw(convolutions(shapes[of][0]))
        return Step(kind, of, conv=options, norm=norm, act=draw(st.booleans()))
    if kind == "norm":
        return Step(kind, of, norm=draw(st.sampled_from(_NORMS[2:4])))
    if kind == "scale":
        return Step(kind, of, alpha=draw(st.sampled_from([0.5, -2.0])))
    return Step(kind, of)
