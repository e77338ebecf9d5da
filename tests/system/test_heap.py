"""Freed memory goes back to the system when it is asked for."""

from __future__ import annotations

import platform

import pytest

from tests.support.separate import separately

CODE = """
import psutil
from fastres.system.heap import give_back

def resident():
    return psutil.Process().memory_info().rss / 2**20

blocks = [bytes(100_000) for _ in range(1000)]  # each too small for a mapping of its own
last = blocks[-1]
del blocks
freed = resident()
give_back()
print(freed - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what was freed")
def test_freed_memory_goes_back() -> None:
    assert float(separately(CODE)) > 50  # MiB, of 95
