"""The tests of the tests of uint8: each seeded fault turns small checks of it red."""

from __future__ import annotations

import pytest

from tests.native.faults import outcomes_of, untrue_texts
from tests.native.uint8_faults import FAULTS, PLANNER_FAULTS
from tests.support.cxx import needs_compiler
from tests.support.native.emulator import loaded
from tests.support.separate import not_under_sanitizers

pytestmark = [needs_compiler, not_under_sanitizers]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the checks say of each fault, and of "none"."""
    return outcomes_of("tests.native.uint8_faults", FAULTS, tmp_path_factory.mktemp("faults"))


@pytest.mark.campaign
def test_without_a_fault_the_checks_pass(outcomes: dict[str, str]) -> None:
    assert outcomes["none"] == "passed"


@pytest.mark.campaign
@pytest.mark.parametrize("name", [*(fault.name for fault in FAULTS), *PLANNER_FAULTS])
def test_a_seeded_fault_is_noticed(name: str, outcomes: dict[str, str]) -> None:
    if "avx512" in name and "avx512_vnni" not in loaded().isas:
        pytest.skip("needs a processor with avx512_vnni")
    assert outcomes[name].startswith(("noticed: ", "crashed by signal ")), outcomes[name]


def test_the_texts_that_faults_replace_are_there() -> None:
    assert untrue_texts(FAULTS) == {}
