"""What values a tensor takes, and the range that its eight bits are to cover.

A histogram is kept whose range doubles as values grow, so that data is read once and in any
portions. The ways of choosing a range:

- ``minmax``: all that was seen. Nothing is cut off; one outlier makes every step coarse.
- ``percentile``: all but one in 100,000 values at either end.
- ``mse``: the range with the least squared error of what was seen.
- ``entropy``: the range whose quantised distribution tells the least from the one that was seen, by
  Kullback-Leibler divergence (Migacz, "8-bit Inference with TensorRT", 2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

BINS = 8192
"""Of a histogram from ``-limit`` to ``limit``: 16 a step of a tensor of one sign and full range."""

LEVELS = 255
"""Steps of uint8."""

OUTSIDE = 1e-5
"""Share of values at either end that ``percentile`` leaves outside."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scale:
    """How a tensor is quantised: ``(q - zero_point) * scale``, ``q`` from 0 to 255."""

    scale: float
    zero_point: int

    @classmethod
    def covering(cls, low: float, high: float) -> Scale:
        """For values from ``low`` to ``high``; 0, which convolutions pad with, is always exact."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = float(np.float32((high - low) / LEVELS))
        if not scale > np.finfo(np.float32).tiny:  # nothing but zeros was seen
            return cls(1.0, 0)
        return cls(scale, min(LEVELS, max(0, round(-low / scale))))


class Observer:
    """The values of one tensor, batch by batch.

    Attributes:
        low, high: the least and the largest so far.
        counts: of :data:`BINS` bins from ``-limit`` to ``limit``, a power of two.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.limit = 0.0
        self.counts: Array = np.zeros(BINS, dtype=np.float64)

    def observe(self, value: Tensor) -> None:
        """Count the values of a tensor, which are finite."""
        if not value.numel():
            return
        low, high = (float(each) for each in torch.aminmax(value))
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._reach(max(abs(low), abs(high)))
        if self.limit:
            values = value.detach().float()
            counted = torch.histc(values, BINS, -self.limit, self.limit)
            self.counts += counted.cpu().numpy().astype(np.float64)

    def _reach(self, most: float) -> None:
        if most <= self.limit or most == 0.0:
            return
        limit = 2.0 ** math.ceil(math.log2(most))
        while limit < most:  # of a logarithm that was rounded down
            limit *= 2
        while self.limit and self.limit < limit:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(BINS, dtype=np.float64)
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = pairs
            self.limit *= 2
        self.limit = limit

    @property
    def seen(self) -> bool:
        """Whether there was a value."""
        return self.low <= self.high

    @property
    def centres(self) -> Array:
        """The bins' middle values."""
        width = 2 * self.limit / BINS
        found: Array = (np.arange(BINS, dtype=np.float64) + 0.5) * width - self.limit
        return found


def minmax(observer: Observer) -> tuple[float, float]:
    """All that was seen."""
    return observer.low, observer.high


def percentile(observer: Observer) -> tuple[float, float]:
    """All but :data:`OUTSIDE` of the values at either end, as finely as the histogram tells."""
    total = observer.counts.sum()
    if not total:
        return minmax(observer)
    width = 2 * observer.limit / BINS
    below = np.cumsum(observer.counts)
    first = int(np.searchsorted(below, OUTSIDE * total, side="right"))
    last = int(np.searchsorted(below, (1 - OUTSIDE) * total, side="left"))
    low = max(observer.low, first * width - observer.limit)
    high = min(observer.high, (last + 1) * width - observer.limit)
    return low, high


def mse(observer: Observer) -> tuple[float, float]:
    """The range with the least squared error: a share of what was seen, of either end its own."""
    present = observer.counts > 0
    if not present.any():
        return minmax(observer)
    centres, counts = observer.centres[present], observer.counts[present]
    low, high = min(observer.low, 0.0), max(observer.high, 0.0)

    def error(lower: float, upper: float) -> float:
        chosen = Scale.covering(lower, upper)
        q = np.clip(np.rint(centres / chosen.scale) + chosen.zero_point, 0, LEVELS)
        return float((counts * ((q - chosen.zero_point) * chosen.scale - centres) ** 2).sum())

    both = _least(lambda share: error(low * share, high * share))
    if low == 0 or high == 0:
        return low * both, high * both
    lower = low * _least(lambda share: error(low * share, high * both))
    return lower, high * _least(lambda share: error(lower, high * share))


def _least(error: Callable[[float], float]) -> float:
    """The share from 0.2 to 1 with the least error, to about a hundredth."""
    coarse = min(np.linspace(0.2, 1.0, 17), key=error)
    fine = np.linspace(max(0.2, coarse - 0.04), min(1.0, coarse + 0.04), 9)
    return float(min((*fine, coarse), key=error))


def entropy(observer: Observer) -> tuple[float, float]:
    """The range whose quantised distribution is nearest to that of all values."""
    if not observer.counts.any():
        return minmax(observer)
    two_sided = observer.low < 0
    counts = observer.counts
    sizes = counts[BINS // 2 :] + (counts[: BINS // 2][::-1] if two_sided else 0.0)
    sizes = sizes.copy()
    sizes[0] = sizes[1]  # what a ReLU cut off is 0 in any range, and would outweigh all others
    levels = 128 if two_sided else LEVELS + 1
    last = int(np.flatnonzero(sizes)[-1]) + 1
    best, least = last, math.inf
    for count in range(levels, last + 1, max(1, (last - levels) // 128)):
        divergence = _divergence(sizes, count, levels)
        if divergence < least:
            best, least = count, divergence
    reach = best * observer.limit / (BINS // 2)
    return max(observer.low, -reach), min(observer.high, reach)


def _divergence(sizes: Array, count: int, levels: int) -> float:
    """Of ``sizes`` with all beyond ``count`` bins in the last, from its ``levels`` steps."""
    reference = sizes[:count].copy()
    reference[-1] += sizes[count:].sum()
    step = np.arange(count) * levels // count
    present = sizes[:count] > 0
    sums = np.bincount(step, weights=sizes[:count], minlength=levels)
    filled = np.bincount(step, weights=present.astype(np.float64), minlength=levels)
    shares = np.divide(sums, filled, out=np.zeros_like(sums), where=filled > 0)
    quantised = np.where(present, shares[step], 0.0)
    if not quantised.sum():
        return math.inf
    p, q = reference / reference.sum(), quantised / quantised.sum()
    both = (p > 0) & (q > 0)
    lost = float(p[(p > 0) & ~both].sum())
    return float((p[both] * np.log(p[both] / q[both])).sum()) + 10.0 * lost


OBSERVERS: dict[str, Callable[[Observer], tuple[float, float]]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
    "entropy": entropy,
}
"""The ways to choose a range: name -> function that gives (low, high)."""
