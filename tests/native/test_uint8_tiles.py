"""The tiles of uint8 by int8 against their definition, bit for bit: awkward sizes, all numbers.

AVX-VNNI and AMX run in software where the processor lacks them; see ``emulator``.
"""

from __future__ import annotations

import itertools
import re
import subprocess
from typing import Any

import numpy as np
import pytest
import torch

from fastres.kernels.activations import ACTIVATIONS
from fastres.runtime.native import library
from tests.native.test_amx_emulated import innermost_loops
from tests.support.cxx import tool
from tests.support.native.awkward_cases import CASES
from tests.support.native.emulator import emulated, loaded
from tests.support.native.one_convolution import pixels
from tests.support.native.one_uint8_convolution import (
    MOST_PIXELS,
    Uint8Case,
    Uint8Result,
    Uint8Setting,
    uint8_case,
)

EXACT = [name for name, row in ACTIVATIONS.items() if row.exact]

each_isa = pytest.mark.parametrize("isa", MOST_PIXELS)


def run(isa: str, *cases: Uint8Case, seed: int = 0) -> list[Uint8Result]:
    """Cases by an instruction set, each held against the definition."""
    results = []
    with emulated(isa):
        for case in cases:
            results.append(Uint8Setting(case, isa, seed).run(loaded()))
            results[-1].check()
    return results


def sized(
    count: int, channels: int = 32, steps: int = 2, units: int = 16, **others: Any
) -> Uint8Case:
    """A case of so many pixels."""
    return Uint8Case(pixels(count), channels, steps, units, **others)


def heavy(isa: str, name: str) -> bool:
    """Whether a signal for each product would take seconds."""
    return isa == "avx_vnni" and name in ("many steps", "threads")


@pytest.mark.parametrize(
    ("isa", "name"),
    [
        pytest.param(isa, name, marks=[pytest.mark.campaign] if heavy(isa, name) else [])
        for isa, name in itertools.product(MOST_PIXELS, CASES)
    ],
)
def test_definition(isa: str, name: str) -> None:
    """Equal, and nothing else written."""
    run(isa, uint8_case(CASES[name]))


@pytest.mark.sampled(16)
@pytest.mark.parametrize("channels", [16, 32, 41])
@pytest.mark.parametrize("units", [16, 8, 4, 5])
@pytest.mark.parametrize(
    ("isa", "count"), [(isa, n + 1) for isa, most in MOST_PIXELS.items() for n in range(most)]
)
def test_pixels(isa: str, count: int, units: int, channels: int) -> None:
    """A tile of each size, with everything that its end can do."""
    sizes = (count, channels, 3, units)
    ahead: dict[str, Any] = {"prefetch": True, "read_ahead": True}
    cases = [
        sized(*sizes, residual=residual, after=after, **ahead)
        for residual, after in itertools.product([False, True], ["none", "relu", "relu6"])
    ]
    run(isa, *cases, sized(*sizes, rows=True))


@pytest.mark.parametrize("rows", [False, True])
@each_isa
def test_channels(isa: str, rows: bool) -> None:
    """Every number in a panel, and in panels of two lines."""
    for channels in (*range(1, 33), 33, 40, 63, 64, 65, 96, 97, 129):
        for residual in (False,) if rows else (False, True):
            run(isa, sized(4, channels, 1, 4, residual=residual, rows=rows))


@each_isa
@pytest.mark.parametrize(("before", "after"), list(itertools.product(EXACT, EXACT)))
def test_activations(before: str, after: str, isa: str) -> None:
    """Every pair, on sums that reach beyond where they bend."""
    for residual, zero in ((False, 90), (True, 3)):
        ends: dict[str, Any] = {"before": before, "after": after, "residual": residual}
        (result,) = run(isa, sized(19, 40, 1, **ends, zeros=(131, 77, zero)))
        assert len(result.expected.unique()) > 40
    if before == "none":
        (result,) = run(isa, sized(19, 40, 1, after=after, rows=True))
        assert len(result.expected.unique()) > 40


@each_isa
def test_zero_points(isa: str) -> None:
    """Of what is read, added and written; 0 and 255 leave no room at one end."""
    for zeros in itertools.product((0, 1, 128, 255), (0, 77, 255), (0, 1, 200, 255)):
        for residual in (False, True):
            run(isa, sized(7, 32, 1, 4, zeros=zeros, residual=residual, scale=2.0))


