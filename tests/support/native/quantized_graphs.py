"""Graphs of quantised operators, made by hand or by hypothesis, and native runs of them.

Each value is computed while its graph is made, by the operators' definition, so that scales fit:
results use all of uint8, and a few are beyond it at both ends.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastres.ir import ops
from fastres.ir.shapes import shapes
from fastres.kernels import reference
from fastres.runtime.native.operations import LoweredSubgraph
from fastres.runtime.native.packed_weights import PackedWeights
from fastres.runtime.native.partition import partition, rewrite
from fastres.runtime.native.subgraph import NativeSubgraph
from tests.support.native.emulator import loaded
from tests.support.native.examined import places, ranges

aten = torch.ops.aten

ISAS = ("avx2", "avx_vnni", "avx512_vnni")
"""The instruction sets with kernels for uint8, beside AMX."""

ZERO_POINTS = (0, 255, 1, 254, 128, 113)

ROOM = 40
"""Integers between a zero point and the end that numbers are to reach."""


@dataclass(eq=False)
class Value:
    """A node with what it holds: uint8 of a scale and zero point, or float32."""

    node: fx.Node
    tensor: Tensor
    scale: float = 1.0
    zero: int = 0


class Building:
    """A graph in the making.

    Args:
        seed: of weights, scales and images.
        batch: images.
        zeros: the zero points that values get, in turns.
    """

    def __init__(self, seed: int = 0, batch: int = 2, zeros: Sequence[int] = ZERO_POINTS) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.batch, self._zeros, self._turn = batch, zeros, 0
        self.root, self.graph = nn.Module(), fx.Graph()
        self.inputs: list[Tensor] = []

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random)

    def _zero(self) -> int:
        self._turn += 1
        return self._zeros[(self._turn - 1) % len(self._zeros)]

    def _fit(self, real: Tensor) -> tuple[float, int]:
        """A zero point, and a scale with which most of ``real`` fits between 0 and 255.

        The next zero point that has room where the numbers are; of one at an end, those beyond that
        end are cut off.
        """
        above, below = max(float(real.max()), 0.0), max(float(-real.min()), 0.0)
        zero = 0
        for _ in self._zeros:
            zero = self._zero()
            sides = ((above, 255 - zero), (below, zero))
            fitting = [size / room for size, room in sides if room >= ROOM and size > 1e-6]
            if fitting:
                return 0.8 * max(fitting), zero
        return max(above, below, 1.0) / 255, zero

    def _constant(self, value: Tensor) -> fx.Node:
        name = f"constant{sum(1 for _ in self.root.buffers())}"
        self.root.register_buffer(name, value)
        return self.graph.get_attr(name)

    def held(self, arg: Any) -> Any:
        """What an argument of a call stands for."""
        if isinstance(arg, Value):
            return arg.tensor
        return getattr(self.root, str(arg.target)) if isinstance(arg, fx.Node) else arg

    def call(self, target: Any, *args: Any) -> tuple[fx.Node, Tensor]:
        """A node, and what it gives."""
        nodes = tuple(arg.node if isinstance(arg, Value) else arg for arg in args)
        return self.graph.call_function(target, nodes), target(*map(self.held, args))

    def _scaled(self, real: Tensor, target: Any, *args: Any) -> Value:
        """A call whose last arguments are a scale and zero point that fit ``real``."""
        scale, zero = self._fit(real)
        return Value(*self.call(target, *args, scale, zero), scale, zero)

    def float_image(self, channels: int, height: int, width: int) -> Value:
        """A float32 input."""
        x = self._normal(self.batch, channels, height, width)
        node = self.graph.placeholder(f"x{len(self.inputs)}")
        self.inputs.append(x)
        return Value(node, x)

    def quantize(self, x: Value) -> Value:
        """Of a float32 value."""
        return self._scaled(x.tensor, ops.quantize, x)

    def image(self, channels: int, height: int, width: int) -> Value:
        """A quantised input."""
        return self.quantize(self.float_image(channels, height, width))

    def dequantize(self, x: Value) -> Value:
        """As float32."""
        return Value(*self.call(ops.dequantize, x, x.scale, x.zero))

    def plain(self, target: Any, *args: Any) -> Value:
        """An operator of torch's on float32."""
        return Value(*self.call(target, *args))

    def weights(self, x: Value, *shape: int) -> list[fx.Node]:
        """int8, the scales of its filters, and an int32 bias: results are of the size of 3."""
        weight = (self._normal(*shape) * 50).round().clamp(-127, 127).to(torch.int8)
        typical = max(float(real(x).square().mean()) ** 0.5, x.scale)
        size = 50 * weight[0].numel() ** 0.5 * typical
        scale = 3 / size * (0.3 + torch.rand(shape[0], generator=self.random))
        bias = self._normal(shape[0]) * (0.4 * size / x.scale)
        return [self._constant(each) for each in (weight, scale, bias.round().to(torch.int32))]

    def _real_weights(self, x: Value, weights: list[fx.Node]) -> tuple[Tensor, Tensor]:
        weight, scale, bias = map(self.held, weights)
        sizes = (-1, *(1,) * (weight.dim() - 1))
        return weight.double() * scale.view(sizes), bias.double() * scale * x.scale

    def conv(
        self,
        x: Value,
        k: int,
        kernel: tuple[int, int] = (3, 3),
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int, int, int] = (1, 1, 1, 1),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        residual: Value | None = None,
        before: str = "none",
        after: str = "none",
        weights: list[fx.Node] | None = None,
    ) -> Value:
        """A convolution with weights of its own, unless some are given."""
        weights = weights or self.weights(x, k, x.tensor.shape[1] // groups, *kernel)
        shape: Any = (list(stride), list(padding), list(dilation), groups, before, after)
        addend = None if residual is None else real(residual)
        added = (1.0, 0) if residual is None else (residual.scale, residual.zero)
        return self._scaled(
            reference.conv2d(real(x), *self._real_weights(x, weights), addend, *shape),
            *(ops.quantized_conv2d, x, *weights, residual, *shape, x.scale, x.zero, *added),
        )

    def linear(self, x: Value, k: int, after: str = "none", wide: bool = False) -> Value:
        """A matrix product; to float32 where it is ``wide``."""
        weights = self.weights(x, k, x.tensor.shape[1])
        args = (x, *weights, after, x.scale, x.zero)
        if wide:
            return Value(*self.call(ops.quantized_linear, *args, None, 0))
        wanted = reference.linear(real(x), *self._real_weights(x, weights), after)
        return self._scaled(wanted, ops.quantized_linear, *args)

    def mean(self, x: Value, keepdim: bool = False) -> Value:
        """Over height and width."""
        means = real(x).mean(dim=(2, 3))
        return self._scaled(means, ops.quantized_global_avg_pool, x, keepdim, x.scale, x.zero)

    def add(self, x: Value, y: Value, after: str = "relu") -> Value:
        """A sum."""
        wanted = reference.activate(real(x) + real(y), after)
        scales = (x.scale, x.zero, y.scale, y.zero)
        return self._scaled(wanted, ops.quantized_add, x, y, after, *scales)

    def max_pool(
        self, x: Value, kernel: int = 3, stride: int = 2, padding: int = 1, ceil: bool = False
    ) -> Value:
        """The largest of each window, in the scale of what is read."""
        window = ([kernel] * 2, [stride] * 2, [padding] * 2, [1, 1], ceil)
        return Value(*self.call(ops.max_pool2d, x, *window), x.scale, x.zero)

    def flatten(self, x: Value) -> Value:
        """[N, C, H, W] as [N, C * H * W]."""
        return Value(*self.call(aten.flatten.using_ints, x, 1), x.scale, x.zero)

    def finish(self, *outputs: Value) -> fx.GraphModule:
        """The module."""
        self.graph.output(tuple(value.node for value in outputs))
        self.graph.lint()
        return fx.GraphModule(self.root, self.graph)


def real(x: Value) -> Tensor:
    """What uint8 stands for, in float64."""
    return (x.tensor.double() - x.zero) * x.scale


class Native:
    """A module cut into native subgraphs, and what is between them by torch.

    Attributes:
        subgraphs: in order.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        inputs: Sequence[Tensor],
        isa: str,
        threads: int = 1,
        guarded: bool = False,
    ) -> None:
        self.subgraphs: list[NativeSubgraph] = []
        packed = PackedWeights()
        facts = shapes(module, inputs)

        def make(lowered: LoweredSubgraph, sources: list[torch.dtype]) -> NativeSubgraph:
            one = NativeSubgraph(lowered, sources, facts, loaded(), packed, isa, threads, guarded)
            self.subgraphs.append(one)
            return one

        cut = partition(module.graph, facts)
        self.module = rewrite(module, cut.subgraphs, facts, make)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs."""
        results: tuple[Tensor, ...] = self.module(*inputs)
        return results

    def poison(self, byte: int) -> None:
        """Fill the memory of each plan, borders excepted."""
        for one in self.subgraphs:
            for compiled in one.plans:
                if compiled is not None:
                    pairs = ranges(~places(compiled.plan, one._threads).zeros)
                    poison(compiled.handle, pairs, byte)


def poison(handle: Any, pairs: Sequence[tuple[int, int]], byte: int) -> None:
    """Fill (offset, bytes) pairs of a plan's memory."""
    numbers = (ctypes.c_int64 * (2 * len(pairs)))(*(n for pair in pairs for n in pair))
    assert loaded().plan_poison(handle, numbers, len(pairs), byte) == 0
