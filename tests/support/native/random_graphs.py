"""Random convolutions and random graphs of what the native engine runs, for hypothesis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import torch
from torch import Tensor, fx, nn

from fastres.ir import ops
from fastres.kernels.activations import ACTIVATIONS
from fastres.kernels.spec import ConvSpec
from tests.support.native.by_hand import rounded

CHANNELS = (1, 3, 4, 8, 9, 16, 17, 31, 32, 33, 40, 64, 70)
Shape = tuple[int, int, int, int]


@st.composite
def specs(draw: st.DrawFn) -> ConvSpec:
    """Convolutions of a few pixels with at least one window."""

    def few(least: int, most: int) -> int:
        return draw(st.integers(least, most))

    r, s = few(1, 5), few(1, 5)
    dilation = few(1, 3), few(1, 3)
    padding = few(0, 3), few(0, 3), few(0, 3), few(0, 3)
    least_h = max(1, dilation[0] * (r - 1) + 1 - padding[0] - padding[2])
    least_w = max(1, dilation[1] * (s - 1) + 1 - padding[1] - padding[3])
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 8, 9, 40, None]))
    if groups == 1:
        c, k = draw(st.sampled_from(CHANNELS)), draw(st.sampled_from(CHANNELS))
    elif groups is None:
        c = k = groups = draw(st.sampled_from(CHANNELS))
    else:
        most = 20 if groups < 10 else 5
        c, k = groups * few(1, most), groups * few(1, most)
    return ConvSpec(
        few(1, 4), c, few(least_h, least_h + 5), few(least_w, least_w + 5), k, r, s,
        (few(1, 5), few(1, 5)), padding, dilation, groups,
    )  # fmt: skip


@st.composite
def kept_size_specs(draw: st.DrawFn) -> ConvSpec:
    """3x3 convolutions that Winograd's algorithm fits, of any number of pixels."""
    n, h, w = (draw(st.integers(1, most)) for most in (4, 11, 11))
    c, k = draw(st.integers(32, 80)), draw(st.integers(32, 80))
    return ConvSpec(n, c, h, w, k, 3, 3, padding=(1, 1, 1, 1))


@dataclass
class RandomGraph:
    """A graph of one subgraph, the module that holds its weights, and its inputs' shapes."""

    root: nn.Module
    graph: fx.Graph
    inputs: list[Shape]

    def module(self) -> fx.GraphModule:
        """The graph as a module that torch runs."""
        return fx.GraphModule(self.root, self.graph)

    def tensors(self) -> list[Tensor]:
        """Random inputs, of numbers that bfloat16 can hold."""
        return [rounded(torch.randn(shape)) for shape in self.inputs]


