"""Convolutions of awkward shapes compile for real GPUs, to good code."""

from __future__ import annotations

import re
from typing import Any

import pytest

from fastres.kernels.tuning.cost import loop_instructions
from fastres.kernels.tuning.gpus import ARCHITECTURES
from fastres.system.versions import descriptors_round
from tests.support import codegen

pytestmark = pytest.mark.campaign

EVERY = [
    (name, architecture)
    for name, (_, config, _) in codegen.CONVOLUTIONS.items()
    for architecture in codegen.targets(config)
]
BOXES = [name for name, (_, config, _) in codegen.CONVOLUTIONS.items() if config.box_w]


@pytest.fixture(scope="module")
def compiled() -> dict[tuple[str, str], list[dict[str, Any]]]:
    """What was read of each convolution's kernels, by name and architecture."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in codegen.read("convolutions"):
        found.setdefault((line["name"], line["architecture"]), []).append(line)
    return found


def test_budgets(compiled: Any) -> None:
    assert set(compiled) == set(EVERY)
    broken = {at: _broken(at[0], at[1], found) for at, found in compiled.items()}
    broken = {at: rules for at, rules in broken.items() if rules}
    assert broken == {}


def _broken(name: str, architecture: str, kernels: list[dict[str, Any]]) -> list[str]:
    config = codegen.CONVOLUTIONS[name][1]
    by_descriptor = "tiled_conv2d_kernel" if config.box_w else "pointwise_kernel"
    expected = [by_descriptor if config.descriptors else "conv2d_kernel"]
    if "split" in name or name == "one pixel":
        expected.append("sum_of_splits_kernel")
    instruction = "HMMA" if architecture == "sm_80" else "HGMMA"
    opcodes = kernels[0]["matrix"]
    holds = {
        "the kernels": [each["kernel"] for each in kernels] == expected,
        "their budgets": [each["wrong"] for each in kernels] == [[]] * len(kernels),
        "matrix units": opcodes and all(opcode.startswith(instruction) for opcode in opcodes),
    }
    return [rule for rule, is_held in holds.items() if not is_held]


@pytest.mark.parametrize(("name", "architecture"), [each for each in EVERY if "sum in" in each[0]])
def test_all_warps_store_before_one_counts_and_the_last_reads_past_the_cache(
    name: str, architecture: str, compiled: Any
) -> None:
    (kernel,) = compiled[name, architecture]
    assert re.search(r"sb+cb+l+s+$", kernel["order"])
    assert kernel["order"].count("c") == 1


def test_descriptors_are_the_hardware_s_own(compiled: Any) -> None:
    for name in ("descriptors", "descriptors, tf32", *BOXES):
        (kernel,) = compiled[name, "sm_90"]
        assert kernel["copies"]["descriptor"]
        assert "async" not in kernel["copies"]


def test_boxes_are_multiplied_where_they_were_copied_to(compiled: Any) -> None:
    """No step reads them into registers, where Triton can round to TF32 while it copies.

    Nor weights, where all of a step's channels are of one tap.
    """
    for name in BOXES:
        spec, config, _ = codegen.CONVOLUTIONS[name]
        loop = compiled[name, "sm_90"][0]["loop"]
        if spec.c % config.block_k == 0 and (descriptors_round() or "tf32" not in name):
            assert not {"shared", "float", "local"} & set(loop), name


def test_boxes_take_fewer_instructions_for_addresses(compiled: Any) -> None:
    (pointers,), (boxes,) = (
        compiled[f"a layer by {way}", "sm_90"] for way in ("pointers", "boxes")
    )
    assert boxes["integer"] < 0.8 * pointers["integer"]
    assert boxes["loop"]["integer"] < 0.9 * pointers["loop"]["integer"]
    assert sum(boxes["loop"].values()) < 0.9 * sum(pointers["loop"].values())
    others = sum(boxes["loop"].values()) - boxes["loop"]["tensor"]
    modelled = loop_instructions(
        ARCHITECTURES["sm_90"], (128, 128, 64), 2, 8, gathered=True, descriptors=True
    )
    assert 0.8 < modelled / others < 1.25


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("name", ["partial tiles", "partial tiles, tf32", "past 2^31"])
def test_copies_of_16_bytes(name: str, architecture: str, compiled: Any) -> None:
    """Channels that come in 16 bytes are copied so, partial tiles, padding and all."""
    assert set(compiled[name, architecture][0]["copies"]["async"]) == {"16"}
