"""Weights as the kernels read them: panels of 32 output channels, in the order of the K-steps.

A panel is [step][unit][32]: a unit is one input channel in float32 and a pair of them in bfloat16,
whose 32 entries are then pairs. A step is one filter tap of a channel block, channel block by
channel block; for an image that is kept pixel by pixel it is one row of the filter, or a part of
one where a step cannot be as long (:func:`parts`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fastres.dtypes import BY_DTYPE

PANEL = 32
"""Output channels of a panel."""


def panels(channels: int) -> int:
    """Panels for so many output channels."""
    return math.ceil(channels / PANEL)


def pack_bias(bias: Tensor | None, channels: int) -> Tensor:
    """[K] or None as float32, filled up with zeros to whole panels."""
    whole = torch.zeros(panels(channels) * PANEL, dtype=torch.float32, device="cpu")
    if bias is not None:
        whole[:channels] = bias
    return whole


def pack(weight: Tensor, lanes: int) -> Tensor:
    """[K, C, R, S] -> [panel][channel block][R][S][unit][32]([2]).

    Args:
        lanes: channels of a block, 16 for float32 and 32 for bfloat16.
    """
    k, c, r, s = weight.shape
    blocks = math.ceil(c / lanes)
    whole = F.pad(weight, (0, 0, 0, 0, 0, blocks * lanes - c, 0, panels(k) * PANEL - k))
    pair = BY_DTYPE[weight.dtype].group
    cut = whole.view(-1, PANEL, blocks, lanes // pair, pair, r, s)
    return cut.permute(0, 2, 5, 6, 3, 1, 4).contiguous()


def parts(units: int, most: int) -> tuple[list[int], int]:
    """A filter's row as steps of one length: where each begins, and how many units it has.

    A last step that would reach beyond the row begins earlier instead, so that nothing but the row
    is read; what it reads a second time has zeros for weights.

    Args:
        units: of the row.
        most: of a step.
    """
    count = math.ceil(units / most)
    length = math.ceil(units / count)
    return [min(part * length, units - length) for part in range(count)], length


def pack_small(weight: Tensor, most: int) -> Tensor:
    """[K, C, R, S] -> [panel][R][part][unit][32]([2]), a unit for each number of a filter's row.

    Args:
        most: units of a step.
    """
    k, c, r, _ = weight.shape
    pair = BY_DTYPE[weight.dtype].group
    whole = F.pad(weight, (0, 0, 0, 0, 0, c % pair, 0, panels(k) * PANEL - k))
    rows = whole.permute(0, 2, 3, 1).reshape(panels(k), PANEL, r, -1, pair).permute(0, 2, 3, 1, 4)
    firsts, length = parts(rows.shape[2], most)
    steps = [rows[:, :, first : first + length].clone() for first in firsts]
    for part in range(1, len(steps)):
        steps[part][:, :, : firsts[part - 1] + length - firsts[part]] = 0
    return torch.stack(steps, dim=2)


def spread_groups(weight: Tensor, channels: int, groups: int, lanes: int) -> tuple[Tensor, Tensor]:
    """A grouped convolution's weight for whole channel blocks.

    Each panel reads the channel blocks in which its groups' channels lie; the weights of other
    groups are zero.

    Args:
        weight: [K, C / groups, R, S].
        channels: C.

    Returns:
        [K, blocks of a panel * lanes, R, S], and each panel's first block.
    """
    k, per_group, r, s = weight.shape
    out_per_group = k // groups
    last = math.ceil(channels / lanes)
    firsts, ends = [], []
    for panel in range(panels(k)):
        begin = panel * PANEL // out_per_group
        end = (min(k, (panel + 1) * PANEL) - 1) // out_per_group + 1
        firsts.append(begin * per_group // lanes)
        ends.append(math.ceil(end * per_group / lanes))
    wide = max(end - first for first, end in zip(firsts, ends, strict=True))
    firsts = [min(first, last - wide) for first in firsts]
    spread = weight.new_zeros(k, wide * lanes, r, s)
    for group in range(groups):
        for panel in range(
            group * out_per_group // PANEL, ((group + 1) * out_per_group - 1) // PANEL + 1
        ):
            begin = max(group * out_per_group, panel * PANEL)
            end = min((group + 1) * out_per_group, (panel + 1) * PANEL)
            at = group * per_group - firsts[panel] * lanes
            spread[begin:end, at : at + per_group] = weight[begin:end]
    return spread, torch.tensor(firsts, dtype=torch.int32, device="cpu")


# Lavin and Gray (2015), section 4.1.
_G = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))


def pack_winograd(weight: Tensor, lanes: int) -> Tensor:
    """[K, C, 3, 3] -> [panel][frequency 16][unit][32]([2]): ``G g G'``, made in float64."""
    k, c, _, _ = weight.shape
    g = torch.tensor(_G, dtype=torch.float64, device="cpu")
    frequencies = torch.einsum("ar,kcrs,bs->abkc", g, weight.double(), g).reshape(16, k, c)
    filled = math.ceil(c / lanes) * lanes
    whole = F.pad(frequencies, (0, filled - c, 0, panels(k) * PANEL - k))
    pair = BY_DTYPE[weight.dtype].group
    cut = whole.view(16, panels(k), PANEL, filled // pair, pair)
    return cut.permute(1, 0, 3, 2, 4).to(weight.dtype).contiguous()
