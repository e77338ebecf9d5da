"""Scale and shift of images, a row of pixels at a time, for oneDNN's engine.

With three channels side by side in memory, torch's loop over the innermost dimension is three long
and not vectorised. With the three factors written out for all pixels of a row, it is three times as
long as the row.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fastres.ir.graph import constant
from fastres.ir.views import ScaleShift
from fastres.kernels import reference
from fastres.runtime.lowering import Lowering, keep

FEW = 16
"""Fewer channels than a vector of AVX-512 has numbers."""


def scale_shift(lowering: Lowering, node: fx.Node) -> fx.Node:
    """The rule for ``fastres::scale_shift``: by rows for images of few channels."""
    view = ScaleShift.of(node)
    fact = lowering.facts[view.x]
    factors, summands = constant(view.scale), constant(view.shift)
    if fact.dim() != 4 or fact.shape[1] >= FEW or factors is None or summands is None:
        return keep(lowering, node)
    width = int(fact.shape[3])
    rows = [
        lowering.constant(f"{node.name}_{name}", value.repeat(width))
        for name, value in (("factors", factors), ("summands", summands))
    ]
    return lowering.call(by_rows, (lowering.value(view.x), *rows, view.activation), node)


def by_rows(x: Tensor, factors: Tensor, summands: Tensor, activation: str) -> Tensor:
    """``activation(x * scale + shift)``, channels-last; the factors stand for a row of pixels.

    Args:
        x: [N, C, H, W].
        factors, summands: [W * C], the channels' scale and shift W times over.

    Returns:
        [N, C, H, W] in the dtype of ``x``, with the strides of a channels-last tensor.
    """
    image = x.permute(0, 2, 3, 1).contiguous()
    rows = image.view(-1, factors.shape[0]).to(factors.dtype)
    y = reference.activate(torch.addcmul(summands, rows, factors), activation)
    return y.to(x.dtype).view(image.shape).permute(0, 3, 1, 2)
