"""What the kernels compile to, for architectures that are not here, is held to budgets.

``python -m fastres.inspect`` compiles every distinct launch of a model in a process of its own that
does not interpret kernels; here its findings are judged. Results are kept by Triton's own cache.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from fastres import models
from fastres.kernels.inspection.budgets import spills
from fastres.kernels.tuning import cost, gpus
from fastres.kernels.tuning.traffic import ELEMENT_BYTES

pytestmark = pytest.mark.campaign

RESNETS = ("--model", "resnet18", "resnet50", "resnext50_32x4d")
RUNS: dict[str, tuple[str, ...]] = {
    "resnets": (*RESNETS, "--arch", "sm_80", "sm_90"),
    "precisions": (*("--depth", "18", "--arch", "sm_80", "sm_90"), "--precision", "bf16", "tf32"),
    "one image": ("--depth", "50", "--arch", "sm_80", "sm_90", "--batch", "1"),
    "amd": ("--depth", "50", "--arch", "gfx90a", "gfx942"),
    "others": (
        *("--model", "cifar_resnet20", "--size", "32"),
        *("--arch", "sm_75", "sm_86", "sm_89", "sm_100", "sm_120"),
    ),
}
FAMILIES = {"sm_80": "HMMA", "sm_90": "HGMMA", "gfx90a": "v_mfma", "gfx942": "v_mfma"}
FAMILIES |= {"sm_86": "HMMA", "sm_89": "HMMA", "sm_100": "UTC", "sm_120": "HMMA"}
CASES = [
    (run, architecture)
    for run, arguments in RUNS.items()
    for architecture in gpus.ARCHITECTURES
    if architecture in arguments
]
HELD = [case for case in CASES if case[1] != "sm_75"]


@functools.cache
def findings(run: str) -> dict[str, list[dict[str, Any]]]:
    """What the command reads, by architecture."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "fastres.inspect", *RUNS[run], "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    found: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)["architectures"]
    return found


def launches(run: str, architecture: str, *kernels: str) -> list[dict[str, Any]]:
    """The findings of some kernels, or of all."""
    found = [reading["finding"] for reading in findings(run)[architecture] if reading["finding"]]
    return [each for each in found if not kernels or each["kernel"] in kernels]


def products(run: str, architecture: str) -> list[dict[str, Any]]:
    return [each for each in launches(run, architecture) if "INPUT_PRECISION" in each["constants"]]


def label(finding: dict[str, Any]) -> str:
    sizes = {k: v for k, v in finding["constants"].items() if k.startswith(("BLOCK", "C", "K"))}
    return f"{finding['kernel']} {sizes} with {finding['num_warps']} warps"


def test_every_launch_compiles_and_holds_its_budgets() -> None:
    broken = [
        f"{architecture}: {reading['layers'][0]} in {reading['precision']}: {sentence}"
        for run, architecture in HELD
        for reading in findings(run)[architecture]
        for sentence in reading["broken"]
    ]
    assert broken == []
    assert [case for case in HELD if len(launches(*case)) < 7] == []


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_every_convolution_is_there(architecture: str) -> None:
    read = {name for each in findings("resnets")[architecture] for name in each["layers"]}
    for model in RESNETS[1:]:
        for name, module in models.build(model).named_modules():
            if type(module).__name__ == "Conv2d":
                assert f"{model}: {name}" in read


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_every_kind_of_kernel_is_there(architecture: str) -> None:
    kernels = {each["kernel"] for run in RUNS for each in findings_on(run, architecture)}
    wanted = {"conv2d_kernel", "sum_of_splits_kernel", "bottleneck_kernel", "stem_kernel"}
    wanted |= {"global_avg_pool_kernel"}
    if architecture == "sm_90":
        wanted |= {"pointwise_kernel"}
    assert wanted <= kernels


def has_second_path(constants: dict[str, Any]) -> bool:
    """Whether the code also holds what grouped convolutions do for tiles with NaN or infinity."""
    return bool(constants.get("TOGETHER", 1) > 1)


def findings_on(run: str, architecture: str) -> list[dict[str, Any]]:
    return launches(run, architecture) if architecture in RUNS[run] else []


def test_no_local_memory() -> None:
    spilling = [
        f"{architecture}: {label(each)}"
        for run, architecture in HELD
        for each in launches(run, architecture)
        if spills(each["spill_bytes"], each["local_instructions"], each["constants"])
    ]
    assert spilling == []


def test_every_product_is_on_matrix_units() -> None:
    elsewhere = [
        f"{architecture}: {label(each)}"
        for run, architecture in HELD
        for each in products(run, architecture)
        for opcodes in [each["whole"]["opcodes"]]
        if not opcodes or not all(name.startswith(FAMILIES[architecture]) for name in opcodes)
    ]
    assert elsewhere == []


