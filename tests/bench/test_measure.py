"""Timing in turns with a clock of our own, and the statistics with numbers of our own."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable

import numpy as np
import pytest

from fastres.bench import measure
from fastres.bench.measure import Plan
from fastres.errors import OptionError


class Clock:
    """Shows what it was advanced to, in nanoseconds."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def taking(self, nanoseconds: int) -> Callable[[], None]:
        """A callable that takes so long."""

        def call() -> None:
            self.now += nanoseconds

        return call


def test_each_call_gets_its_own_time() -> None:
    clock = Clock()
    calls = {"slow": clock.taking(300), "fast": clock.taking(100)}
    times = measure.interleave(calls, Plan(seconds=0, min_rounds=4), clock=clock)
    assert times == {"slow": [300] * 4, "fast": [100] * 4}


def test_every_round_calls_everybody_once_in_changing_order() -> None:
    clock = Clock()
    log: list[str] = []

    def named(name: str) -> Callable[[], None]:
        return lambda: log.append(name)

    calls = {name: named(name) for name in "abcd"}
    measure.interleave(calls, Plan(seconds=0, min_rounds=50, warmup=0), clock=clock)
    rounds = [tuple(log[i : i + 4]) for i in range(0, len(log), 4)]
    assert len(rounds) == 50
    assert all(sorted(one) == list("abcd") for one in rounds)
    assert len(set(rounds)) > 12, "the order should change from round to round"
    firsts = [one[0] for one in rounds]
    assert all(firsts.count(name) >= 5 for name in "abcd")


@pytest.mark.campaign
def test_the_seed_decides_the_order() -> None:
    def order(seed: int) -> list[str]:
        log: list[str] = []
        calls: dict[str, Callable[[], None]] = {
            "a": lambda: log.append("a"),
            "b": lambda: log.append("b"),
        }
        measure.interleave(calls, Plan(seconds=0, min_rounds=20, seed=seed), clock=Clock())
        return log

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_warmup_is_called_but_not_kept() -> None:
    clock = Clock()
    durations = iter([1_000_000, 1_000_000, 10, 10, 10])

    def call() -> None:
        clock.now += next(durations)

    plan = Plan(seconds=0, min_rounds=3, warmup=2)
    assert measure.interleave({"it": call}, plan, clock=clock) == {"it": [10, 10, 10]}


def test_warmup_does_not_use_up_the_time() -> None:
    clock = Clock()
    plan = Plan(seconds=1, min_rounds=1, warmup=5)
    times = measure.interleave({"it": clock.taking(300_000_000)}, plan, clock=clock)
    assert len(times["it"]) == 4  # the first to end at or after a second


def test_at_least_the_least_rounds_at_most_the_most() -> None:
    clock = Clock()
    slow = {"it": clock.taking(10**12)}
    assert len(measure.interleave(slow, Plan(seconds=1, min_rounds=7), clock=clock)["it"]) == 7
    fast = {"it": clock.taking(1)}
    plan = Plan(seconds=1, min_rounds=1, max_rounds=9)
    assert len(measure.interleave(fast, plan, clock=clock)["it"]) == 9


def test_results_are_dropped_after_the_clock_has_stopped() -> None:
    clock = Clock()

    class Result:
        def __del__(self) -> None:
            clock.now += 5_000

    def call() -> Result:
        clock.now += 10
        return Result()

    times = measure.interleave({"it": call}, Plan(seconds=0, min_rounds=3), clock=clock)
    assert times["it"] == [10, 10, 10]


@pytest.mark.parametrize("on", [True, False])
def test_no_garbage_collection_while_timing(on: bool) -> None:
    seen: list[bool] = []
    before = gc.isenabled()
    try:
        (gc.enable if on else gc.disable)()
        measure.interleave({"it": lambda: seen.append(gc.isenabled())}, Plan(0, 2))
        assert gc.isenabled() is on
    finally:
        (gc.enable if before else gc.disable)()
    assert not any(seen)


def test_an_exception_passes_and_garbage_is_collected_again() -> None:
    def fails() -> None:
        raise ZeroDivisionError

    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        measure.interleave({"it": fails}, Plan(0, 1))
    assert gc.isenabled()