class _Building:
    def __init__(self, draw: st.DrawFn, batch: int) -> None:
        self.draw = draw
        self.root, self.graph = nn.Module(), fx.Graph()
        self.inputs: list[Shape] = []
        self.images: list[tuple[fx.Node, Shape]] = []
        self.vectors: list[tuple[fx.Node, int]] = []
        self.batch = batch

    def one_of(self, values: Any) -> Any:
        strategy: st.SearchStrategy[Any] = st.sampled_from(list(values))
        return self.draw(strategy)

    def input(self, channels: int, height: int, width: int) -> None:
        shape = (self.batch, channels, height, width)
        self.images.append((self.graph.placeholder(f"x{len(self.inputs)}"), shape))
        self.inputs.append(shape)

    def weight(self, *shape: int) -> fx.Node:
        name = f"weight{sum(1 for _ in self.root.buffers())}"
        fan = max(1, torch.Size(shape[1:]).numel())
        self.root.register_buffer(name, rounded(torch.randn(shape) * fan**-0.5))
        return self.graph.get_attr(name)

    def bias(self, k: int) -> fx.Node | None:
        return self.weight(k) if self.draw(st.booleans()) else None

    def convolution(self) -> None:
        x, (n, c, h, w) = self.one_of(self.images)
        r, s = self.one_of([(1, 1), (3, 3), (3, 3), (1, 3), (2, 2), (5, 1)])
        stride, padding = (
            self.one_of([(1, 1), (1, 1), (2, 2), (1, 2)]),
            [r // 2, s // 2, r // 2, s // 2],
        )
        padding = self.one_of([padding, [1, 0, 0, 2], padding])
        groups = self.one_of(g for g in (1, 1, 2, 4, 8, c) if c % g == 0)
        k = groups * self.one_of([1, 2, 4, 17] if groups > 1 else [8, 24, 32, 48])
        k = self.one_of([k, c if c % groups == 0 else k])
        p = (h + padding[0] + padding[2] - r) // stride[0] + 1
        q = (w + padding[1] + padding[3] - s) // stride[1] + 1
        if (
            min(p, q) < 1
            or min(h + padding[0] + padding[2] - r, w + padding[1] + padding[3] - s) < 0
        ):
            return
        out = (n, k, p, q)
        residual = self.one_of([None, *(node for node, shape in self.images if shape == out)])
        weight = self.weight(k, c // groups, r, s)
        before = self.one_of(list(ACTIVATIONS)) if residual is not None else "none"
        call = (x, weight, self.bias(k), residual, list(stride), padding, [1, 1], groups)
        node = self.graph.call_function(ops.conv2d, (*call, before, self.one_of(list(ACTIVATIONS))))
        self.images.append((node, out))

    def pooling(self) -> None:
        x, (n, c, h, w) = self.one_of(self.images)
        kernel, stride, padding = self.one_of([(2, 2, 0), (3, 2, 1), (2, 1, 1), (3, 1, 1)])
        p, q = ((size + 2 * padding - kernel) // stride + 1 for size in (h, w))
        if min(p, q) < 1:
            return
        call = (x, [kernel] * 2, [stride] * 2, [padding] * 2, [1, 1], False)
        self.images.append((self.graph.call_function(ops.max_pool2d, call), (n, c, p, q)))

    def addition(self) -> None:
        x, shape = self.one_of(self.images)
        y = self.one_of(node for node, other in self.images if other == shape)
        if x is not y:
            self.images.append((self.graph.call_function(ops.add_relu, (x, y)), shape))

    def mean(self) -> None:
        x, (n, c, _, _) = self.one_of(self.images)
        keep = self.draw(st.booleans())
        node = self.graph.call_function(ops.global_avg_pool, (x, keep))
        if keep:
            self.images.append((node, (n, c, 1, 1)))
            node = self.graph.call_function(torch.ops.aten.flatten.using_ints, (node, 1))
        self.vectors.append((node, c))

    def linear(self) -> None:
        if not self.vectors:
            return self.mean()
        x, c = self.one_of(self.vectors)
        k = self.one_of([1, 10, 33])
        call = (x, self.weight(k, c), self.bias(k), self.one_of(list(ACTIVATIONS)))
        self.vectors.append((self.graph.call_function(ops.linear, call), k))

    def finish(self) -> RandomGraph:
        made = [n for n in self.graph.nodes if n.op == "call_function"]
        unread = [node for node in made if not node.users]
        others = [node for node in made if node.users]
        one_more: bool = self.draw(st.booleans())
        if others and one_more:
            unread.append(self.one_of(others))
        self.graph.output(tuple(unread))
        self.graph.lint()
        return RandomGraph(self.root, self.graph, self.inputs)


@st.composite
def graphs(draw: st.DrawFn) -> RandomGraph:
    """A convolution, then up to eight operations on whatever there is; one or two inputs."""
    torch.manual_seed(draw(st.integers(0, 99)))
    building = _Building(draw, draw(st.integers(1, 4)))
    building.input(
        draw(st.sampled_from(CHANNELS)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    )
    steps: list[Callable[[], Any]] = [
        *(building.convolution,) * 4,
        *(building.pooling, building.addition, building.addition, building.mean, building.linear),
    ]
    building.convolution()
    if draw(st.booleans()):
        _, (_, c, h, w) = building.images[-1]
        building.input(c, h, w)
    for index in draw(st.lists(st.integers(0, len(steps) - 1), min_size=1, max_size=8)):
        steps[index]()
    if not any(n.op == "call_function" for n in building.graph.nodes):
        building.mean()
    return building.finish()
