"""Captures in threads that end, before others: torch keeps something of the first one's."""

from __future__ import annotations

import pytest

from tests.support.separate import not_under_sanitizers, separately

pytestmark = [pytest.mark.campaign, not_under_sanitizers]

CODE = """
    import threading, warnings
    import torch, fastres
    from torch import nn
    warnings.simplefilter("ignore")

    def make():
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        made.append(fastres.optimize(net, torch.zeros(2, 3, 16, 16)))

    made = []
    for _ in range(2):
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
    make()
    print([tuple(fast(torch.zeros(1, 3, 9, 9)).shape) for fast in made])
"""


def test_the_first_one_in_a_thread_that_ends() -> None:
    assert separately(CODE).strip() == str([(1, 8, 7, 7)] * 3)
