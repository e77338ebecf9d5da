"""Bottleneck tails and stems compile for real GPUs, to good code."""

from __future__ import annotations

from typing import Any

import pytest

from fastres.kernels.spec import BottleneckSpec
from fastres.kernels.tuning.gpus import by_name
from tests.support import codegen

pytestmark = pytest.mark.campaign

EVERY = [(name, gpu) for name, case in codegen.BLOCKS.items() for gpu in case.gpus]
INSTRUCTION = {"a100": "HMMA", "h100": "HGMMA", "mi300x": "v_mfma"}


@pytest.fixture(scope="module")
def compiled() -> dict[tuple[str, str], dict[str, Any]]:
    """What was read of each kernel, by case and GPU."""
    return {(line["name"], line["gpu"]): line for line in codegen.read("blocks")}


def test_budgets(compiled: Any) -> None:
    assert set(compiled) == set(EVERY)
    broken = {at: _broken(at[0], at[1], found) for at, found in compiled.items()}
    broken = {at: rules for at, rules in broken.items() if rules}
    assert broken == {}


def _broken(name: str, gpu: str, found: dict[str, Any]) -> list[str]:
    block = isinstance(codegen.BLOCKS[name].spec, BottleneckSpec)
    limit = by_name(gpu).architecture.shared_bytes_per_block
    holds = {
        "the kernel": found["kernel"] == ("bottleneck_kernel" if block else "stem_kernel"),
        "its budgets": found["wrong"] == [],
        # where groups share chunks the budget is of bytes, in the line above
        "no local memory": found["local"] == 0 or found["together"] > 1,
        "matrix units": found["matrix"]
        and all(opcode.startswith(INSTRUCTION[gpu]) for opcode in found["matrix"]),
        "shared memory": found["shared_bytes"] <= found["bound"] <= limit,
        "64 bits where needed": found["int64"] == (name == "past 2^31"),
    }
    return [rule for rule, is_held in holds.items() if not is_held]


def test_groups_share_chunks(compiled: Any) -> None:
    """So that every kernel judged above holds the loop for tiles with NaN; and there are enough."""
    grouped = {at: found["together"] for at, found in compiled.items() if "ResNeXt" in at[0]}
    assert set(grouped.values()) == {8, 16}
    for precision in ("fp16", "bf16", "tf32"):
        for gpu in ("a100", "h100"):
            assert len([at for at in grouped if at[0].endswith(precision) and at[1] == gpu]) >= 4
    assert all(found["together"] == 1 for at, found in compiled.items() if at not in grouped)


def test_copies_of_16_bytes(compiled: Any) -> None:
    """Activations and weights; biases, read as the sums lie, come in smaller pieces."""
    for name, gpu in [at for at in EVERY if at[0].startswith("width")]:
        copies = compiled[name, gpu]["copies"]
        if gpu == "mi300x":
            assert set(copies["load"]) <= {"4", "8", "16"}, name
            continue
        assert set(copies["async"]) <= {"4", "16"}, (name, gpu)
        assert copies["async"].get("4", 0) <= 2, (name, gpu)  # the expansion's bias, a block ahead
        assert set(copies["store"]) == {"16"}, (name, gpu)


@pytest.mark.parametrize("gpu", ["a100", "h100"])
def test_the_stem_copies_as_much_at_once_as_its_rows_allow(gpu: str, compiled: Any) -> None:
    assert max(map(int, compiled["stem", gpu]["copies"]["store"])) == 16
    three, four = (compiled[name, gpu]["copies"] for name in ("stem", "stem of four channels"))
    assert "2" not in three.get("load", {})
    assert "4" in three["async"]
    assert "2" not in four.get("load", {})
    assert "4" not in four["async"]
    assert "8" in four["async"]
