"""The tests of the native engine's tests: each seeded fault turns small checks of it red."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.native.faults import (
    FAULTS,
    PLANNER_FAULTS,
    Fault,
    compiled,
    outcomes_of,
    untrue_texts,
)
from tests.support.cxx import needs_compiler
from tests.support.native.emulator import loaded
from tests.support.separate import not_under_sanitizers

pytestmark = [needs_compiler, not_under_sanitizers]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the checks say of each fault, and of "none"."""
    return outcomes_of("tests.native.faults", FAULTS, tmp_path_factory.mktemp("faults"))


@pytest.mark.campaign
def test_without_a_fault_the_checks_pass(outcomes: dict[str, str]) -> None:
    assert outcomes["none"] == "passed"


@pytest.mark.campaign
@pytest.mark.parametrize("name", [*(fault.name for fault in FAULTS), *PLANNER_FAULTS])
def test_a_seeded_fault_is_noticed(name: str, outcomes: dict[str, str]) -> None:
    needed = {"winograd": "avx512", "_avx512": "avx512", "pairs": "bf16"}
    for part, isa in needed.items():
        if part in name and not any(isa in known for known in loaded().isas):
            pytest.skip(f"needs a processor with {isa}")
    assert outcomes[name].startswith(("noticed: ", "crashed by signal ")), outcomes[name]


def test_the_texts_that_faults_replace_are_there() -> None:
    """Told before a commit, not by the campaigns."""
    assert untrue_texts(FAULTS) == {}


def test_a_fault_whose_text_is_gone_is_an_error(tmp_path: Path) -> None:
    gone = Fault("numbers.h", "nothing", "no such text", "", ("features.cpp",))
    with pytest.raises(AssertionError, match=r"found 0 times in numbers\.h"):
        compiled([gone], tmp_path)
