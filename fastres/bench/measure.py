"""Timing several callables against each other, and what their times say.

On a shared machine the clock rate, the neighbours and the caches change by the second, so two
programs timed one after the other cannot be compared. Here they take turns, call by call: every
round calls each of them once, in an order that a seeded generator shuffles anew, and what is
compared is the ratio of the two times within one round. The median of these ratios with its
quartiles says how much faster one is and how sure that is.

Turns need a pause. Thread pools keep spinning after a call, in case of another: on two processors
GNU's OpenMP (all of torch) takes 10 ms of processor time after each call, ONNX Runtime 32 ms, and
whoever comes next with a pool of its own would have to share its cores with them.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from fastres.errors import OptionError

__all__ = [
    "PairedRatio",
    "Plan",
    "Summary",
    "interleave",
    "paired_ratio",
    "percentile",
    "summarise",
]

Clock = Callable[[], int]

_POLL_SECONDS = 0.002  # seconds between two looks at the process
_IDLE_LOAD = 0.1  # of a processor: waking up and looking takes 1 to 2 %


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Attributes:
        seconds: stop after the first round that ends later than this (warm-up not counted) ...
        min_rounds: ... but not before so many rounds ...
        max_rounds: ... and never after more than so many.
        warmup: rounds whose times are thrown away.
        settle: wait before each call until this process's threads are idle, at most so many
            seconds.
        seed: of the generator that shuffles each round's order.

    Raises:
        OptionError: a negative number, or fewer rounds at most than at least.
    """

    seconds: float = 10.0
    min_rounds: int = 10
    max_rounds: int = 10_000
    warmup: int = 3
    settle: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.seconds >= 0 and math.isfinite(self.seconds)):
            raise OptionError(f"seconds={self.seconds}: expected a finite number, at least 0")
        if not self.settle >= 0:
            raise OptionError(f"settle={self.settle}: expected seconds, at least 0")
        if self.warmup < 0:
            raise OptionError(f"warmup={self.warmup}: expected a number of rounds, at least 0")
        if not 1 <= self.min_rounds <= self.max_rounds:
            raise OptionError(
                f"min_rounds={self.min_rounds}, max_rounds={self.max_rounds}: expected at least 1 "
                "and at least as many"
            )


@dataclass(frozen=True)
class Summary:
    """A peer's times, summarised.

    Attributes:
        rounds: how many there are.
        p50_ns, p99_ns, min_ns: nanoseconds per call: median, 99th percentile, shortest.
    """

    rounds: int
    p50_ns: float
    p99_ns: float
    min_ns: int


@dataclass(frozen=True)
class PairedRatio:
    """How many times as fast as the reference, over the rounds they shared.

    Attributes:
        median: of the reference's time divided by the peer's in the same round; 2.0 is twice
            as fast.
        low, high: the ratios' first and third quartile.
    """

    median: float
    low: float
    high: float


def interleave(
    calls: Mapping[str, Callable[[], object]],
    plan: Plan | None = None,
    *,
    clock: Clock = time.perf_counter_ns,
    on_round: Callable[[int, float], None] | None = None,
) -> dict[str, list[int]]:
    """Time the callables in turns.

    The garbage collector is off while the clock runs, and results are dropped when it has stopped.

    Args:
        calls: what to time, by name.
        plan: how long to measure; None for the defaults.
        clock: nanoseconds from an arbitrary start, never going back.
        on_round: called between rounds with how many are done and the fraction of the work that is.

    Returns:
        Nanoseconds per call under each name; the values at one index are from one round.

    Raises:
        OptionError: there is nothing to time.
    """
    plan = plan or Plan()
    if not calls:
        raise OptionError("interleave() got no callables; at least one is needed")
    names = list(calls)
    samples: dict[str, list[int]] = {name: [] for name in names}
    shuffler = random.Random(plan.seed)

    def one_round() -> None:
        for name in shuffler.sample(names, len(names)):
            call = calls[name]
            _wait_until_idle(plan.settle)
            start = clock()
            output = call()
            stop = clock()
            del output
            samples[name].append(stop - start)

    with _no_garbage_collection():
        for _ in range(plan.warmup):
            one_round()
        for times in samples.values():
            times.clear()
        began = clock()
        for done in range(1, plan.max_rounds + 1):
            one_round()
            elapsed = (clock() - began) / 1e9
            if on_round is not None:
                by_time = elapsed / plan.seconds if plan.seconds else 1.0
                by_rounds = done / plan.min_rounds
                on_round(done, min(1.0, by_time, by_rounds))
            if elapsed >= plan.seconds and done >= plan.min_rounds:
                break
    return samples


def percentile(values: Sequence[float], q: float) -> float:
    """The ``q``-th percentile, 0 to 100, linear between the two nearest values.

    Raises:
        ValueError: no values, or ``q`` outside 0 to 100.
    """
    if not values:
        raise ValueError("no values to take a percentile of")
    if not 0 <= q <= 100:
        raise ValueError(f"q={q}: expected a percentage, 0 to 100")
    ordered = sorted(values)
    position = (len(ordered) - 1) * q / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def summarise(samples_ns: Sequence[int]) -> Summary:
    """Reduce one peer's times.

    Raises:
        ValueError: there are no times.
    """
    return Summary(
        rounds=len(samples_ns),
        p50_ns=percentile(samples_ns, 50),
        p99_ns=percentile(samples_ns, 99),
        min_ns=min(samples_ns),
    )


def paired_ratio(reference_ns: Sequence[int], peer_ns: Sequence[int]) -> PairedRatio:
    """Compare two peers round by round.

    Args:
        reference_ns, peer_ns: times from the same rounds, in the same order, as `interleave`
            gives them.

    Raises:
        ValueError: not equally many times, none at all, or a peer's that is not positive.
    """
    if len(reference_ns) != len(peer_ns):
        raise ValueError(
            f"{len(reference_ns)} times and {len(peer_ns)}: expected one of each per round"
        )
    if peer_ns and min(peer_ns) <= 0:
        raise ValueError("a call that took no time at all has no ratio; the clock is too coarse")
    ratios = [reference / peer for reference, peer in zip(reference_ns, peer_ns, strict=True)]
    return PairedRatio(*(percentile(ratios, q) for q in (50, 25, 75)))


def _wait_until_idle(seconds: float) -> None:
    """Sleep until no thread of this process runs any more, at most for ``seconds``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        before = time.process_time_ns()
        time.sleep(_POLL_SECONDS)
        if time.process_time_ns() - before < _IDLE_LOAD * _POLL_SECONDS * 1e9:
            break


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect garbage now, and not while the clock runs; the setting is restored afterwards."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
