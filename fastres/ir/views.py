"""The operators ``fastres::*`` with their arguments by name: ``Conv2d.of(node).stride``.

A view is made of one node and holds what stands in its arguments: nodes for tensors, plain values
for the rest, lists as tuples. Its fields are the schema's arguments in the schema's order. Passes,
engines, the roofline and the export read an operator's arguments by them; what each means is said
at the function of the same name in :mod:`fastres.kernels.reference`.

``spec(facts)`` is the operator's geometry where kernels and cost models have one. ``facts`` maps
nodes to what they are at one set of sizes (tensors, perhaps without values), as
:mod:`fastres.ir.propagate` finds it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from torch import Tensor, fx

from fastres.ir import ops
from fastres.ir.graph import constant
from fastres.kernels.spec import (
    BottleneckSpec,
    ConvSpec,
    Padding,
    Pair,
    PoolLinearSpec,
    StemSpec,
)

Facts = Mapping[fx.Node, Any]

_View = TypeVar("_View", bound="View")


@dataclass(frozen=True)
class View:
    """What all views have in common.

    Attributes:
        target: the operator.
        node: the node that has these arguments, or is to have them.
    """

    target: ClassVar[Any]

    node: fx.Node = field(kw_only=True, repr=False, compare=False)

    @classmethod
    def of(cls: type[_View], node: fx.Node) -> _View:
        """The arguments of a node of this operator."""
        assert node.target is cls.target, f"{node.target} is no {cls.target}"
        values = (tuple(arg) if isinstance(arg, list) else arg for arg in node.args)
        return cls(*values, node=node)

    @property
    def args(self) -> tuple[Any, ...]:
        """As they stand in a node."""
        return tuple(getattr(self, each.name) for each in fields(self) if each.name != "node")


class _Weighted:
    """What operators with a weight and perhaps a bias have in common."""

    weight: fx.Node
    bias: fx.Node | None

    @property
    def filters(self) -> Tensor | None:
        """The weight [K, C / groups, R, S] or [K, C], None where it is computed from the input."""
        return constant(self.weight)

    @property
    def has_constants(self) -> bool:
        """Whether neither weight nor bias is computed from the input."""
        return self.filters is not None and (self.bias is None or constant(self.bias) is not None)


class _Convolution(_Weighted):
    """What convolutions have in common, of numbers of any kind."""

    x: fx.Node
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    pre_activation: str
    activation: str

    @property
    def activations(self) -> tuple[str, str]:
        """In front of the residual, and behind it."""
        return self.pre_activation, self.activation

    def spec(self, facts: Facts) -> ConvSpec:
        """Its geometry."""
        return conv_spec(
            facts[self.x],
            facts[self.weight],
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )

    @property
    def is_plain_1x1(self) -> bool:
        """One pixel in, one pixel out, all channels with all; the stride may be any."""
        filters = self.filters
        return (
            filters is not None
            and tuple(filters.shape[2:]) == (1, 1)
            and tuple(self.padding) == (0, 0, 0, 0)
            and self.groups == 1
        )


class _Product(_Weighted):
    """What classifiers have in common, of numbers of any kind."""

    x: fx.Node

    def spec(self, facts: Facts) -> ConvSpec:
        """A convolution of one pixel for each row of ``x``."""
        k, c = map(int, facts[self.weight].shape)
        rows = math.prod(map(int, facts[self.x].shape[:-1]))
        return ConvSpec(n=rows, c=c, h=1, w=1, k=k, r=1, s=1)


@dataclass(frozen=True)
class Conv2d(_Convolution, View):
    """``activation(pre_activation(conv(x) + bias) + residual)``."""

    target: ClassVar[Any] = ops.conv2d

    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    residual: fx.Node | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    pre_activation: str
    activation: str


@dataclass(frozen=True)
class ScaleShift(View):
    """``activation(x * scale + shift)`` per channel."""

    target: ClassVar[Any] = ops.scale_shift

    x: fx.Node
    scale: fx.Node
    shift: fx.Node
    activation: str


@dataclass(frozen=True)
class LayerNorm2d(View):
    """Each pixel's channels, less their mean and by their standard deviation."""

    target: ClassVar[Any] = ops.layer_norm2d

    x: fx.Node
    weight: fx.Node | None
    bias: fx.Node | None
    eps: float


@dataclass(frozen=True)
class AddRelu(View):
    """``relu(x + y)``."""

    target: ClassVar[Any] = ops.add_relu

    x: fx.Node
    y: fx.Node


