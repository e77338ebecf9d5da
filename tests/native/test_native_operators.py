"""What is neither a convolution nor a pooling for maxima, wholly in the native engine.

Each case is a function between two convolutions. Its answers are held against float64 at several
sizes, nothing may be left to torch, and what memory held before must not matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastres.ir.shapes import shapes
from fastres.runtime.native.lower import lower
from fastres.runtime.native.packed_weights import PackedWeights
from fastres.runtime.native.partition import partition
from fastres.runtime.native.subgraph import NativeSubgraph
from tests.support.native.by_hand import SETS, needs
from tests.support.native.emulator import loaded
from tests.support.native.examined import Examined
from tests.support.optimizing import optimize
from tests.support.small import Net, assert_right, conv, images, measured


@dataclass(frozen=True)
class Case:
    """``function(m, y)`` of the first convolution's result, with modules ``m.*`` of its own.

    Attributes:
        channels: that the function gets.
        out: that it gives; -1: as many.
    """

    function: Callable[[Any, Tensor], Tensor]
    channels: int = 40
    out: int = -1
    parts: dict[str, Callable[[], nn.Module]] = field(default_factory=dict)


def function(f: Callable[[Tensor], Tensor]) -> Case:
    return Case(lambda m, y: f(y))


def module(make: Callable[[], nn.Module]) -> Case:
    return Case(lambda m, y: m.it(y), parts={"it": make})


def transposed(channels: int, out: int, *args: Any, **options: Any) -> Case:
    return Case(
        lambda m, y: m.it(y),
        channels,
        out,
        {"it": lambda: nn.ConvTranspose2d(channels, out, *args, **options)},
    )


def gate(m: Any, y: Tensor) -> Tensor:
    return torch.sigmoid(m.up(F.silu(m.down(y.mean((2, 3), keepdim=True)))))


GATE: dict[str, Callable[[], nn.Module]] = {
    "down": lambda: conv(40, 9, 1),
    "up": lambda: conv(9, 40, 1),
}


def eca(m: Any, y: Tensor) -> Tensor:
    mean = m.mix(y.mean((2, 3)).view(y.shape[0], 1, -1))
    return y * torch.sigmoid(mean).view(y.shape[0], -1, 1, 1).expand_as(y)


def eca_by_axes(m: Any, y: Tensor) -> Tensor:
    mean = F.adaptive_avg_pool2d(y, 1).squeeze(-1).transpose(-1, -2)
    return y * torch.sigmoid(m.mix(mean).transpose(-1, -2).unsqueeze(-1)).expand_as(y)


def shuffle(y: Tensor, groups: int) -> Tensor:
    n, c, h, w = y.shape
    return y.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def dense(m: Any, y: Tensor) -> Tensor:
    one = m.one(y)
    two = m.two(torch.cat([y, one], 1).relu())
    return torch.cat([y, one, two, m.three(torch.cat([y, one, two], 1).relu())], 1)


def cascade(m: Any, y: Tensor) -> Tensor:
    a, b, c = y.split(13, 1)
    b = m.one(b)
    return torch.cat([a, b, m.one(b + c)], 1)


def pixels(function: Callable[[Tensor], Any], y: Tensor) -> Any:
    """A function of a pixel's channels, as the last axis."""
    return function(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def convnext(m: Any, y: Tensor) -> Any:
    def block(z: Tensor) -> Any:
        return m.narrow(F.gelu(m.wide(m.it(z)))) * m.scale.weight

    return y + pixels(block, y)


CASES: dict[str, Case] = {
    **{
        layer.__name__: module(layer)
        for layer in (nn.SiLU, nn.Sigmoid, nn.Hardsigmoid, nn.Hardswish, nn.GELU, nn.Tanh, nn.Mish,
                      nn.SELU, nn.LeakyReLU, nn.ELU, nn.PReLU)
    },
    "GELU by tanh": module(lambda: nn.GELU("tanh")),
    "PReLU per channel": module(lambda: nn.PReLU(40)),
    "hardtanh": function(lambda y: F.hardtanh(y, -0.3, 0.7)),
    "clamp": function(lambda y: y.clamp(min=-0.25).clamp(max=0.5)),
    "numbers": function(lambda y: 3 - (y * 2 + 1) / 4),
    "subtraction": function(lambda y: y - 0.5 * y.relu()),
    "constants": Case(
        lambda m, y: y * m.it.weight.view(-1, 1, 1) + m.it.bias.view(1, -1, 1, 1),
        parts={"it": lambda: nn.BatchNorm2d(40)},
    ),
    "gate": Case(lambda m, y: y * gate(m, y), parts=GATE),
    "gate with the block's end": Case(
        lambda m, y: F.relu(m.it(y) * gate(m, y) + y), parts={**GATE, "it": lambda: conv(40, 40)}
    ),
    "gate of pixels": Case(
        lambda m, y: y * torch.sigmoid(m.it(y)), parts={"it": lambda: conv(40, 1)}
    ),
    "gates of both": Case(
        lambda m, y: y + gate(m, y) * torch.sigmoid(m.it(y)),
        parts={**GATE, "it": lambda: conv(40, 1)},
    ),
    "ECA": Case(eca, parts={"mix": lambda: nn.Conv1d(1, 1, 5, padding=2, bias=False)}),
    "ECA by axes": Case(eca_by_axes, parts={"mix": lambda: nn.Conv1d(1, 1, 3, padding=1)}),
    "BatchNorm behind a pooling": Case(
        lambda m, y: F.relu(m.it(F.max_pool2d(y, 2))), parts={"it": lambda: nn.BatchNorm2d(40)}
    ),
    "GroupNorm of 5": module(lambda: nn.GroupNorm(5, 40)),
    "GroupNorm of whole lines": Case(
        lambda m, y: F.relu(m.it(y + 3)), 96, parts={"it": lambda: nn.GroupNorm(3, 96)}
    ),
    "GroupNorm of one": Case(
        lambda m, y: m.it(y), 33, parts={"it": lambda: nn.GroupNorm(1, 33, affine=False)}
    ),
    "InstanceNorm": module(lambda: nn.InstanceNorm2d(40, affine=True)),
    "InstanceNorm, plain": module(lambda: nn.InstanceNorm2d(40)),
    "LayerNorm2d": Case(lambda m, y: pixels(m.it, y), parts={"it": lambda: nn.LayerNorm(40)}),
    "LayerNorm2d of whole lines": Case(
        lambda m, y: F.gelu(pixels(m.it, y)), 96, parts={"it": lambda: nn.LayerNorm(96, eps=1e-6)}
    ),
    "LayerNorm2d, plain": Case(
        lambda m, y: pixels(m.it, y).relu() + y,
        parts={"it": lambda: nn.LayerNorm(40, elementwise_affine=False)},
    ),
    "LayerNorm2d of large numbers": Case(
        lambda m, y: pixels(m.it, y + 3000), parts={"it": lambda: nn.LayerNorm(40)}
    ),
    "ConvNeXt": Case(convnext, parts={
        "it": lambda: nn.LayerNorm(40), "wide": lambda: nn.Linear(40, 90),
        "narrow": lambda: nn.Linear(90, 40), "scale": lambda: nn.BatchNorm2d(40),
    }),
    "average": function(lambda y: F.avg_pool2d(y, 3, 2, 1)),
    "average, rounded up": function(lambda y: F.avg_pool2d(y, 3, 2, 1, ceil_mode=True)),
    "average without padding": function(
        lambda y: F.avg_pool2d(y, (2, 3), 2, 1, count_include_pad=False)
    ),
    "average by a number": function(lambda y: F.avg_pool2d(y, 3, 1, 1, divisor_override=5)),
    "adaptive average": function(lambda y: F.adaptive_avg_pool2d(y, (3, 5))),
    "maximum, rounded up": function(lambda y: F.max_pool2d(y, 3, 2, 1, ceil_mode=True)),
    "nearest": function(lambda y: F.interpolate(y, scale_factor=2)),
    "nearest to a size": function(lambda y: F.interpolate(y, size=(13, 21))),
    "bilinear": function(lambda y: F.interpolate(y, scale_factor=2, mode="bilinear")),
    "bilinear by 1.7": function(lambda y: F.interpolate(y, scale_factor=1.7, mode="bilinear")),
    "bilinear, aligned": function(
        lambda y: F.interpolate(y, size=(9, 31), mode="bilinear", align_corners=True)
    ),
    "zeros around": function(lambda y: F.max_pool2d(F.pad(y, (1, 0, 2, 1)), 3, 1)),
    "cropped": function(lambda y: F.pad(y, (-1, 2, 0, -2)).relu()),
    "reflected": module(lambda: nn.ReflectionPad2d((1, 2, 3, 1))),
    "repeated": module(lambda: nn.ReplicationPad2d(2)),
    "circular": module(lambda: nn.CircularPad2d(2)),
    "transposed": transposed(40, 24, 2, 2),
    "transposed, with output padding": transposed(40, 33, 3, 2, 1, 1),
    "transposed by 1": transposed(40, 40, 3, 1, 1),
    "transposed, large filters": transposed(40, 8, (6, 5), (2, 3), (1, 2), (0, 2)),
    "transposed, dilated": transposed(40, 40, 3, 2, 3, 1, groups=4, dilation=(2, 3)),
    "transposed, each channel": transposed(40, 40, 4, 2, 1, groups=40, bias=False),
    "transposed with holes": transposed(40, 16, (1, 2), 3),
    "transposed, then BatchNorm": Case(
        lambda m, y: F.relu(m.norm(m.it(y))),
        parts={"it": lambda: nn.ConvTranspose2d(40, 40, 4, 2, 1, bias=False),
               "norm": lambda: nn.BatchNorm2d(40)},
    ),
    "transposed, of few channels": Case(
        lambda m, y: m.two(m.one(y)), out=40,
        parts={"one": lambda: conv(40, 3), "two": lambda: nn.ConvTranspose2d(3, 40, 4, 2, 1)},
    ),
    "parts": Case(
        lambda m, y: torch.cat([m.one(y), F.relu(m.two(y)), y], 1), 32, 96,
        {"one": lambda: conv(32, 16, 1), "two": lambda: conv(32, 48)},
    ),
    "parts of odd sizes": Case(
        lambda m, y: torch.cat([m.one(y), y, F.relu(m.two(y))], 1), 40, 62,
        {"one": lambda: conv(40, 17, 1), "two": lambda: conv(40, 5)},
    ),
    "one part twice": Case(lambda m, y: torch.cat([y, y.relu(), y], 1), 32, 96),
    "dense block": Case(
        dense, 32, 128,
        {"one": lambda: conv(32, 32), "two": lambda: conv(64, 32), "three": lambda: conv(96, 32)},
    ),
    "dense block of odd sizes": Case(
        dense, 20, 53,
        {"one": lambda: conv(20, 11), "two": lambda: conv(31, 11), "three": lambda: conv(42, 11)},
    ),
    "halves": Case(lambda m, y: torch.cat([y.chunk(2, 1)[1].relu(), y.chunk(2, 1)[0]], 1), 64),
    "odd halves": Case(lambda m, y: torch.cat([y.chunk(2, 1)[1].relu(), y.chunk(2, 1)[0]], 1), 38),
    "a slice beside the whole": Case(
        lambda m, y: F.relu(m.one(y[:, :32]) + y), 64, parts={"one": lambda: conv(32, 64, 1)}
    ),
    "a slice as the whole's gate": Case(
        lambda m, y: torch.cat([y[:, 32:] * y[:, :32], y[:, :32]], 1), 64
    ),
    "cascade": Case(cascade, 39, 39, {"one": lambda: conv(13, 13)}),
    "shuffle": Case(lambda m, y: shuffle(y, 2).relu()),
    "shuffle of 4": Case(lambda m, y: shuffle(F.relu(y), 4), 36),
    "shuffle by its name": Case(lambda m, y: F.channel_shuffle(y, 5)),
}  # fmt: skip


def network(case: Case) -> nn.Module:
    torch.manual_seed(0)
    out = case.channels if case.out < 0 else case.out
    return measured(
        Net(
            lambda m, x: m.last(case.function(m, m.first(x))),
            first=conv(3, case.channels),
            last=conv(out, 7, 1),
            **{name: make() for name, make in case.parts.items()},
        ),
        images(4, 3, 12, 16),
    )


def what_runs(fast: Any, x: Tensor) -> list[str]:
    """The calls of an answer but the one that lays it out as the input is."""
    names = [step.function.__name__ for step in fast._runner.executable([x])._steps]
    return [name for name in names if name != "like_input"]


@pytest.mark.sampled(8)
@pytest.mark.parametrize(("precision", "isa"), SETS, ids=[isa for _, isa in SETS])
@pytest.mark.parametrize("name", CASES)
def test_operators(name: str, precision: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    needs(isa)
    monkeypatch.setenv("FASTRES_NATIVE_ISA", isa)
    model = network(CASES[name])
    x = images(2, 3, 12, 16)
    fast = optimize(model, x, engine="native", precision=precision)
    for given in (x, images(1, 3, 9, 11), images(5, 3, 12, 16)):
        assert_right(model, fast, given, precision=precision)
    assert fast.report.left == []
    assert what_runs(fast, x) == ["native"]
    graph = fast.graph_module.graph
    facts = shapes(fast.graph_module, [x])
    (nodes,) = partition(graph, facts).subgraphs
    found = lower(nodes, [(nodes[-1], torch.float32)], facts)
    sources = [facts[node].dtype for node in found.inputs]
    native = NativeSubgraph(found, sources, facts, loaded(), PackedWeights(), isa, 1)
    together = NativeSubgraph(found, sources, facts, loaded(), PackedWeights(), isa, 3)
    given = x.to(sources[0])
    assert torch.equal(native(given), together(given))
    examined = Examined(native, 1)
    examined.check([given])
    examined.close()


class Flat(nn.Module):
    """A classifier of pixels: [N, C, H, W] one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv(3, 20)
        self.hidden = nn.Linear(20 * 5 * 6, 33)
        self.last = nn.Linear(33, 7)

    def forward(self, x: Tensor) -> Any:
        return self.last(F.relu(self.hidden(torch.flatten(self.first(x), 1))))


@pytest.mark.parametrize(("precision", "isa"), SETS, ids=[isa for _, isa in SETS])
def test_a_classifier_of_pixels(precision: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    needs(isa)
    monkeypatch.setenv("FASTRES_NATIVE_ISA", isa)
    torch.manual_seed(0)
    model, x = Flat().eval(), images(2, 3, 5, 6)
    fast = optimize(model, x, engine="native", precision=precision)
    for given in (x, images(3, 3, 5, 6)):
        assert_right(model, fast, given, precision=precision)
    assert what_runs(fast, x) == ["native"]


def test_what_reads_it_elsewhere_has_its_own_copy() -> None:
    """A vector of pixels, a gate's copies and a shuffle's halfway house that leave the engine."""

    def function(m: Any, x: Tensor) -> Any:
        y = m.first(x)
        gates = y.mean((2, 3), keepdim=True).expand_as(y)
        turned = y.view(y.shape[0], 2, 10, *y.shape[2:]).transpose(1, 2)
        return m.last(y * gates), gates, torch.flatten(y, 1), turned, turned.reshape(y.shape).relu()

    torch.manual_seed(0)
    model = Net(function, first=conv(3, 20), last=conv(20, 7)).eval()
    fast = optimize(model, images(2, 3), engine="native")
    for given in (images(2, 3), images(3, 3, height=11, width=13)):
        assert_right(model, fast, given)
