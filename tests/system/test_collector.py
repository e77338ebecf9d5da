"""Full collections are put off, and the user's thresholds come back."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from threading import Barrier, Thread

import pytest

from fastres.system.collector import full_collections_later


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    gc.freeze()  # a full collection falls due when there is a quarter more than there was
    gc.collect()
    gc.set_threshold(50, 2, 2)
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def full_collections() -> int:
    """How many of the oldest generation fall due while objects are made that stay."""
    before = gc.get_stats()[2]["collections"]
    kept = [[number] for number in range(3000)]
    return int(gc.get_stats()[2]["collections"]) - int(before) if kept else 0


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="its collector has no thresholds to count")
def test_none_is_made_inside_and_young_ones_are() -> None:
    assert full_collections() > 0
    with full_collections_later():
        young = gc.get_stats()[0]["collections"]
        assert full_collections() == 0
        assert gc.get_stats()[0]["collections"] > young
    assert gc.get_threshold() == (50, 2, 2)


def test_an_error_restores_them() -> None:
    with pytest.raises(KeyError), full_collections_later():
        raise KeyError
    assert gc.get_threshold() == (50, 2, 2)


def test_threads_that_end_in_another_order_than_they_began() -> None:
    both = Barrier(2)
    first_is_out = Barrier(2)

    def first() -> None:
        with full_collections_later():
            both.wait()
        first_is_out.wait()

    def second() -> None:
        with full_collections_later():
            both.wait()
            first_is_out.wait()
            assert gc.get_threshold()[2] > 10**6

    threads = [Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert gc.get_threshold() == (50, 2, 2)