@dataclass(frozen=True)
class MaxPool2d(View):
    """The largest value under each window."""

    target: ClassVar[Any] = ops.max_pool2d

    x: fx.Node
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil_mode: bool


@dataclass(frozen=True)
class GlobalAvgPool(View):
    """The mean over height and width."""

    target: ClassVar[Any] = ops.global_avg_pool

    x: fx.Node
    keepdim: bool


@dataclass(frozen=True)
class Linear(_Product, View):
    """``activation(x @ weight.T + bias)``."""

    target: ClassVar[Any] = ops.linear

    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    activation: str


@dataclass(frozen=True)
class PoolLinear(_Weighted, View):
    """``linear(global_avg_pool(x))``."""

    target: ClassVar[Any] = ops.pool_linear

    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    activation: str

    def spec(self, facts: Facts) -> PoolLinearSpec:
        """Its geometry."""
        n, c, h, w = map(int, facts[self.x].shape)
        return PoolLinearSpec(n, c, h, w, int(facts[self.weight].shape[0]))


class _Tail:
    """What bottlenecks' tails have in common, of numbers of any kind."""

    quantized: ClassVar[bool]

    x: fx.Node
    weight: fx.Node
    expand_weight: fx.Node
    residual: fx.Node
    shortcut_weight: fx.Node | None
    shortcut_stride: tuple[int, ...]
    next_weight: fx.Node | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def spec(self, facts: Facts) -> BottleneckSpec:
        """Its geometry."""
        shortcut = None
        if self.shortcut_weight is not None:
            shortcut = conv_spec(
                facts[self.residual], facts[self.shortcut_weight], stride=self.shortcut_stride
            )
        conv = conv_spec(
            facts[self.x],
            facts[self.weight],
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )
        return BottleneckSpec(
            conv=conv,
            expand_k=int(facts[self.expand_weight].shape[0]),
            shortcut=shortcut,
            next_k=None if self.next_weight is None else int(facts[self.next_weight].shape[0]),
            quantized=self.quantized,
        )


@dataclass(frozen=True)
class Bottleneck(_Tail, View):
    """3x3 -> ReLU -> 1x1 -> + residual -> ReLU (-> 1x1 -> ReLU)."""

    target: ClassVar[Any] = ops.bottleneck
    quantized: ClassVar[bool] = False

    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    expand_weight: fx.Node
    expand_bias: fx.Node | None
    residual: fx.Node
    shortcut_weight: fx.Node | None
    shortcut_stride: tuple[int, ...]
    next_weight: fx.Node | None
    next_bias: fx.Node | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


@dataclass(frozen=True)
class Stem(_Weighted, View):
    """``max_pool2d(activation(conv(x) + bias))``; of bytes [N, H, W, C] where there is a scale."""

    target: ClassVar[Any] = ops.conv2d_max_pool2d

    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    activation: str
    pool_kernel: tuple[int, ...]
    pool_stride: tuple[int, ...]
    pool_padding: tuple[int, ...]
    scale: fx.Node | None
    shift: fx.Node | None

    @property
    def takes_bytes(self) -> bool:
        """Whether it takes an image as it is decoded, and normalises it."""
        return self.scale is not None

    def spec(self, facts: Facts) -> StemSpec:
        """Its geometry."""
        image = facts[self.x].permute(0, 3, 1, 2) if self.takes_bytes else facts[self.x]
        return StemSpec(
            conv=conv_spec(image, facts[self.weight], stride=self.stride, padding=self.padding),
            pool_kernel=_pair(self.pool_kernel),
            pool_stride=_pair(self.pool_stride),
            pool_padding=_pair(self.pool_padding),
            uint8=self.takes_bytes,
        )


@dataclass(frozen=True)
class ResizeCrop(View):
    """The middle of an image resized by its shorter side."""

    target: ClassVar[Any] = ops.resize_crop

    image: fx.Node
    resize: int
    crop: int
    interpolation: str
    antialias: bool


@dataclass(frozen=True)
class Quantize(View):
    """float32 into uint8."""

    target: ClassVar[Any] = ops.quantize

    x: fx.Node
    scale: float
    zero_point: int


@dataclass(frozen=True)
class Dequantize(View):
    """uint8 into float32."""

    target: ClassVar[Any] = ops.dequantize

    q: fx.Node
    scale: float
    zero_point: int


