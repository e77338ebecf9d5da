"""The two ways to run kernels in tests: interpreted on the CPU, or compiled on a GPU.

One process does one of them, because Triton decides for each kernel when it is defined:

- ``pytest`` interprets kernels (``TRITON_INTERPRET=1``) and leaves out tests marked ``gpu``;
- ``pytest -m gpu`` compiles them, and runs every test that takes the fixture ``device`` and every
  test marked ``gpu``. Where torch sees no CUDA device it is an error of one sentence, not a run
  that passes by skipping everything.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import pytest
import torch

NO_GPU = (
    "-m gpu: torch sees no CUDA device here, so nothing can be tested on one; "
    "run pytest without -m gpu, which interprets the kernels on the CPU"
)


def wants_gpu(config: pytest.Config) -> bool:
    """Whether ``-m`` asks for the tests marked ``gpu``."""
    return re.search(r"(?<!not )\bgpu\b", config.getoption("markexpr", "")) is not None


def prepare(config: pytest.Config) -> None:
    """Decide between interpreter and compiler, before anything defines a kernel."""
    if not wants_gpu(config):
        os.environ["TRITON_INTERPRET"] = "1"
        return
    if not torch.cuda.is_available():
        raise pytest.UsageError(NO_GPU)
    os.environ.pop("TRITON_INTERPRET", None)
    # What cuBLAS needs for the deterministic algorithms under which fresh memory is poisoned.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def select(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that run on a GPU in such a run; leave those for one out of other runs."""
    if wants_gpu(config):
        for item in items:
            if "device" in fixtures(item):
                item.add_marker("gpu")
        return
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def fixtures(item: pytest.Item) -> Sequence[str]:
    """The names of all fixtures that a test uses."""
    names: Sequence[str] = getattr(item, "fixturenames", ())
    return names


def header(config: pytest.Config) -> str:
    """One line for the report's head."""
    if wants_gpu(config):
        return f"kernels: compiled for and run on {torch.cuda.get_device_name()}"
    return "kernels: interpreted on the CPU; pytest -m gpu runs them on a GPU"
