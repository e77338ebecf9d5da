"""The simple kernels compile for real GPUs, and move 16 bytes at a time wherever channels allow."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import codegen

pytestmark = pytest.mark.campaign

NAMES = (
    *("add_relu", "scale_shift", "max_pool2d", "avg_pool2d", "global_avg_pool", "pool_linear"),
    *("to channels-last", "to NCHW", "cast"),
)


@pytest.fixture(scope="module")
def compiled() -> dict[tuple[str, ...], dict[str, Any]]:
    """What was read of each kernel, by its name and the case."""
    return {(line["name"], *line["case"]): line for line in codegen.read("simple")}


def test_budgets(compiled: Any) -> None:
    assert set(compiled) == {(name, *case) for name in NAMES for case in codegen.SIMPLE}
    assert {at: found["wrong"] for at, found in compiled.items() if found["wrong"]} == {}
    assert {at[1] for at, found in compiled.items() if found["int64"]} == {"large"}
    assert all(found["int64"] for at, found in compiled.items() if at[1] == "large")


def test_every_access_has_16_bytes(compiled: Any) -> None:
    names = ("add_relu", "scale_shift", "max_pool2d", "avg_pool2d")
    sizes = {
        at: {kind: list(found) for kind, found in compiled[at]["copies"].items()}
        for at in ((name, *case) for name in names for case in codegen.SIMPLE if case[0] != "one")
    }
    whole = {"load": ["16"], "store": ["16"]}
    assert {at: found for at, found in sizes.items() if found != whole} == {}


@pytest.mark.parametrize("target", ["sm_75", "sm_80", "sm_90", "gfx942"])
@pytest.mark.parametrize("name", ["to channels-last", "to NCHW"])
def test_transpositions_have_16_bytes_on_both_sides(name: str, target: str, compiled: Any) -> None:
    copies = compiled[(name, "layer", "fp16", target)]["copies"]
    assert list(copies["load"]) == list(copies["store"]) == ["16"]


@pytest.mark.parametrize("target", ["sm_75", "sm_80", "sm_90"])
def test_images_and_weights_of_the_classifier_have_16_bytes(target: str, compiled: Any) -> None:
    assert list(compiled["global_avg_pool", "layer", "fp16", target]["copies"]["load"]) == ["16"]
    loads = compiled["pool_linear", "layer", "fp16", target]["copies"]["load"]
    assert set(loads) == {"4", "16"} and loads["4"] == 1  # the bias