@pytest.mark.sampled(4)
@each_isa
@pytest.mark.parametrize("weight", [127, -127])
@pytest.mark.parametrize("value", [255, 0])
def test_extreme_sums(value: int, weight: int, isa: str) -> None:
    """All products of one sign and the largest: a sum of 16 bits anywhere would be cut off."""
    for zero, channels in itertools.product((0, 255, 128), (32, 24)):
        given: dict[str, Any] = {"zeros": (zero, 0, 128), "extreme": (weight, value), "scale": 0.5}
        setting = Uint8Setting(sized(13, channels, 5, **given), isa)
        setting.bias[:] = 0
        with emulated(isa):
            result = setting.run(loaded())
        result.check()
        sign = np.sign(weight * (value - zero))
        assert ((result.expected.int() - 128).sign() == sign).all()
        assert len(result.expected.unique()) > 5 or sign == 0  # nothing is cut off but at the end


@each_isa
@pytest.mark.parametrize("channels", [32, 20])
@pytest.mark.parametrize("after", ["none", "relu", "hardswish"])
def test_results_beyond_int32_are_the_least_or_the_most(
    after: str, channels: int, isa: str
) -> None:
    """Where a scale is far too fine for what is found."""
    for coarse, zero in itertools.product((1e-8, 1e-10, 1e-20), (0, 100, 255)):
        case = sized(5, channels, 1, after=after, coarse=coarse, zeros=(9, 0, zero))
        (result,) = run(isa, case)
        assert (result.expected == 255).float().mean() > 0.2


@each_isa
def test_half_goes_to_even(isa: str) -> None:
    """Sums that are odd multiples of a half, each sign, in and out of whole panels."""
    for channels, zero in itertools.product((32, 17), (7, 128)):
        case = sized(6, channels, 1, 4, zeros=(0, 0, zero))
        setting = Uint8Setting(case, isa)
        setting.weights[:], setting.inputs[:] = 0, 0
        setting.bias[:] = np.arange(-31, 33, 2)
        setting.x_scale, setting.scale = 0.5, 1.0
        setting.weight_scale = torch.ones_like(setting.weight_scale)
        with emulated(isa):
            result = setting.run(loaded())
        result.check()
        assert result.expected[0, :4].tolist() == [
            max(0, zero + even) for even in (-16, -14, -14, -12)
        ]


def test_all_sets_give_the_same() -> None:
    case = uint8_case(CASES["residual, part of a panel"], after="hardswish")
    found = []
    for isa in MOST_PIXELS:
        with emulated(isa):
            found.append(Uint8Setting(case, isa).run(loaded()).values)
    assert all(torch.equal(each, found[0]) for each in found)


@pytest.mark.parametrize("name", ["holes", "only the second half", "stem", "panels", "one unit"])
def test_amx_does_no_more_products_than_it_has_to(name: str) -> None:
    """With proof that the tile instructions were met."""
    case = uint8_case(CASES[name])
    setting = Uint8Setting(case, "amx_int8")
    with emulated("amx_int8") as counts:
        setting.run(loaded()).check()
    if not counts.hardware:
        tiles = len(case.present) // 32
        whole = sum(any(case.present[32 * i + 16 : 32 * i + 32]) for i in range(tiles))
        blocks = (tiles + whole) * case.panels
        assert counts.done["byte product"] == 2 * case.steps * blocks
        assert counts.done["store"] == 2 * blocks
        assert counts.done["configure"] == counts.done["release"] > 0


def listing() -> str:
    """The library's machine code."""
    path = library.find()
    if path is None:
        pytest.skip("the native engine is not here")
    command = [tool("objdump"), "-d", "--no-show-raw-insn", str(path)]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "__asan" in code:
        pytest.skip("this library was built with other flags, and checks each access")
    return code


def test_main_loop() -> None:
    """Of AVX-512, for whole lines: 14 pixels take 28 products, nothing is spilled.

    And no instruction that saturates sums of products is anywhere.
    """
    code = listing()
    assert not re.search(r"\b(vpmaddubsw|vpdpbusds|vpdpwssds)\b", code)
    mnemonics = re.sub(r"\{vex\} vpdpbusd", "vpdpbusd_of_vex", code)
    loops = innermost_loops(mnemonics, "vpdpbusd")
    assert max(loop.count("vpdpbusd") for loop in loops) >= 16 * 28
