"""Cross-layer equalisation: neighbouring convolutions share the ranges of their channels evenly.

A ReLU lets a positive factor through, so a channel that one convolution makes may be divided by any
and multiplied again by the convolution that reads it. The factor that gives both weights the same
range leaves no channel that a scale per tensor would round away (Nagel et al., "Data-Free
Quantization Through Weight Equalization and Bias Correction", 2019, section 4.1).
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fastres.ir import ops
from fastres.ir.graph import constant
from fastres.ir.views import Conv2d
from fastres.kernels.quantized import HOMOGENEOUS

ROUNDS = 8
"""Over all pairs: a convolution in the middle of three is in two of them."""

MOST = 1e4
"""Of a factor: a dead channel would ask for any."""


def equalize(module: fx.GraphModule) -> int:
    """Even out a fused float32 graph's weights in place; how many pairs of convolutions."""
    pairs = [pair for node in module.graph.nodes for pair in _pairs(node)]
    for _ in range(ROUNDS):
        for first, second in pairs:
            _even_out(module, first, second)
    return len(pairs)


def _pairs(node: fx.Node) -> list[tuple[Conv2d, Conv2d]]:
    if node.target is not ops.conv2d:
        return []
    second = Conv2d.of(node)
    if second.x.target is not ops.conv2d or second.residual is second.x:
        return []
    first = Conv2d.of(second.x)
    fits = (
        list(second.x.users) == [node]
        and first.residual is None
        and all(name in HOMOGENEOUS for name in first.activations)
        and first.has_constants
        and second.has_constants
        and first.groups == second.groups == 1
        and len(first.weight.users) == len(second.weight.users) == 1
        and (first.bias is None or len(first.bias.users) == 1)
    )
    return [(first, second)] if fits else []


def _even_out(module: fx.GraphModule, first: Conv2d, second: Conv2d) -> None:
    made, read = first.filters, second.filters
    assert made is not None and read is not None
    from_ = made.abs().amax(dim=(1, 2, 3)).double()
    to = read.abs().amax(dim=(0, 2, 3)).double()
    alive = (from_ > 0) & (to > 0)
    factor = torch.where(alive, (from_ / to).sqrt(), torch.ones_like(to))
    factor = factor.clamp(1 / MOST, MOST)
    _replace(module, first.weight, made.double() / factor[:, None, None, None])
    if first.bias is not None:
        bias = constant(first.bias)
        assert bias is not None
        _replace(module, first.bias, bias.double() / factor)
    _replace(module, second.weight, read.double() * factor[None, :, None, None])


def _replace(module: fx.GraphModule, node: fx.Node, value: Tensor) -> None:
    name = str(node.target)
    old = getattr(module, name)
    module.register_buffer(name, value.to(old.dtype).contiguous())
