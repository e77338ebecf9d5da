"""What runs before a commit and what is left to the campaigns, by the marks of tests."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.lanes import stride

SOME = """
import pytest

@pytest.mark.campaign
def test_long(): ...

def test_short(): ...

@pytest.mark.sampled(3)
@pytest.mark.parametrize("a", range(4))
@pytest.mark.parametrize("b", range(3))
def test_many(a, b): ...
"""


def collected(folder: Path, *options: str) -> set[str]:
    """The names of the tests that a run with these options would take."""
    (folder / "test_some.py").write_text(SOME, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider"]
    command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder)]
    command += ["-p", "tests.conftest", *options, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line}


def test_every_test_is_in_one_of_the_two_lanes(tmp_path: Path) -> None:
    plain, campaign = collected(tmp_path), collected(tmp_path, "-m", "campaign")
    everything = collected(tmp_path, "-m", "")
    assert len(everything) == 14
    assert plain | campaign == everything
    assert not plain & campaign
    assert "test_short" in plain and "test_long" in campaign
    assert len([name for name in plain if name.startswith("test_many")]) == 3


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
    assert command.split("```")[1].rstrip().endswith("pytest -n 2")
