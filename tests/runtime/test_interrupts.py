"""Ctrl-C in the first ``optimize`` of a process: the next one works."""

from __future__ import annotations

import sys

import pytest

from tests.support.separate import not_under_sanitizers, separately

pytestmark = [
    not_under_sanitizers,
    pytest.mark.skipif(sys.platform == "win32", reason="needs signals between processes"),
]

CODE = """
    import os, signal, sys, threading, warnings
    import torch, fastres
    from torch import nn
    warnings.simplefilter("ignore")

    def net():
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()

    x = torch.randn(2, 3, 16, 16)
    threading.Timer({after}, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        fastres.optimize(net(), x)
        print("was faster")
    except KeyboardInterrupt:
        print("interrupted")
    fast = fastres.optimize(net(), x)
    print(tuple(fast(torch.randn(1, 3, 20, 24)).shape))
"""


@pytest.mark.sampled(6)
@pytest.mark.parametrize("after", [0.1, 0.4, 0.8])
def test_the_next_one_works(after: float) -> None:
    said = separately(CODE.format(after=after)).splitlines()
    assert said[0] in ("interrupted", "was faster")
    assert said[1:] == ["(1, 8, 18, 22)"]


@pytest.mark.campaign
def test_what_is_imported_draws_no_random_numbers() -> None:
    code = """
        import torch
        from fastres.capture.imports import import_ahead
        torch.manual_seed(0)
        before = torch.get_rng_state()
        torch.set_default_dtype(torch.float64)
        import_ahead()
        print(torch.equal(before, torch.get_rng_state()), torch.get_default_dtype())
    """
    assert separately(code).split() == ["True", "torch.float64"]
