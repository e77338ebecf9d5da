"""What every test runs under: fixed seeds, poisoned fresh memory, and hypothesis's profiles."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings

from tests.support import gpu_runs, interpreter, lanes, memory

if "PYTEST_XDIST_WORKER" in os.environ:  # workers that all use all threads only wait for each other
    torch.set_num_threads(1)

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_configure(config: pytest.Config) -> None:
    """Kernels are interpreted, or compiled for a GPU: see :mod:`gpu_runs`."""
    gpu_runs.prepare(config)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Before ``-m`` selects, which it does by the marks that are set here."""
    gpu_runs.select(config, items)
    lanes.sort_into_lanes(items)


def pytest_report_header(config: pytest.Config) -> str:
    """Say how kernels are run."""
    return gpu_runs.header(config)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker says what it held at most, for the line below."""
    memory.record(session.config)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Hear it."""
    memory.collect(node)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How much memory the tests need: a worker has to do with 2 GB."""
    line = memory.summary()
    if line is not None:
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> str:
    """Where kernels run: ``cpu`` under Triton's interpreter, ``cuda`` in a run on a GPU."""
    if gpu_runs.wants_gpu(pytestconfig):
        return "cuda"
    interpreter.need()
    interpreter.install()
    return "cpu"


@pytest.fixture(autouse=True)
def memory_is_given_back() -> Iterator[None]:
    """What a test leaves behind is freed behind it, if it is much."""
    yield
    memory.give_back()


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
