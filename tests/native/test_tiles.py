"""The tiles of AVX2 and AVX-512 against float64: every number of pixels, and awkward sizes.

Those of AMX are in ``test_amx_emulated``.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from fastres.kernels.activations import ACTIVATIONS
from tests.support.native.awkward_cases import CASES
from tests.support.native.emulator import loaded
from tests.support.native.one_convolution import FUNCTIONS, Case, Setting, pixels

MOST_PIXELS = {"avx2": 6, "avx512": 14, "avx512_bf16": 14}

each_isa = pytest.mark.parametrize("isa", MOST_PIXELS)


def run(case: Case, isa: str) -> None:
    """A case by an instruction set; skips the test where the processor lacks it."""
    if isa not in loaded().isas:
        pytest.skip(f"needs a processor with {isa}")
    Setting(case, isa).run(loaded()).check()


@each_isa
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_float64(case: Case, isa: str) -> None:
    """Each number within the rounding of its own sum, nothing else written."""
    run(case, isa)


@pytest.mark.parametrize("channels", [16, 32, 41])
@pytest.mark.parametrize("units", [16, 14])
@pytest.mark.parametrize(
    ("isa", "count"), [(isa, n + 1) for isa, most in MOST_PIXELS.items() for n in range(most)]
)
def test_pixels(isa: str, count: int, units: int, channels: int) -> None:
    """A tile of each size, with everything that its end can do."""
    for residual, after in itertools.product([False, True], ["none", "relu", "relu6"]):
        run(
            Case(
                *(pixels(count), channels, 3, units),
                residual=residual,
                after=after,
                scale=3.0,
                prefetch=True,
            ),
            isa,
        )
    run(Case(pixels(count), channels, 3, units, rows=True), isa)


@each_isa
@pytest.mark.parametrize(("before", "after"), list(itertools.product(ACTIVATIONS, ACTIVATIONS)))
def test_activations(before: str, after: str, isa: str) -> None:
    """Every pair, on sums that reach beyond where they bend."""
    for residual in (False, True):
        run(
            Case(*(pixels(19), 40), before=before, after=after, residual=residual, scale=3.0),
            isa,
        )


@each_isa
def test_functions(isa: str) -> None:
    """All of the library's, on either side of a residual, on sums of all sizes."""
    for name, scale in itertools.product(FUNCTIONS, (0.01, 1.0, 30.0)):
        case = Case(pixels(19), channels=40, residual=True, scale=scale)
        run(replace(case, before=name), isa)
        run(replace(case, after=name), isa)


@each_isa
@pytest.mark.parametrize("after", ACTIVATIONS)
@pytest.mark.parametrize("channels", [32, 20])
def test_not_a_number_stays_where_it_is(channels: int, after: str, isa: str) -> None:
    """NaN in one pixel is NaN in all its channels and in no other pixel."""
    if isa not in loaded().isas:
        pytest.skip(f"needs a processor with {isa}")
    setting = Setting(Case(pixels(16), channels, after=after, pixel_units=64), isa)
    setting.inputs[setting.line_of(5, 0)] = setting.stored.pack(np.full(1, np.nan))
    result = setting.run(loaded())
    assert np.isnan(result.expected[5, :channels]).all()
    result.check()


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
@pytest.mark.parametrize("units", [16, 14])
def test_rounding_does_not_grow_with_the_length_of_a_sum(units: int, isa: str) -> None:
    """Of 9216 products of one sign: one chain would be off by about 20 units of rounding."""
    if isa not in loaded().isas:
        pytest.skip(f"needs a processor with {isa}")
    setting = Setting(Case(pixels(14), steps=9216 // units, units=units), isa)
    np.abs(setting.inputs, out=setting.inputs)
    np.abs(setting.weights, out=setting.weights)
    result = setting.run(loaded())
    result.check()
    error = np.abs(result.values - result.expected) / result.expected
    assert error.mean() < 4 * 2.0**-24