def test_without_tensor_cores_there_is_a_reason_for_the_library() -> None:
    """Triton 3.8 emits no tensor-core instruction for sm_75. Where it does, change the chooser."""
    assert products("others", "sm_75") != []
    assert all(not each["whole"]["opcodes"] for each in products("others", "sm_75"))


def test_shared_memory_is_within_the_chip() -> None:
    beyond = [
        f"{architecture}: {label(each)}"
        for run, architecture in HELD
        for each in launches(run, architecture)
        if each["shared_bytes"] > gpus.architecture(architecture).shared_bytes_per_block
        or each["occupancy"]["blocks"] < 1
    ]
    assert beyond == []


@pytest.mark.parametrize("run", ["resnets", "precisions", "one image"])
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_activations_and_weights_move_16_bytes_at_a_time(run: str, architecture: str) -> None:
    """Wherever channels allow, and a thread has as many numbers of a tile.

    What is narrower are biases, of which a thread needs few.
    """
    for reading in findings(run)[architecture]:
        each = reading["finding"]
        constants, size = each["constants"], ELEMENT_BYTES[reading["precision"]]
        channels = [constants.get(name, 16 // size) for name in ("C", "CHUNK_C", "K")]
        if "INPUT_PRECISION" not in constants or any(c * size % 16 for c in channels):
            continue
        widths = {
            way: {int(w): n for w, n in each["copies"][way].items()} for way in each["copies"]
        }
        tile = constants.get("BLOCK_SIZE_M", 64) * constants["BLOCK_SIZE_N"]
        if tile * size >= 16 * 32 * each["num_warps"] and not has_second_path(constants):
            assert set(widths.get("store", {})) <= {16}, label(each)
        biases = [name for name in constants if name.startswith("HAS_") and name.endswith("BIAS")]
        narrow = {w: n for w, n in widths.get("async", {}).items() if w != 16}
        assert sum(narrow.values()) <= 2 * len(biases) and set(narrow) <= {4}, label(each)
        loads = {w: n for w, n in widths.get("load", {}).items() if w != 16}
        per_bias = 4 * max(constants.get(f"BLOCK_{n}", 0) for n in ("SIZE_N", "CHUNK", "NEXT"))
        assert sum(w * n for w, n in loads.items()) <= len(biases) * per_bias, label(each)
        assert set(loads) <= {4, 8}, label(each)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_main_loops_can_keep_the_matrix_units_busy(architecture: str) -> None:
    """Except where three channels are gathered one by one, or a tile has few rows or filters."""
    for reading in findings("resnets")[architecture]:
        each, constants = reading["finding"], reading["finding"]["constants"]
        rows, filters = (constants.get(f"BLOCK_SIZE_{axis}", 0) for axis in "MN")
        if constants.get("C", 8) % 8 or min(rows, constants.get("CHUNK", filters)) < 64:
            continue
        if each["issue_ratio"] is not None:
            assert each["issue_ratio"] < 1.15, label(each)


@pytest.mark.parametrize(("run", "architecture"), [("resnets", "sm_80"), ("resnets", "sm_90")])
def test_the_cost_model_knows_the_machine_code(run: str, architecture: str) -> None:
    """Registers and the loop's instructions, as fitted, are near what was compiled."""
    target = gpus.architecture(architecture)
    compared = 0
    for each in launches(run, architecture, "conv2d_kernel", "pointwise_kernel"):
        constants, threads = each["constants"], each["num_warps"] * target.warp_size
        m, n, k = (constants[f"BLOCK_SIZE_{axis}"] for axis in "MNK")
        if constants["C"] % 8:
            continue
        modelled = cost.registers(target, m * n // threads, 2)
        assert 0.6 * each["registers"] < modelled < 2.2 * each["registers"], label(each)
        if each["loop_form"] != "loop" or has_second_path(constants):
            continue
        counts = each["loop"]["counts"]
        others = sum(counts.values()) - counts["tensor"]
        fitted = cost.loop_instructions(
            target,
            (m, n, k),
            2,
            each["num_warps"],
            gathered=constants.get("R", 1) > 1,
            descriptors=each["kernel"] == "pointwise_kernel",
        )
        assert 0.6 < fitted / others < 2.3, label(each)
        compared += 1
    assert compared >= 5


def test_findings_are_complete_records() -> None:
    each = launches("one image", "sm_80")[0]
    assert {"registers", "spill_bytes", "shared_bytes", "occupancy", "copies", "loop"} <= set(each)
    assert {"blocks", "warps", "share", "limit"} == set(each["occupancy"])
