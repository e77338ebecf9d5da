"""The weights and biases of a convolution or classifier as integers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """Of one convolution or classifier: int8, float32 [K], int32 [K]."""

    weight: Tensor
    scale: Tensor
    bias: Tensor


def quantized_weights(
    filters: Tensor,
    bias: Tensor | None,
    x_scale: float,
    mean: Tensor | None = None,
    groups: int = 1,
) -> Weights:
    """Symmetric per filter, each with the smallest scale that covers it.

    Args:
        filters: [K, C / groups, ...] float32.
        bias: [K] or None.
        x_scale: the input's scale, in whose unit times the filter's the bias counts.
        mean: [C], the input's mean by channel, for the correction of the bias: what the rounding of
            the weights adds to the mean output is taken away.
    """
    k = filters.shape[0]
    flat = filters.detach().reshape(k, -1).double()
    shift = flat.new_zeros(k) if bias is None else bias.detach().double()
    # Beside sums of up to 2^30 a bias has room for 2^29 units: a filter next to zero gets a coarser
    # scale.
    least = shift.abs() / (x_scale * 2.0**29)
    scale = torch.maximum(flat.abs().amax(dim=1) / 127, least)
    scale = torch.where(scale > 2.0**-100, scale, torch.ones_like(scale)).float()
    rounded = torch.round(flat / scale.double()[:, None]).clamp(-127, 127)
    if mean is not None:
        lost = rounded * scale.double()[:, None] - flat
        lost = lost.reshape(k, filters.shape[1], -1).sum(dim=2)  # over a filter's taps
        means = mean.to(lost.device).reshape(groups, 1, -1).expand(-1, k // groups, -1)
        shift = shift - (lost * means.reshape(k, -1)).sum(dim=1)
    units = torch.round(shift / (x_scale * scale.double())).clamp(-(2.0**29), 2.0**29)
    return Weights(rounded.reshape(filters.shape).to(torch.int8), scale, units.to(torch.int32))
