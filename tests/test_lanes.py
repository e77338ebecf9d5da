"""What runs before a commit and what is left to the campaigns, by the marks of tests."""

from __future__ import annotations

import itertools
import re

import pytest

from tests.support import ROOT
from tests.support.lanes import sort_into_lanes, stride


def test_a_plain_run_leaves_out_the_campaigns_alone(pytestconfig: pytest.Config) -> None:
    options = pytestconfig.getini("addopts")
    assert options[options.index("-m") + 1] == "not campaign"


def test_every_case_is_in_one_of_the_two_lanes(request: pytest.FixtureRequest) -> None:
    class Case(pytest.Item):
        def runtest(self) -> None:
            raise NotImplementedError

    def case(name: str, *marks: pytest.MarkDecorator) -> pytest.Item:
        item: pytest.Item = Case.from_parent(request.node.parent, name=name)
        for mark in marks:
            item.add_marker(mark)
        return item

    many = [case(f"many[{a}-{b}]", pytest.mark.sampled(3)) for a in range(3) for b in range(4)]
    others = [case("short"), case("long", pytest.mark.campaign), case("other[0]")]
    sort_into_lanes([*many, *others])
    lanes = [item.name for item in [*many, *others] if not item.get_closest_marker("campaign")]
    assert lanes == ["many[0-0]", "many[1-1]", "many[2-2]", "short", "other[0]"]


@pytest.mark.parametrize("sizes", [(4,), (3, 4), (2, 3, 5), (6, 6), (97,)])
@pytest.mark.parametrize("at_least", [2, 3, 4, 5, 8])
def test_chosen_cases_run_through_the_values_of_the_innermost_parameter(
    sizes: tuple[int, ...], at_least: int
) -> None:
    cases = list(itertools.product(*map(range, sizes)))
    every = stride(len(cases), at_least)
    assert every >= at_least
    chosen = cases[::every]
    innermost = {case[-1] for case in chosen}
    assert len(innermost) == min(sizes[-1], len(chosen))


def test_ci_runs_both_lanes_and_the_one_of_contributors_last() -> None:
    """What reads its output takes the last line, pytest's closing one."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert script.index("$tests -m campaign") < script.index('step "tests"')
    assert script.rstrip().endswith('$tests"')
    command = (ROOT / "README.md").read_text(encoding="utf-8").partition("<!-- ci: tests -->")[2]
    assert re.match(r"\n```bash\n.*pytest -n 2\n```", command)
