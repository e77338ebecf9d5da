"""Calls side by side, each on one thread: more images per second, each a little later.

A call on several threads waits for the slowest of them behind every layer. Calls that each have a
thread to themselves wait for nobody, and share the packed weights.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")

AHEAD = 2
"""Calls begun or waiting per stream: what one reads while it computes another."""


def in_streams(
    call: Callable[[Item], Answer], items: Iterable[Item], streams: int
) -> Generator[Answer, None, None]:
    """``call(item)`` for each, in order, up to ``streams`` of them at a time.

    Items are taken as calls come to an end, so that there may be any number of them. An exception
    of ``items`` or of a call ends the iteration when it is that item's turn; calls that were begun
    are waited for, then and when the iterator is closed.
    """
    pool = ThreadPoolExecutor(streams, thread_name_prefix="fastres stream")
    begun: deque[Future[Answer]] = deque()
    try:
        rest = iter(items)
        begun.extend(pool.submit(call, item) for item in itertools.islice(rest, streams * AHEAD))
        for item in rest:
            yield begun.popleft().result()
            begun.append(pool.submit(call, item))
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
