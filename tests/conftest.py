"""What every test runs under: fixed seeds, poisoned fresh memory, and hypothesis's profiles."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton

import pytest
import torch
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:  # workers that all use all threads only wait for each other
    torch.set_num_threads(1)

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Each test draws the same random numbers whichever tests ran before it."""
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fill every tensor that torch allocates without initialising it with NaN.

    Under deterministic algorithms ``torch.empty`` does so by itself. Fresh pages are usually zero,
    which hides that a kernel reads what it never wrote.
    """
    algorithms = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(algorithms)
