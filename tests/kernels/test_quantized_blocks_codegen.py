"""Bottleneck tails and stems of int8 compile for real GPUs, to good code."""

from __future__ import annotations

from typing import Any

import pytest

from fastres.kernels.tuning.gpus import by_name
from tests.support import codegen

pytestmark = pytest.mark.campaign

EVERY = {(name, gpu) for name, case in codegen.QUANTIZED_BLOCKS.items() for gpu in case.gpus}
INSTRUCTION = {"a100": "IMMA", "l4": "IMMA", "h100": "IGMMA", "mi300x": "v_mfma_i32"}


@pytest.fixture(scope="module")
def compiled() -> dict[tuple[str, str], dict[str, Any]]:
    """What was read of each kernel, by case and GPU."""
    return {(line["name"], line["gpu"]): line for line in codegen.read("quantized_blocks")}


def test_budgets(compiled: Any) -> None:
    assert set(compiled) == EVERY
    broken = {at: _broken(at[0], at[1], found) for at, found in compiled.items()}
    assert {at: rules for at, rules in broken.items() if rules} == {}


def _broken(name: str, gpu: str, found: dict[str, Any]) -> list[str]:
    limit = by_name(gpu).architecture.shared_bytes_per_block
    kind = "stem" if "stem" in name else "bottleneck"
    holds = {
        "the kernel": found["kernel"] == f"quantized_{kind}_kernel",
        "its budgets": found["wrong"] == [],
        "no local memory": found["local"] == 0,
        "matrix units": found["matrix"]
        and all(opcode.startswith(INSTRUCTION[gpu]) for opcode in found["matrix"]),
        "shared memory": found["shared_bytes"] <= found["bound"] <= limit,
        "64 bits where needed": found["int64"] == name.endswith("past 2^31"),
    }
    return [rule for rule, is_held in holds.items() if not is_held]


def test_copies_of_16_bytes(compiled: Any) -> None:
    for name, gpu in EVERY:
        if name.startswith("width") and gpu != "mi300x":
            assert "16" in compiled[name, gpu]["copies"]["async"], (name, gpu)
