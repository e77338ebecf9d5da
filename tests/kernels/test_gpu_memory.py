"""Offsets in the arena: no two live buffers share a byte, and a wrong arena is found out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastres.runtime.triton.memory_planner import ALIGNMENT, Arena, Buffer, assign, clashes


@st.composite
def lifetimes(draw: st.DrawFn) -> Buffer:
    first = draw(st.integers(0, 30))
    return Buffer(
        draw(st.sampled_from([0, 1, 100, 256, 257, 4096, 5000]) | st.integers(0, 10_000)),
        first,
        first + draw(st.integers(0, 12)),
    )


@given(st.lists(lifetimes(), max_size=40))
def test_no_two_live_buffers_overlap(buffers: list[Buffer]) -> None:
    arena = assign(buffers)
    assert list(clashes(buffers, arena)) == []
    assert len(arena.offsets) == len(buffers)


@given(st.lists(lifetimes(), max_size=40))
def test_an_arena_is_no_larger_than_all_and_no_smaller_than_what_lives_at_once(
    buffers: list[Buffer],
) -> None:
    def aligned(nbytes: int) -> int:
        return -(-nbytes // ALIGNMENT) * ALIGNMENT

    at_once = max(
        (
            sum(aligned(b.nbytes) for b in buffers if b.first <= step <= b.last)
            for step in range(45)
        ),
        default=0,
    )
    assert at_once <= assign(buffers).nbytes <= sum(aligned(b.nbytes) for b in buffers)


@given(st.lists(lifetimes(), min_size=1, max_size=20))
def test_the_order_of_time_backwards_takes_as_much(buffers: list[Buffer]) -> None:
    mirrored = [Buffer(b.nbytes, 50 - b.last, 50 - b.first) for b in buffers]
    assert assign(mirrored) == assign(buffers)


def test_a_chain_of_layers_takes_two_buffers() -> None:
    chain = [Buffer(1000, step, step + 1) for step in range(10)]
    assert assign(chain).nbytes == 2 * 1024


def test_the_smallest_gap_is_taken() -> None:
    # Between two that live for ever lie a gap of 2048 and one of 512 bytes.
    wall, large, second, small = (
        Buffer(8192, 0, 9),
        Buffer(2048, 0, 4),
        Buffer(4096, 0, 9),
        Buffer(512, 0, 4),
    )
    late = Buffer(512, 5, 9)
    arena = assign([wall, second, large, small, late])
    assert arena.offsets[4] in (arena.offsets[2], arena.offsets[3])
    assert arena.nbytes == 8192 + 4096 + 2048 + 512


def test_nothing_needs_no_memory() -> None:
    assert assign([]) == Arena((), 0)
    assert assign([Buffer(0, 0, 3)]) == Arena((0,), 0)


@pytest.mark.parametrize(
    ("offsets", "nbytes", "found"),
    [
        ((0, 1024), 2048, []),
        ((0, 768), 2048, [(0, 1)]),
        ((0, 0), 1024, [(0, 1)]),
        ((0, 1024), 1536, [(1, 1)]),
        ((0, 1000), 2048, [(1, 1)]),
        ((-256, 1024), 2048, [(0, 0)]),
    ],
    ids=["right", "overlapping", "the same", "beyond the end", "not aligned", "before the start"],
)
def test_wrong_arenas_are_found_out(
    offsets: tuple[int, ...], nbytes: int, found: list[tuple[int, int]]
) -> None:
    alive = [Buffer(1000, 0, 3), Buffer(1000, 3, 5)]
    assert list(clashes(alive, Arena(offsets, nbytes))) == found


def test_buffers_that_never_meet_may_share() -> None:
    apart = [Buffer(1000, 0, 2), Buffer(1000, 3, 5)]
    assert list(clashes(apart, Arena((0, 0), 1024))) == []
