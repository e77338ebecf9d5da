"""The AMX tiles of the compiled library, on processors without AMX too.

The library's own machine code runs. Where the processor lacks AMX, ``emulator`` does the tile
instructions as the manual says; only the hardware's following of its manual remains unproven there.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from fastres.kernels.activations import ACTIVATIONS
from fastres.runtime.native import library
from tests.support import ROOT
from tests.support.cxx import tool
from tests.support.native.awkward_cases import CASES
from tests.support.native.emulator import loaded, tile_instructions
from tests.support.native.one_convolution import Case, Result, Setting, pixels

ISA = "amx_bf16"


def run(case: Case, seed: int = 0) -> Result:
    """A case by AMX, with proof that the tile instructions were met."""
    setting = Setting(case, ISA, seed)
    with tile_instructions() as counts:
        result = setting.run(loaded())
    if not counts.hardware:
        tiles = len(case.present) // 32
        whole = sum(any(case.present[32 * i + 16 : 32 * i + 32]) for i in range(tiles))
        blocks = (tiles + whole) * case.panels
        assert counts.done["product"] == 2 * case.steps * blocks
        assert counts.done["store"] == 2 * blocks
        assert counts.done["configure"] == counts.done["release"] > 0
    return result


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_float64(case: Case) -> None:
    """Each number within the rounding of its own sum, nothing else written."""
    run(case).check()


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("before", "after"), list(itertools.product(ACTIVATIONS, ACTIVATIONS)))
def test_activations(before: str, after: str, residual: bool) -> None:
    """Every pair, on sums that reach beyond where they bend."""
    case = Case(pixels(19), channels=40, before=before, after=after, residual=residual, scale=3.0)
    result = run(case)
    result.check()
    assert np.ptp(result.expected) > 3


@pytest.mark.parametrize("after", ACTIVATIONS)
@pytest.mark.parametrize("channels", [32, 20])
def test_not_a_number_stays_where_it_is(channels: int, after: str) -> None:
    """NaN in one pixel is NaN in all its channels and in no other pixel; infinity likewise."""
    case = Case(pixels(32), channels=channels, after=after, pixel_units=64)
    setting = Setting(case, ISA)
    setting.inputs[setting.line_of(5, 0)] = setting.stored.pack(np.full(1, np.nan))
    with tile_instructions():
        result = setting.run(loaded())
    expected = np.isnan(result.expected[:, :channels])
    assert expected[5].all()
    result.check()


def test_same_as_avx512() -> None:
    """Both compute the same convolution: other tables, other order of sums, nothing else."""
    case = replace(CASES["residual"], steps=18)
    other = Setting(case, "avx512_bf16").run(loaded())
    mine = run(case)
    assert np.array_equal(mine.expected, other.expected)
    apart = np.abs(mine.values - other.values)
    assert (apart <= 2 * mine.bound).all()
    assert (apart == 0).mean() > 0.95


def test_sums_do_not_depend_on_where_a_pixel_lies() -> None:
    """The same input in both halves, and in a tile of one half: the same bits."""
    setting = Setting(Case(pixels(32), steps=5), ISA)
    setting.px[16:] = setting.px[:16]
    with tile_instructions():
        both = setting.run(loaded()).values
        setting.present[16:] = False
        one = setting.run(loaded()).values
    assert np.array_equal(both[:16], both[16:])
    assert np.array_equal(both[:16], one)


def innermost_loops(listing: str, holding: str) -> list[list[str]]:
    """Mnemonics of the smallest stretches that hold an instruction and end with a jump back.

    Raises:
        AssertionError: an instruction ``holding`` is in no such stretch.
    """
    code = re.findall(r"^\s*([0-9a-f]+):\s+([a-z0-9]+)\s*([0-9a-f]*)", listing, re.MULTILINE)
    names = [name for _, name, _ in code]
    index = {int(address, 16): i for i, (address, _, _) in enumerate(code)}
    jumps = [(i, target) for i, (_, name, target) in enumerate(code) if name[0] == "j" and target]
    starts = [(index.get(int(target, 16), i), i) for i, target in jumps]
    backwards = [range(start, end + 1) for start, end in starts if start < end]
    loops: list[range] = []
    for i, name in enumerate(names):
        if name == holding:
            around = [loop for loop in backwards if i in loop]
            assert around, f"{holding} at {code[i][0]} is in no loop"
            loops.append(min(around, key=len))
    return [names[loop.start : loop.stop] for loop in dict.fromkeys(loops)]


@pytest.mark.parametrize("product", ["tdpbf16ps", "tdpbusd"])
def test_main_loop(product: str) -> None:
    """A step is four products and four loads, of one half two and three, and nothing of vectors.

    The loop that measures the peak has eight products and loads nothing.
    """
    path = library.find()
    if path is None:
        pytest.skip("the native engine is not here")
    command = [tool("objdump"), "-d", "--no-show-raw-insn", str(path)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "__asan" in listing:
        pytest.skip("this library was built with other flags, and checks each access")
    loops = innermost_loops(listing, product)
    assert {(loop.count(product), loop.count("tileloadd")) for loop in loops} == {
        (4, 4),
        (2, 3),
        (8, 0),
    }
    for loop in loops:
        assert not [name for name in loop if name.startswith("v") or name == "tilestored"]


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("units", "sentence"), [(0, "rows without bytes"), (17, "a register that is too large")]
)
def test_software_refuses_what_the_processor_would(units: int, sentence: str) -> None:
    """A configuration that raises an exception on hardware ends the process."""
    with tile_instructions() as counts:
        if counts.hardware:
            pytest.skip("the processor has AMX")
    program = f"""
from tests.support.native.emulator import loaded, tile_instructions
from tests.support.native.one_convolution import Case, Setting, pixels
with tile_instructions():
    Setting(Case(pixels(1), units={units}), "{ISA}").run(loaded())
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert sentence in done.stderr
