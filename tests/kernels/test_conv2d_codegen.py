"""Convolutions of awkward shapes compile for real GPUs, to good code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import codegen_convolutions
import pytest

EVERY = [
    (name, architecture)
    for name, (_, config, _) in codegen_convolutions.CONVOLUTIONS.items()
    for architecture in codegen_convolutions.targets(config)
]


@pytest.fixture(scope="module")
def compiled() -> dict[tuple[str, str], list[dict[str, Any]]]:
    """What was read of each convolution's kernels, by name and architecture."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(Path(codegen_convolutions.__file__))],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in map(json.loads, done.stdout.splitlines()):
        found.setdefault((line["name"], line["architecture"]), []).append(line)
    return found


@pytest.mark.parametrize(("name", "architecture"), EVERY)
def test_budgets(name: str, architecture: str, compiled: Any) -> None:
    kernels = compiled[name, architecture]
    config = codegen_convolutions.CONVOLUTIONS[name][1]
    expected = ["pointwise_kernel" if config.descriptors else "conv2d_kernel"]
    if "split" in name or name == "one pixel":
        expected.append("sum_of_splits_kernel")
    assert [each["kernel"] for each in kernels] == expected
    assert [each["wrong"] for each in kernels] == [[]] * len(kernels)
    instruction = "HMMA" if architecture == "sm_80" else "HGMMA"
    assert all(opcode.startswith(instruction) for opcode in kernels[0]["matrix"])
    assert kernels[0]["matrix"]


@pytest.mark.parametrize(("name", "architecture"), [each for each in EVERY if "sum in" in each[0]])
def test_all_warps_store_before_one_counts_and_the_last_reads_past_the_cache(
    name: str, architecture: str, compiled: Any
) -> None:
    (kernel,) = compiled[name, architecture]
    assert re.search(r"sb+cb+l+s+$", kernel["order"])
    assert kernel["order"].count("c") == 1


def test_descriptors_are_the_hardware_s_own(compiled: Any) -> None:
    for name in ("descriptors", "descriptors, tf32"):
        (kernel,) = compiled[name, "sm_90"]
        assert kernel["copies"]["descriptor"]
        assert "async" not in kernel["copies"]


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("name", ["partial tiles", "partial tiles, tf32", "past 2^31"])
def test_copies_of_16_bytes(name: str, architecture: str, compiled: Any) -> None:
    """Channels that come in 16 bytes are copied so, partial tiles, padding and all."""
    assert set(compiled[name, architecture][0]["copies"]["async"]) == {"16"}
