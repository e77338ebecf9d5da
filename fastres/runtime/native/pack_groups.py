"""Weights of grouped convolutions that multiply nothing by the zeros between groups.

``FR_DEPTHWISE`` and ``FR_GROUPED`` of ``kernels/cpu/native.h``, which says how they are laid out. A
*vector* is the output channels of one register, 16 of AVX-512, 8 of AVX2, 4 of NEON; a *piece* is
as many units of an input's line, a whole one, a half or a quarter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from fastres.kernels.spec import ConvSpec
from fastres.runtime.native.pack import PANEL, group, panels, widened

UNITS = (1, 2, 4)
"""How many units of a piece a read may take: indices and weights stay in registers."""


def interleaved(unit: int) -> Tensor:
    """[32]: the channels of a panel in the order of their sums.

    Taps are interleaved within 128 bits, which hold ``4 * unit`` channels: each fourth of the
    result has four channels from each of them.

    Args:
        unit: numbers of a unit: taps of a step.
    """
    channels: Tensor = torch.arange(PANEL, dtype=torch.int64, device="cpu").view(-1, unit, 4)
    return channels.transpose(0, 1).reshape(-1)


def pack_depthwise(weight: Tensor) -> Tensor:
    """[K, 1, R, S] -> [panel][step][4][8][tap of the step], in the order of the sums."""
    k, _, r, s = weight.shape
    unit = group(weight.dtype)
    whole = F.pad(weight.reshape(k, r * s), (0, -(r * s) % unit, 0, panels(k) * PANEL - k))
    cut = whole.view(-1, PANEL, whole.shape[1] // unit, unit)[:, interleaved(unit)]
    made: Tensor = cut.transpose(1, 2).unflatten(2, (4, 8))
    return made.contiguous()


@dataclass(frozen=True)
class Reads:
    """What each vector of a grouped convolution reads, tap by tap.

    Attributes:
        vector: output channels of one.
        units: of a read.
        first, last: [vector, lane], the units of the input that each channel's group lies in.
        piece: [vector, read].
        ordinal: [vector, read], which of a lane's units in that piece is the read's first.
    """

    vector: int
    units: int
    first: npt.NDArray[Any]
    last: npt.NDArray[Any]
    piece: npt.NDArray[Any]
    ordinal: npt.NDArray[Any]

    @property
    def of_panel(self) -> int:
        """Reads of a panel."""
        return int(self.piece.shape[1]) * (PANEL // self.vector)

    @property
    def multiplications(self) -> float:
        """What a panel takes for one pixel and tap, in the time of so many multiplications.

        A unit permuted and multiplied is counted as one and a half, since the permutation goes on
        beside other multiplications; a read has a line to load. ``python -m benchmarks.groups``
        times the ways on a processor.
        """
        return self.of_panel * (0.25 + 1.5 * self.units)

    def offsets(self, plane: int) -> npt.NDArray[Any]:
        """[panel, vector, read] flat: where the pieces begin, in units, in planes of such bytes."""
        line, rest = np.divmod(self.piece.reshape(-1) * self.vector, 16)
        return np.asarray(line * (plane // 4) + rest)


def reads(conv: ConvSpec, unit: int, vector: int) -> Reads:
    """The reads that take the least time.

    Args:
        unit: channels of a unit.
        vector: channels of a vector.
    """
    channel = np.minimum(np.arange(panels(conv.k) * PANEL), conv.k - 1)
    per_group = conv.c // conv.groups
    begin = channel // (conv.k // conv.groups) * per_group
    first = (begin // unit).reshape(-1, vector)
    last = ((begin + per_group - 1) // unit).reshape(-1, vector)
    return min(
        (_reads(first, last, vector, units) for units in UNITS),
        key=lambda made: made.multiplications,
    )


def _reads(first: npt.NDArray[Any], last: npt.NDArray[Any], vector: int, units: int) -> Reads:
    found: list[list[tuple[int, int]]] = []
    for begin, end in zip(first, last, strict=True):
        of_vector = []
        for piece in range(int(begin.min()) // vector, int(end.max()) // vector + 1):
            here = np.minimum(end, (piece + 1) * vector - 1) - np.maximum(begin, piece * vector) + 1
            of_vector += [(piece, ordinal) for ordinal in range(0, int(here.max()), units)]
        found.append(of_vector)
    most = max(map(len, found))
    # A vector that reads less reads its first piece again, with nothing to multiply.
    whole = np.array([[*each, *[(each[0][0], vector)] * (most - len(each))] for each in found])
    return Reads(vector, units, first, last, whole[..., 0], whole[..., 1])


def pack_grouped(weight: Tensor, conv: ConvSpec, made: Reads, wide: bool) -> Tensor:
    """[K, C / groups, R, S] -> [panel][vector][read] of indices and weights, as int32.

    Args:
        wide: int8 as int16, see :func:`fastres.runtime.native.pack.widened`.
    """
    k, per_group, r, s = weight.shape
    unit, vector = group(weight.dtype), made.vector
    # [vector, read, unit, lane]: the unit of the input that a lane takes, if it has one there.
    at = made.piece[:, :, None, None] * vector
    begin = np.maximum(made.first[:, None, None, :], at)
    end = np.minimum(made.last[:, None, None, :], at + vector - 1)
    taken = begin + made.ordinal[:, :, None, None] + np.arange(made.units)[:, None]
    present = taken <= end
    # Lanes without one take what their group has there, if anything: zero times that is added.
    index = np.where(present, taken, np.where(begin <= end, begin, at)) - at
    filters = np.arange(panels(k) * PANEL).reshape(-1, 1, 1, vector, 1)
    inside = taken[..., None] * unit + np.arange(unit)
    inside = inside - np.minimum(filters, k - 1) // (k // conv.groups) * per_group
    present = present[..., None] & (inside >= 0) & (inside < per_group) & (filters < k)
    rows = np.where(present, filters * per_group + inside, k * per_group)
    taps = F.pad(weight.reshape(k * per_group, r * s), (0, 0, 0, 1))
    # [vector, read, unit, lane, channel of the unit, tap], and the tap in front of the unit.
    chosen = taps[torch.from_numpy(rows)].movedim(-1, 2).contiguous()
    numbers = (widened(chosen) if wide else chosen).flatten(2).view(torch.int32)
    indices = torch.from_numpy(index.astype(np.int32)).flatten(2)
    return torch.cat([indices, numbers], dim=2).view(panels(k), PANEL // vector, -1).contiguous()


def steps(taps: list[int], unit: int) -> list[int]:
    """The taps of a depthwise convolution, filled up to whole steps with one whose weight is 0."""
    return taps + taps[-1:] * (math.ceil(len(taps) / unit) * unit - len(taps))
