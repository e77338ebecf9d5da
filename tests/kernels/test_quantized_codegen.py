"""int8's kernels compile for real GPUs: matrix units, no local memory, every rounding its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.support import codegen

pytestmark = pytest.mark.campaign

PREFIX = {"sm_80": "IMMA", "sm_89": "IMMA", "sm_90": "IGMMA", "gfx942": "v_mfma_i32"}


@pytest.fixture(scope="module")
def compiled() -> list[dict[str, Any]]:
    """What was read of each launch."""
    return codegen.read("quantized")


def test_every_case_is_within_its_budgets(compiled: Any) -> None:
    simple = codegen.quantized_simple_calls()
    wanted = {
        (name, target)
        for name, (_, config, *_) in codegen.QUANTIZED.items()
        for target in codegen.quantized_targets(config)
    } | {(name, target) for name in simple for target in codegen.QUANTIZED_TARGETS}
    assert {(line["name"], line["architecture"]) for line in compiled} == wanted
    broken = {(line["name"], line["architecture"]): line["wrong"] for line in compiled}
    assert {at: rules for at, rules in broken.items() if rules} == {}


def test_products_are_on_matrix_units(compiled: Any) -> None:
    for line in compiled:
        if line["kernel"].startswith(("quantized_conv2d", "quantized_pointwise")):
            prefix = PREFIX[line["architecture"]]
            assert line["matrix"] and all(each.startswith(prefix) for each in line["matrix"])


def test_nothing_rounds_only_once(compiled: Any) -> None:
    """Divisions take fused multiply-adds on their way to the nearest number; nothing else does."""
    for line in compiled:
        divides = line["name"] in ("quantize", "mean", "partial tiles")
        divides |= (line["name"], line["architecture"]) == ("past 2^31", "gfx942")
        assert divides == bool(line["fused"]), line


def test_a_resnet_is_within_its_budgets() -> None:
    """Every launch of ResNet-50's plan, by the command."""
    command = ["fastres.inspect", "--depth", "50", "--precision", "int8", "--json", "--arch"]
    done = subprocess.run(
        [sys.executable, "-m", *command, *PREFIX],
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)["architectures"]
    assert set(found) == set(PREFIX)
    for architecture, readings in found.items():
        broken = {str(each["layers"]): each["broken"] for each in readings if each["broken"]}
        assert broken == {}, architecture
        kernels = {each["finding"]["kernel"] for each in readings}
        assert {"quantized_conv2d_kernel", "quantize_kernel"} <= kernels
        assert ("quantized_pointwise_kernel" in kernels) is (architecture == "sm_90")


def test_layers_are_copied_16_bytes_at_a_time(compiled: Any) -> None:
    for line in compiled:
        if line["name"].startswith("a layer") and line["architecture"] != "gfx942":
            assert set(line["copies"]["async"]) == {"16"}
        if line["name"] == "descriptors":
            assert line["copies"]["descriptor"]
        if line["name"] == "past 2^31":
            assert line["int64"]
