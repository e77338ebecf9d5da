"""Which tests run before a commit, and which are left to the campaigns.

``pytest`` leaves out what is marked ``campaign`` (``addopts`` in pyproject.toml); ``pytest -m
campaign`` runs the rest, and ``pytest -m ""`` everything. Where a test has many cases of one kind,
the mark ``sampled(n)`` keeps every n-th of them before a commit and leaves the others to the
campaigns.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import pytest


def sort_into_lanes(items: Sequence[pytest.Item]) -> None:
    """Mark the cases of tests marked ``sampled`` that are left to the campaigns."""
    cases: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("sampled") is not None:
            cases[item.nodeid.partition("[")[0]].append(item)
    for of_one_test in cases.values():
        marker = of_one_test[0].get_closest_marker("sampled")
        assert marker is not None
        every = stride(len(of_one_test), *marker.args)
        for position, item in enumerate(of_one_test):
            if position % every:
                item.add_marker("campaign")


def stride(cases: int, at_least: int) -> int:
    """The distance between cases that run before a commit.

    It has no divisor in common with the number of cases, which is the product of the numbers of
    values that the parameters have. So the chosen cases do not meet the same value of an inner
    parameter again and again, as every fourth case of three times four would.
    """
    every = at_least
    while math.gcd(every, cases) > 1:
        every += 1
    return every
