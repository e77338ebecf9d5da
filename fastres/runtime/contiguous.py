"""Torch's operations that are inexact on channels-last images: they get contiguous copies.

Relative error of float32 against float64, for images whose mean is three standard deviations::

                                    contiguous    channels-last
    group_norm                      1.1e-7        2.3e-6
    batch_norm of the batch         9e-8          1.9e-6
    a vector norm over (H, W)       5e-8          4e-7

In channels-last torch sums the squares of all pixels in one chain, and takes the square of the mean
from their mean.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fastres.ir.graph import arguments
from fastres.runtime.lowering import Lowering

aten = torch.ops.aten

INEXACT: frozenset[Any] = frozenset(
    {
        aten.group_norm.default,
        aten.native_group_norm.default,
        aten.batch_norm.default,
        aten.native_batch_norm.default,
        aten._native_batch_norm_legit.no_stats,
        aten.norm.ScalarOpt_dim,
        aten.norm.ScalarOpt_dim_dtype,
        aten.linalg_vector_norm.default,
    }
)
"""What sums squares over pixels."""


def arguments_of(lowering: Lowering, node: fx.Node) -> tuple[Any, ...]:
    """The lowered arguments of one of :data:`INEXACT`, the image as a contiguous copy."""
    lowered = tuple(lowering.value(argument) for argument in arguments(node))
    fact = lowering.facts[arguments(node)[0]]
    if not isinstance(fact, Tensor) or fact.dim() < 3:
        return lowered
    copied = lowering.call(aten.contiguous.default, lowered[:1], node, "to contiguous")
    return (copied, *lowered[1:])