@dataclass(frozen=True)
class QuantizedConv2d(_Convolution, View):
    """``activation(pre_activation(conv(x) + bias) + residual)`` of uint8, rounded once."""

    target: ClassVar[Any] = ops.quantized_conv2d

    x: fx.Node
    weight: fx.Node
    weight_scale: fx.Node
    bias: fx.Node
    residual: fx.Node | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    pre_activation: str
    activation: str
    x_scale: float
    x_zero_point: int
    residual_scale: float
    residual_zero_point: int
    scale: float
    zero_point: int


@dataclass(frozen=True)
class QuantizedBottleneck(_Tail, View):
    """A bottleneck's tail of uint8, rounded behind every convolution."""

    target: ClassVar[Any] = ops.quantized_bottleneck
    quantized: ClassVar[bool] = True

    x: fx.Node
    weight: fx.Node
    weight_scale: fx.Node
    bias: fx.Node
    expand_weight: fx.Node
    expand_weight_scale: fx.Node
    expand_bias: fx.Node
    residual: fx.Node
    shortcut_weight: fx.Node | None
    shortcut_weight_scale: fx.Node | None
    shortcut_bias: fx.Node | None
    shortcut_stride: tuple[int, ...]
    next_weight: fx.Node | None
    next_weight_scale: fx.Node | None
    next_bias: fx.Node | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]


@dataclass(frozen=True)
class QuantizedStem(_Weighted, View):
    """The largest of ``activation(conv(x) + bias)`` under each window, of uint8."""

    target: ClassVar[Any] = ops.quantized_conv2d_max_pool2d

    x: fx.Node
    weight: fx.Node
    weight_scale: fx.Node
    bias: fx.Node
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    activation: str
    pool_kernel: tuple[int, ...]
    pool_stride: tuple[int, ...]
    pool_padding: tuple[int, ...]
    x_scale: float
    x_zero_point: int
    scale: float
    zero_point: int

    def spec(self, facts: Facts) -> StemSpec:
        """Its geometry."""
        return StemSpec(
            conv=conv_spec(
                facts[self.x], facts[self.weight], stride=self.stride, padding=self.padding
            ),
            pool_kernel=_pair(self.pool_kernel),
            pool_stride=_pair(self.pool_stride),
            pool_padding=_pair(self.pool_padding),
            quantized=True,
        )


@dataclass(frozen=True)
class QuantizedLinear(_Product, View):
    """``activation(x @ weight.T + bias)`` of uint8; float32 where there is no ``scale``."""

    target: ClassVar[Any] = ops.quantized_linear

    x: fx.Node
    weight: fx.Node
    weight_scale: fx.Node
    bias: fx.Node
    activation: str
    x_scale: float
    x_zero_point: int
    scale: float | None
    zero_point: int


@dataclass(frozen=True)
class QuantizedGlobalAvgPool(View):
    """The mean over height and width of uint8."""

    target: ClassVar[Any] = ops.quantized_global_avg_pool

    x: fx.Node
    keepdim: bool
    x_scale: float
    x_zero_point: int
    scale: float
    zero_point: int


@dataclass(frozen=True)
class QuantizedAdd(View):
    """``activation(x + y)`` of uint8."""

    target: ClassVar[Any] = ops.quantized_add

    x: fx.Node
    y: fx.Node
    activation: str
    x_scale: float
    x_zero_point: int
    y_scale: float
    y_zero_point: int
    scale: float
    zero_point: int


VIEWS: dict[Any, type[View]] = {
    view.target: view
    for view in (
        Conv2d,
        ScaleShift,
        LayerNorm2d,
        AddRelu,
        MaxPool2d,
        GlobalAvgPool,
        Linear,
        PoolLinear,
        Bottleneck,
        Stem,
        ResizeCrop,
        Quantize,
        Dequantize,
        QuantizedConv2d,
        QuantizedBottleneck,
        QuantizedStem,
        QuantizedLinear,
        QuantizedGlobalAvgPool,
        QuantizedAdd,
    )
}
"""Each operator's view."""


def conv_spec(
    x: Tensor,
    weight: Tensor,
    *,
    stride: Sequence[int],
    padding: Sequence[int] = (0, 0, 0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> ConvSpec:
    """The geometry of a convolution of ``x`` [N, C, H, W] with ``weight`` [K, C / groups, R, S]."""
    n, c, h, w = map(int, x.shape)
    k, _, r, s = map(int, weight.shape)
    top, left, bottom, right = padding
    sides: Padding = (top, left, bottom, right)
    return ConvSpec(n, c, h, w, k, r, s, _pair(stride), sides, _pair(dilation), groups)


def _pair(values: Sequence[int]) -> Pair:
    first, second = values
    return first, second
