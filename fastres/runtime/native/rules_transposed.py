"""Transposed convolutions: for each residue of the output's pixels by the stride, a convolution.

Of the taps of a transposed convolution with stride s only those of one residue by s reach an output
pixel: pixel ``o`` is a sum over taps k with ``o + padding - k * dilation`` a multiple of s. Pixels
of one residue therefore have the same taps, and neighbours among them read neighbours: a
convolution of stride 1 with a part of the filter, turned around, whose output pixels are s apart
(Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016, chapter 4). No
zeros are put between the input's pixels, and none are multiplied.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fastres.ir.graph import argument_of, constant, pair_of
from fastres.kernels.spec import ConvSpec, Pair
from fastres.runtime.native.operations import Lattice
from fastres.runtime.native.subgraph_builder import Facts, Rule, SubgraphBuilder, is_batch, named

aten = torch.ops.aten


@dataclass(frozen=True)
class _Transposed:
    """The arguments of ``aten.conv_transpose2d.input``."""

    x: fx.Node
    weight: Any
    bias: Any
    stride: Pair
    padding: Pair
    groups: int
    dilation: Pair


def _arguments(node: fx.Node) -> _Transposed | None:
    """None where they are no numbers."""
    stride, padding, dilation = (
        pair_of(argument_of(node, index, name, default))
        for index, name, default in ((3, "stride", 1), (4, "padding", 0), (7, "dilation", 1))
    )
    groups = argument_of(node, 6, "groups", 1)
    if stride is None or padding is None or dilation is None or not isinstance(groups, int):
        return None
    x, weight = (argument_of(node, i, name, None) for i, name in ((0, "input"), (1, "weight")))
    bias = argument_of(node, 2, "bias", None)
    return _Transposed(x, weight, bias, stride, padding, groups, dilation)


def _refusal(node: fx.Node, facts: Facts) -> str | None:
    found = _arguments(node)
    if found is None:
        return "its arguments are computed from the input"
    if constant(found.weight) is None or (found.bias is not None and constant(found.bias) is None):
        return "its weight is computed from the input"
    x, y = facts[found.x], facts[node]
    return None if x.dim() == 4 and is_batch(x) and y.numel() else "its input is no batch of images"


@dataclass(frozen=True)
class _Part:
    """One residue of an axis.

    Attributes:
        first: the first output pixel of it.
        count: output pixels.
        taps: of the filter, in the order in which their pixels come; none of them is none.
        dilation: pixels of the input from one tap's to the next's.
        padding: pixels that the first output's first tap lies in front of the input.
    """

    first: int
    count: int
    taps: tuple[int, ...]
    dilation: int
    padding: int


def _parts(outputs: int, taps: int, stride: int, padding: int, dilation: int) -> list[_Part]:
    parts = []
    for first in range(min(stride, outputs)):
        count = math.ceil((outputs - first) / stride)
        reached = [k for k in range(taps) if (first + padding - k * dilation) % stride == 0][::-1]
        start = (first + padding - reached[0] * dilation) // stride if reached else 0
        step = dilation // math.gcd(stride, dilation)
        parts.append(_Part(first, count, tuple(reached), step, -start))
    return parts


def _lower(builder: SubgraphBuilder, node: fx.Node) -> None:
    found = _arguments(node)
    assert found is not None
    name, tensor = named(found.weight)
    filters = _of_outputs(tensor.detach(), found.groups)
    n, _, height, width = map(int, builder.facts[node].shape)
    _, channels, h, w = map(int, builder.facts[found.x].shape)
    axes = zip(filters.shape[2:], found.stride, found.padding, found.dilation, strict=True)
    rows, columns = (
        _parts(outputs, *numbers) for outputs, numbers in zip((height, width), axes, strict=True)
    )
    for row in rows:
        for column in columns:
            part = filters[:, :, list(row.taps)][..., list(column.taps)]
            if not part.numel():  # pixels that no tap reaches: the bias alone
                part = filters.new_zeros((*filters.shape[:2], 1, 1))
            r, s = part.shape[2:]
            builder.append(
                "convolution",
                node,
                found.x,
                conv=ConvSpec(
                    n, channels, h, w, filters.shape[0], r, s, (1, 1),
                    (row.padding, column.padding, _behind(row, r, h), _behind(column, s, w)),
                    (row.dilation, column.dilation), found.groups,
                ),
                weight=(f"{name} {row.taps} {column.taps}", part.contiguous()),
                bias=None if found.bias is None else named(found.bias),
                lattice=Lattice((row.first, column.first), found.stride),
                into=builder.values.get(node),
            )  # fmt: skip


def _of_outputs(weight: Tensor, groups: int) -> Tensor:
    """[C, K / groups, R, S] as a convolution has it: [K, C / groups, R, S]."""
    by_group: Tensor = weight.unflatten(0, (groups, -1)).transpose(1, 2)
    return by_group.flatten(0, 1)


def _behind(part: _Part, taps: int, size: int) -> int:
    """Padding behind the input that gives as many outputs as there are."""
    return part.count - 1 - part.padding + part.dilation * (taps - 1) - (size - 1)


RULES: dict[Any, Rule] = {aten.conv_transpose2d.input: Rule(_refusal, _lower)}