def test_progress_ends_at_one() -> None:
    clock = Clock()
    told: list[tuple[int, float]] = []
    measure.interleave(
        {"it": clock.taking(250_000_000)},
        Plan(seconds=1, min_rounds=6),
        clock=clock,
        on_round=lambda done, part: told.append((done, part)),
    )
    assert [done for done, _ in told] == [1, 2, 3, 4, 5, 6]
    parts = [part for _, part in told]
    assert parts == sorted(parts)
    assert parts[0] < 0.2
    assert parts[-1] == 1.0


def test_a_call_waits_until_the_threads_of_the_last_one_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thread that spins for a while after a call, as pools do, is not there during the next.

    The thread and its processor are made up: a real one may itself have to wait for a processor.
    """
    spins, used = [0.0], [0.0]  # seconds that it still spins, and those that it has had
    seen: list[bool] = []

    def sleep(seconds: float) -> None:
        took = min(seconds, spins[0])
        spins[0] -= took
        used[0] += took

    def pool() -> None:
        spins[0] = 0.03

    def other() -> None:
        seen.append(spins[0] > 0)

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "process_time_ns", lambda: int(used[0] * 1e9))
    measure.interleave({"pool": pool, "other": other}, Plan(0, 5, settle=10))
    assert len(seen) >= 5
    assert not any(seen)

    def endless() -> None:
        spins[0] = 1e9

    started = time.monotonic()
    measure.interleave({"pool": endless}, Plan(0, 2, warmup=0, settle=0.005))
    assert time.monotonic() - started < 5, "no longer than asked for"


def test_nothing_to_time() -> None:
    with pytest.raises(OptionError, match="at least one is needed"):
        measure.interleave({})


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"seconds": -1}, "seconds=-1"),
        ({"seconds": float("nan")}, "seconds=nan"),
        ({"seconds": float("inf")}, "seconds=inf"),
        ({"warmup": -1}, "warmup=-1"),
        ({"settle": -1}, "settle=-1"),
        ({"min_rounds": 0}, "min_rounds=0"),
        ({"min_rounds": 5, "max_rounds": 4}, "max_rounds=4"),
    ],
)
def test_plans_that_cannot_be(wrong: dict[str, float], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        Plan(**wrong)  # type: ignore[arg-type] # they are what is tested


def test_percentiles_are_numpys() -> None:
    wrong = []
    for count in (1, 2, 3, 10, 101):
        values = [random.expovariate(1.0) for _ in range(count)]
        for q in (0, 1, 25, 50, 75, 99, 100):
            theirs = float(np.percentile(values, q))
            if measure.percentile(values, q) != pytest.approx(theirs):
                wrong.append((count, q))
    assert wrong == []


def test_percentiles_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="no values"):
        measure.percentile([], 50)
    with pytest.raises(ValueError, match="q=101"):
        measure.percentile([1], 101)


def test_summary() -> None:
    summary = measure.summarise([5, 1, 3, 2, 4])
    assert (summary.rounds, summary.p50_ns, summary.min_ns) == (5, 3, 1)
    assert summary.p99_ns == pytest.approx(4.96)


def test_what_slows_a_whole_round_down_cancels() -> None:
    weather = [random.uniform(1, 50) for _ in range(200)]
    reference = [round(3_000_000 * factor) for factor in weather]
    contender = [round(2_000_000 * factor) for factor in weather]
    random.shuffle(unpaired := list(contender))
    paired = measure.paired_ratio(reference, contender)
    assert paired.median == pytest.approx(1.5, rel=1e-5)
    assert paired.high - paired.low < 1e-4
    loose = measure.paired_ratio(reference, unpaired)
    assert loose.high - loose.low > 0.5, "without pairs the same times say little"


def test_the_spread_is_the_quartiles_of_the_ratios() -> None:
    ratio = measure.paired_ratio([100, 200, 300, 400, 500], [100] * 5)
    assert ratio == measure.PairedRatio(median=3.0, low=2.0, high=4.0)


@pytest.mark.parametrize(
    ("reference", "contender", "says"),
    [([1], [1, 2], "one of each"), ([], [], "no values"), ([1], [0], "no time at all")],
)
def test_ratios_that_do_not_exist(reference: list[int], contender: list[int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        measure.paired_ratio(reference, contender)
