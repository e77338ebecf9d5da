"""Weights as the kernels read them: panels of 32 output channels, in the order of the K-steps.

A panel is [step][unit][32]: a unit is one input channel in float32, a pair of them in bfloat16 and
four in int8, whose 32 entries are then pairs or fours. A step is one filter tap of a channel block,
channel block by channel block; for an image that is kept pixel by pixel it is one row of the
filter, or a part of one where a step cannot be as long (:func:`parts`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fastres.kernels.spec import ConvSpec

PANEL = 32
"""Output channels of a panel."""


def panels(channels: int) -> int:
    """Panels for so many output channels."""
    return math.ceil(channels / PANEL)


def group(dtype: torch.dtype) -> int:
    """Numbers of a unit, of weights of this dtype."""
    return 4 // dtype.itemsize


def pack_vector(bias: Tensor | None, channels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[K] or None in a dtype of 4 bytes, filled up with zeros to whole panels."""
    whole = torch.zeros(panels(channels) * PANEL, dtype=dtype, device="cpu")
    if bias is not None:
        whole[:channels] = bias
    return whole


def pack(weight: Tensor, lanes: int) -> Tensor:
    """[K, C, R, S] -> [panel][channel block][R][S][unit][32]([2]), a view where nothing fills up.

    Args:
        lanes: channels of a block, 16 for float32 and 32 for bfloat16.
    """
    k, c, r, s = weight.shape
    blocks = math.ceil(c / lanes)
    whole = _filled_up(weight, blocks * lanes - c, panels(k) * PANEL - k)
    pair = group(weight.dtype)
    cut = whole.view(-1, PANEL, blocks, lanes // pair, pair, r, s)
    return cut.permute(0, 2, 5, 6, 3, 1, 4)


def _filled_up(weight: Tensor, channels: int, filters: int) -> Tensor:
    """[K, C, R, S] with so many channels and filters of zeros behind it; itself with none."""
    if not (channels or filters):
        return weight.contiguous()
    return F.pad(weight, (0, 0, 0, 0, 0, channels, 0, filters))


def widened(packed: Tensor) -> Tensor:
    """int8 panels [...][unit][32][4] as int16 [...][unit][2][32][2], for AVX2 without VNNI.

    The even channels of a unit come first, then the odd ones: pixels are widened likewise.
    """
    halves: Tensor = packed.unflatten(-1, (2, 2)).movedim(-1, -3)
    return halves.to(torch.int16).contiguous()


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
    pair = group(weight.dtype)
    whole = F.pad(weight, (0, 0, 0, 0, 0, -c % pair, 0, panels(k) * PANEL - k))
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
    spans = _spans(k, out_per_group, per_group, lanes)
    wide = max(map(len, spans))
    firsts = [min(span.start, last - wide) for span in spans]
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


def _spans(k: int, out_per_group: int, per_group: int, lanes: int) -> list[range]:
    """The channel blocks in which the groups of each panel lie."""
    found = []
    for panel in range(panels(k)):
        begin = panel * PANEL // out_per_group
        end = (min(k, (panel + 1) * PANEL) - 1) // out_per_group + 1
        found.append(range(begin * per_group // lanes, math.ceil(end * per_group / lanes)))
    return found


def widest(conv: ConvSpec, lanes: int) -> int:
    """Channel blocks that a panel of a grouped convolution reads."""
    spans = _spans(conv.k, conv.k // conv.groups, conv.c // conv.groups, lanes)
    return max(map(len, spans))


# Lavin and Gray (2015), section 4.1.
_G = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))


def pack_winograd(weight: Tensor, lanes: int) -> Tensor:
    """[K, C, 3, 3] -> [panel][frequency 16][unit][32]([2]): ``G g G'``, made in float64.

    The result is float64 too, in an order that is not dense; it is rounded where it is copied.
    """
    k, c, _, _ = weight.shape
    g = torch.tensor(_G, dtype=torch.float64, device="cpu")
    filled = math.ceil(c / lanes) * lanes
    whole = _filled_up(weight, filled - c, panels(k) * PANEL - k)
    frequencies = whole.double().flatten(2) @ torch.kron(g, g).T  # [K, C, 16]
    pair = group(weight.dtype)
    cut = frequencies.view(panels(k), PANEL, filled // pair, pair, 16)
    return cut.permute(0, 4, 2, 1, 3)
