"""Weights in the order in which kernels read them: the reduction innermost, groups made dense.

Without groups, [K, C, R, S] becomes [K, R*S*C]: the channels-last memory of the same weight. With
groups, a few neighbouring groups become one *super-group*, a dense block whose off-diagonal
weights are zero, since a matrix product over 4 channels would leave tensor cores idle. ResNeXt's
32 groups of 4 channels become 4 super-groups of 32: [4, 32, R*S*32].

For ``tf32`` the weights are rounded here to what tensor cores multiply: they cut off the other
bits, which would make all weights smaller.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastres.errors import InputError

SUPER_GROUP_CHANNELS = 32
"""Channels that a super-group has if whole groups allow it: 64 bytes of fp16 per pixel, and the
multiplications by zero are modelled below what moving the tensors costs (ResNeXt-50, A100)."""


def groups_together(channels: int, filters: int, groups: int) -> int:
    """How many groups make a super-group: the largest divisor that keeps it small, at least one.

    Args:
        channels, filters: of one group.
        groups: how many there are.
    """
    if groups == 1:
        return 1
    limit = max(1, SUPER_GROUP_CHANNELS // max(channels, filters))
    return max(n for n in range(1, min(limit, groups) + 1) if groups % n == 0)


def super_groups(c: int, k: int, groups: int) -> int:
    """Number of super-groups of a convolution from c to k channels; see :func:`groups_together`."""
    return groups // groups_together(c // groups, k // groups, groups)


def packed_shape(c: int, k: int, r: int, s: int, groups: int) -> tuple[int, ...]:
    """Shape of the packed weight: [K, R*S*C], or [super-groups, K', R*S*C'] if there are groups."""
    if groups == 1:
        return k, r * s * c
    count = super_groups(c, k, groups)
    return count, k // count, r * s * (c // count)


def rounded(weight: Tensor, precision: str | None) -> Tensor:
    """``weight`` for ``tf32`` to the nearest with 10 bits of fraction, otherwise as it is.

    As ``dot.rounded_to_tf32`` does in kernels: ties away from zero, infinity and NaN stay.
    """
    if precision != "tf32":
        return weight
    bits = weight.contiguous().view(torch.int32)
    carried = torch.where(weight.isnan(), bits, bits + 0x1000) & -0x2000
    return carried.view(torch.float32)


def pack_conv2d(weight: Tensor, groups: int = 1, precision: str | None = None) -> Tensor:
    """[K, C / groups, R, S] -> :func:`packed_shape`, contiguous, a copy; also on the meta device.

    Args:
        weight: any strides.
        groups: of the convolution.
        precision: what it is multiplied in; only ``tf32`` makes a difference.

    Raises:
        InputError: not four axes, or filters that the groups do not divide.
    """
    if weight.dim() != 4 or groups < 1 or weight.shape[0] % groups:
        raise InputError(
            f"weight of shape {list(weight.shape)} with groups={groups}: expected "
            "[filters, channels / groups, height, width], and filters divisible by groups"
        )
    k, channels, r, s = weight.shape
    rows = rounded(weight, precision).permute(0, 2, 3, 1)
    if groups == 1:
        return rows.reshape(k, r * s * channels).clone(memory_format=torch.contiguous_format)
    filters = k // groups
    together = groups_together(channels, filters, groups)
    count = groups // together
    dense = weight.new_zeros(count, together, filters, r, s, together, channels)
    blocks = rows.reshape(count, together, filters, r, s, channels)
    # The diagonal moves to the end: [count, filters, r, s, channels, together].
    dense.diagonal(dim1=1, dim2=5).copy_(blocks.permute(0, 2, 3, 4, 5, 1))
    return dense.reshape(packed_shape(channels * groups, k, r, s, groups))


def pack_quantized_bias(bias: Tensor, weight: Tensor, x_zero_point: int) -> Tensor:
    """[K] int32: ``bias - (x_zero_point - 128) * sum of the filter``, modulo 2^32; also on meta.

    What is to be added to products of pixels that are read 128 less than they are
    (:mod:`fastres.kernels.triton.quantized_conv2d`).

    Args:
        bias: [K] int32.
        weight: [K, ...] int8.
        x_zero_point: of the pixels, 0 to 255.
    """
    sums = weight.flatten(1).sum(dim=1, dtype=torch.int64)
    return (bias.to(torch.int64) - (x_zero_point - 128) * sums).to(torch.int32)


def pack_linear(weight: Tensor, precision: str | None = None) -> Tensor:
    """[K, C], contiguous, a copy; ``precision`` as in :func:`pack_conv2d`.

    Raises:
        InputError: not two axes.
    """
    if weight.dim() != 2:
        raise InputError(
            f"weight of shape {list(weight.shape)}: expected two axes, [outputs, inputs]"
        )
    return rounded(weight, precision).clone(memory_format=torch.contiguous_format)
