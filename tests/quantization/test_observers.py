"""The ranges that observers choose, of values whose best range is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fastres.quantization.observers import BINS, OBSERVERS, Observer, Scale


def observed(*values: Tensor) -> Observer:
    observer = Observer()
    for value in values:
        observer.observe(value)
    return observer


def rounding_error(values: Tensor, ends: tuple[float, float]) -> float:
    """Root mean square, relative to the values'."""
    chosen = Scale.covering(*ends)
    q = (torch.round(values / chosen.scale) + chosen.zero_point).clamp(0, 255)
    error = (q - chosen.zero_point) * chosen.scale - values
    return float(error.norm() / values.norm())


@pytest.mark.parametrize(
    ("low", "high", "zero_point"),
    [(0.0, 2.0, 0), (-1.0, 1.0, 127), (-3.0, 0.0, 255), (1.0, 3.0, 0), (-3.0, -1.0, 255)],
)
def test_zero_is_exact_and_the_ends_are_covered(low: float, high: float, zero_point: int) -> None:
    chosen = Scale.covering(low, high)
    assert chosen.zero_point == zero_point
    assert np.float32(chosen.scale) == chosen.scale
    least, most = -chosen.zero_point * chosen.scale, (255 - chosen.zero_point) * chosen.scale
    assert least <= low + chosen.scale / 2 + 1e-6
    assert most >= high - chosen.scale / 2 - 1e-6


@pytest.mark.parametrize("value", [0.0, 1e-45, -1e-42])
def test_a_tensor_of_next_to_nothing_has_a_scale(value: float) -> None:
    assert Scale.covering(value, value) == Scale(1.0, 0)


@pytest.mark.parametrize("pieces", [1, 7])
def test_counts_do_not_depend_on_how_values_come(pieces: int) -> None:
    """Values that grow from piece to piece, so that the range has to."""
    values = torch.randn(7000).abs().sort().values * 10
    whole, parts = observed(values), observed(*values.chunk(pieces))
    assert (whole.low, whole.high, whole.limit) == (parts.low, parts.high, parts.limit)
    assert whole.counts.sum() == parts.counts.sum() == 7000
    moved = np.abs(np.cumsum(whole.counts) - np.cumsum(parts.counts))
    assert moved.max() <= 7000 * 0.01  # values on the edge of two bins


def test_bins_are_where_they_say() -> None:
    observer = observed(torch.tensor([-0.75, 0.3, 3.9]))
    assert observer.limit == 4.0
    found = observer.centres[observer.counts > 0]
    assert np.allclose(found, [-0.75, 0.3, 3.9], atol=4.0 / BINS)


def test_nothing_was_seen() -> None:
    observer = observed(torch.zeros(0))
    assert not observer.seen
    assert observed(torch.zeros(3)).seen


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("kind", ["normal", "relu", "uniform", "negative", "constant", "zero"])
def test_every_observer_covers_ordinary_values_well(name: str, kind: str) -> None:
    values = {
        "normal": torch.randn(50_000),
        "relu": torch.randn(50_000).relu(),
        "uniform": torch.rand(50_000) * 3,
        "negative": -torch.rand(50_000),
        "constant": torch.full((1000,), 0.7),
        "zero": torch.zeros(1000),
    }[kind]
    ends = OBSERVERS[name](observed(values))
    assert all(map(math.isfinite, ends))
    if kind != "zero":
        assert rounding_error(values, ends) < (0.05 if name == "entropy" else 0.02)


@pytest.mark.parametrize("name", ["percentile", "entropy"])
def test_one_outlier_makes_no_other_step_coarse(name: str) -> None:
    """One channel's 50x is what minmax has to cover; nine in a million values are that large."""
    values = torch.cat([torch.randn(1_000_000), torch.full((5,), 50.0)])
    inner = values[:1_000_000]
    everything = rounding_error(inner, OBSERVERS["minmax"](observed(values)))
    assert rounding_error(inner, OBSERVERS[name](observed(values))) < everything / 3


def test_mse_is_no_worse_than_minmax() -> None:
    for power in (1, 2, 3, 5):
        values = torch.randn(20_000).pow(power)
        observer = observed(values)
        mse, minmax = (rounding_error(values, OBSERVERS[n](observer)) for n in ("mse", "minmax"))
        assert mse <= minmax * 1.01
