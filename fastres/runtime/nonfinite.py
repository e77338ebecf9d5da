"""NaN and infinity, which oneDNN's ReLU would hide: where they come from, and the check for them.

That ReLU turns NaN into 0. Convolutions, additions and poolings of finite numbers make no NaN, so
it is enough to check the model's inputs, and what comes out of every operation that can make NaN or
infinity of finite numbers (a division, a logarithm). Each check is one pass over the data.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastres.ir.graph import MOVES_DATA
from fastres.kernels.activations import BY_ATEN

aten = torch.ops.aten

LARGEST = 2.0**64
"""Numbers below this in magnitude cannot overflow float32 in a network that is any good.

Activations that overflow from finite inputs (a broken model) are not caught.
"""


class NonFinite(Exception):
    """A value is NaN, infinite or huge: run this call in plain PyTorch."""


def checked_finite(value: Tensor) -> Tensor:
    """``value``, if all of it is finite and below :data:`LARGEST`.

    Raises:
        NonFinite: it is not.
    """
    if value.numel():
        low, high = torch.aminmax(value)
        if not (float(low) > -LARGEST and float(high) < LARGEST):  # false for NaN
            raise NonFinite
    return value


_KEEPS_FINITE: frozenset[Any] = frozenset(
    {
        *MOVES_DATA,
        aten.add.Tensor,
        aten.sub.Tensor,
        aten.mul.Tensor,
        aten.neg.default,
        aten.abs.default,
        *BY_ATEN,
        aten.hardtanh.default,
        aten.leaky_relu.default,
        aten.gelu.default,
        aten.softmax.int,
        aten.sigmoid.default,
        aten.hardsigmoid.default,
        aten.tanh.default,
        aten.elu.default,
        aten.avg_pool2d.default,
        aten.adaptive_avg_pool2d.default,
        aten.mean.dim,
        aten.max_pool2d.default,
        aten.adaptive_max_pool2d.default,
        aten.dropout.default,
        aten.conv2d.default,
        aten.conv_transpose2d.input,
        aten.linear.default,
        aten.upsample_nearest2d.vec,
        aten.upsample_bilinear2d.vec,
        aten.channel_shuffle.default,
    }
)
"""Operations that make finite numbers of finite ones (the products of two that are below
2^64 are below float32's largest)."""


def may_break(target: Any) -> bool:
    """Whether an operation of torch's may make NaN, infinity or huge numbers of others."""
    return target not in _KEEPS_FINITE and not getattr(target, "checks_itself", False)
