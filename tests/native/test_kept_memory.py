"""What stays between calls: bounded by bytes over all shapes, and given up for others."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import psutil
import pytest
import torch
from torch import nn

import fastres
from fastres.runtime.native.library import LEAST_KEPT, Library, let_go
from tests.support.native.emulator import loaded
from tests.support.separate import not_under_sanitizers, separately

pytestmark = not_under_sanitizers
MIB = 2**20


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1)).eval()


def resident() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


@pytest.fixture
def library() -> Iterator[Library]:
    library = loaded()
    library.let_go()
    yield library
    library.keep(LEAST_KEPT)


def test_many_shapes_keep_no_more_than_the_bound(library: Library) -> None:
    """An arena takes about 20 MiB here."""
    library.keep(50 * MIB)
    fast = fastres.optimize(network(), torch.zeros(1, 3, 32, 32), engine="native", threads=1)
    before = resident()
    for size in range(256, 272):
        fast(torch.zeros(1, 3, 256, size))
    assert resident() - before < 100 * MIB
    assert 0 < library.let_go() <= 50 * MIB
    assert library.let_go() == 0


def test_the_last_ones_are_kept(library: Library) -> None:
    library.keep(60 * MIB)
    fast = fastres.optimize(network(), torch.zeros(1, 3, 32, 32), engine="native", threads=1)
    for size in (256, 320, 288, 256):
        fast(torch.zeros(1, 3, 256, size))
    first = library.let_go()
    fast(torch.zeros(1, 3, 256, 256))
    alone = library.let_go()
    assert 0 < alone < first <= 60 * MIB


def test_what_is_larger_than_the_bound_goes_back_at_once(library: Library) -> None:
    library.keep(8 * MIB)
    fast = fastres.optimize(network(), torch.zeros(1, 3, 32, 32), engine="native", threads=1)
    large = torch.randn(1, 3, 900, 900)
    wanted = fast(large)
    before = resident()
    torch.testing.assert_close(fast(large), wanted, rtol=0, atol=0)
    assert resident() - before < 20 * MIB
    assert library.let_go() <= 8 * MIB


def test_plans_that_go_take_theirs_along(library: Library) -> None:
    fast = fastres.optimize(network(), torch.zeros(1, 3, 64, 64), engine="native", threads=2)
    fast(torch.zeros(5, 3, 64, 64))
    del fast
    gc.collect()
    assert not let_go()


@pytest.mark.campaign
def test_it_is_given_up_before_memory_is_refused() -> None:
    """Under a limit of address space that what is kept would exceed together with a new shape."""
    loaded()
    code = """
        import resource, torch, fastres, warnings
        from tests.native.test_kept_memory import network
        from tests.support.native.emulator import loaded
        loaded().keep(1 << 40)
        fast = fastres.optimize(network(), torch.zeros(1, 3, 32, 32), engine="native", threads=1)
        fast(torch.zeros(1, 3, 1500, 1500))
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + (300 << 20),) * 2)
        print(fast(torch.zeros(1, 3, 1500, 1504)).shape)
    """
    assert separately(code).split() == ["torch.Size([1,", "32,", "1,", "1])"]
