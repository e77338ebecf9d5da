"""What a lowered subgraph consists of: values, and the library's operations on them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from fastres.kernels.spec import ConvSpec, Pair
from fastres.runtime.native.functions import NONE, Function
from fastres.runtime.native.layout import Layout

Named = tuple[str, Tensor]
"""A constant, and the name to share packed forms by."""


@dataclass(frozen=True)
class Window:
    """What a pooling looks at, rows and columns.

    Attributes:
        divisor: of a mean, instead of how many pixels there are.
        counts_padding: a mean divides by the pixels of the padding as well.
        adaptive: the windows of a mean cut the image evenly; the sizes mean nothing.
    """

    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    divisor: int = 0
    counts_padding: bool = False
    adaptive: bool = False


@dataclass(frozen=True)
class Axis:
    """Where the rows or columns of a resized image come from.

    Attributes:
        first, second: for each, the two of the input that it lies between; -1: it is zero.
        share: the second's, or None where there is only the first.
    """

    first: tuple[int, ...]
    second: tuple[int, ...]
    share: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Lattice:
    """Which pixels of its output a convolution writes, rows and columns.

    Attributes:
        first: the first one.
        stride: from one to the next.
    """

    first: Pair
    stride: Pair


@dataclass(eq=False)
class Value:
    """An activation on its way through a subgraph.

    Attributes:
        whole: a concatenation that it is a part of and lies in, with its first channel there.
    """

    layout: Layout
    whole: tuple[Value, int] | None = None

    @property
    def root(self) -> tuple[Value, int]:
        """The outermost concatenation that it lies in, or itself, with its first channel there."""
        if self.whole is None:
            return self, 0
        outer, first = self.whole
        root, before = outer.root
        return root, before + first


@dataclass(frozen=True)
class Rescaling:
    """What quantised operations do to numbers; see :mod:`fastres.kernels.quantized`.

    Attributes:
        weight_scale: a convolution's, [K] and the name to share packed forms by.
        x_scale, x_zero: of the input.
        residual_scale, residual_zero: of the residual, or of an addition's second summand.
        unit: what counts in front of the last rounding; see
            :func:`fastres.kernels.quantized.output_unit`.
        scale, zero: of the output.
    """

    x_scale: float = 1.0
    x_zero: int = 0
    residual_scale: float = 1.0
    residual_zero: int = 0
    unit: float = 1.0
    scale: float = 1.0
    zero: int = 0
    weight_scale: tuple[str, Tensor] | None = None


@dataclass(eq=False)
class Op:
    """One operation of the library on values.

    Attributes:
        kind: one of :data:`fastres.runtime.native.abi.KINDS`.
        node: the fused graph's node that it computes.
        input, residual, output: activations; None where it is the caller's tensor.
        factor: what a map multiplies by.
        conv: a convolution's geometry.
        lattice: the output pixels that it writes, if not all; others write the rest.
        weight: its weight [K, C / groups, R, S] and the name to share packed forms by.
        before, after: functions in front of the residual and behind it.
        slopes: one for each channel, of the function ``prelu``.
        scale, shift: one for each channel, of a map; see ``FR_MAP`` in ``kernels/cpu/native.h``.
        residual_multiplier: of a map.
        window: a pooling's.
        groups, epsilon: of a normalisation by an image's own numbers, epsilon of one by a
            pixel's, too.
        copies: (channel of the input, channel of the output, how many), of a gathering.
        sources: where a resized image's rows and columns come from.
        outside: which of the subgraph's inputs or outputs it reads or writes itself.
        rescaling: of uint8.
    """

    kind: str
    node: fx.Node
    input: Value | None
    output: Value | None
    residual: Value | None = None
    factor: Value | None = None
    conv: ConvSpec | None = None
    lattice: Lattice | None = None
    weight: Named | None = None
    bias: Named | None = None
    before: Function = NONE
    after: Function = NONE
    slopes: Named | None = None
    scale: Named | None = None
    shift: Named | None = None
    residual_multiplier: float = 1.0
    window: Window | None = None
    groups: int = 0
    epsilon: float = 0.0
    copies: tuple[tuple[int, int, int], ...] = ()
    sources: tuple[Axis, Axis] | None = None
    outside: int = -1
    rescaling: Rescaling | None = None

    @property
    def reads(self) -> tuple[Value, ...]:
        """The values that it reads, each once."""
        values = (self.input, self.residual, self.factor)
        return tuple(dict.fromkeys(value for value in values if value is not None))


@dataclass
class LoweredSubgraph:
    """A subgraph: operations in order, and the nodes whose tensors go in and come out."""

    inputs: list[fx.Node] = field(default_factory=list)
    outputs: list[fx.Node] = field(default_factory=list)
    output_dtypes: list[torch.dtype] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """What it computes with."""
        values = [op.output or op.input for op in self.ops]
        return tuple(dict.fromkeys(value.layout.dtype for value in values if value is not None))
