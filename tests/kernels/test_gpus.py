"""GPU facts: figures that the makers print, and how products are found."""

from __future__ import annotations

import pytest

from fastres.errors import OptionError
from fastres.kernels.tuning import gpus
from fastres.kernels.tuning.conv2d import on_matrix_units
from fastres.kernels.tuning.gpus import ARCHITECTURES, FIGURES, GPUS, Gpu


@pytest.mark.parametrize(
    ("name", "tflops", "gbytes_per_s", "multiprocessors"),
    [
        ("t4", 65, 320, 40),
        ("a10", 125, 600, 72),
        ("a100", 312, 2039, 108),
        ("l4", 121, 300, 58),
        ("rtx4090", 165.2, 1008, 128),
        ("h100", 989.4, 3350, 132),
        ("h200", 989.4, 4800, 132),
        ("b200", 2250, 8000, 148),
        ("rtx5090", 209.5, 1792, 170),
        ("mi250x", 191.5, 1638, 110),
        ("mi300x", 1307.4, 5300, 304),
    ],
)
def test_data_sheets(name: str, tflops: float, gbytes_per_s: float, multiprocessors: int) -> None:
    gpu = gpus.by_name(name)
    assert gpu.flops["fp16"] == pytest.approx(tflops * 1e12)
    assert gpu.memory_bytes_per_s == pytest.approx(gbytes_per_s * 1e9)
    assert gpu.multiprocessors == multiprocessors


@pytest.mark.parametrize("gpu", GPUS.values(), ids=list(GPUS))
def test_peak_is_whole_work_per_cycle(gpu: Gpu) -> None:
    """Units come in powers of two: a sparse figure, or one of another clock, would not fit."""
    per_cycle = gpu.flops["fp16"] / (gpu.multiprocessors * gpu.clock_hz)
    nearest = min((2.0**power for power in range(8, 15)), key=lambda n: abs(n - per_cycle))
    assert per_cycle == pytest.approx(nearest, rel=0.02)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=list(GPUS))
def test_facts_are_in_order(gpu: Gpu) -> None:
    assert set(gpu.flops) == set(FIGURES)
    assert gpu.flops["fp16"] >= gpu.flops["tf32"] >= gpu.flops["fp32"] > 0
    assert gpu.architecture is ARCHITECTURES[gpu.architecture.name]
    target = gpu.architecture
    assert target.shared_bytes_per_block <= target.shared_bytes
    assert target.shared_bytes_per_block + target.reserved_shared_bytes == target.shared_bytes
    assert target.max_threads % target.warp_size == 0


def test_every_architecture_has_a_product() -> None:
    assert {gpu.architecture.name for gpu in GPUS.values()} == set(ARCHITECTURES)


def test_limits_of_multiprocessors() -> None:
    held = {name: each.max_warps for name, each in ARCHITECTURES.items() if each.backend == "cuda"}
    assert held == {
        **{"sm_75": 32, "sm_80": 64, "sm_86": 48, "sm_89": 48},
        **{"sm_90": 64, "sm_100": 64, "sm_120": 48},
    }
    assert ARCHITECTURES["sm_80"].shared_bytes_per_block == 163 * 1024
    assert ARCHITECTURES["sm_90"].shared_bytes_per_block == 227 * 1024
    assert ARCHITECTURES["gfx942"].shared_bytes_per_block == 64 * 1024


def test_tf32_is_not_everywhere() -> None:
    lacking = {name for name, each in ARCHITECTURES.items() if not each.tf32}
    assert lacking == {"sm_75", "gfx90a"}
    for name, each in ARCHITECTURES.items():
        assert each.computed_in("tf32") == ("fp32" if name in lacking else "tf32")
        assert on_matrix_units("tf32", each) is (name not in lacking)
        assert each.computed_in("bf16") == "bf16"
    assert on_matrix_units("fp32", ARCHITECTURES["gfx90a"])


def test_names_in_any_case() -> None:
    assert gpus.by_name("H100") is GPUS["h100"]
    assert gpus.architecture("SM_90") is ARCHITECTURES["sm_90"]


def test_unknown_names_are_refused_with_a_list() -> None:
    with pytest.raises(OptionError, match=r"gpu 'h1000': expected one of t4, .*mi300x"):
        gpus.by_name("h1000")
    with pytest.raises(OptionError, match=r"architecture 'sm_70': expected one of sm_75, .*gfx942"):
        gpus.architecture("sm_70")


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        *[((7, 5), "sm_75"), ((8, 0), "sm_80"), ((8, 7), "sm_86"), ((8, 9), "sm_89")],
        *[((9, 0), "sm_90"), ((10, 3), "sm_100"), ((12, 1), "sm_120")],
    ],
)
def test_capabilities(capability: tuple[int, int], name: str) -> None:
    assert gpus.by_capability(*capability).name == name


@pytest.mark.parametrize("capability", [(7, 0), (6, 1), (11, 0), (13, 0)])
def test_unknown_capabilities_are_refused(capability: tuple[int, int]) -> None:
    with pytest.raises(OptionError, match=rf"{capability[0]}\.{capability[1]}.*7\.5, 8\.0"):
        gpus.by_capability(*capability)


@pytest.mark.parametrize(
    ("title", "target", "multiprocessors", "name"),
    [
        ("Tesla T4", "sm_75", 40, "t4"),
        ("NVIDIA A10", "sm_86", 72, "a10"),
        ("NVIDIA A100-SXM4-80GB", "sm_80", 108, "a100"),
        ("NVIDIA A100-SXM4-40GB", "sm_80", 108, "a100-40gb"),
        ("NVIDIA L4", "sm_89", 58, "l4"),
        ("NVIDIA L40S", "sm_89", 142, "l40s"),
        ("NVIDIA H100 80GB HBM3", "sm_90", 132, "h100"),
        ("NVIDIA H100 PCIe", "sm_90", 114, "h100-pcie"),
        ("NVIDIA GeForce RTX 5090", "sm_120", 170, "rtx5090"),
        ("AMD Instinct MI300X", "gfx942", 304, "mi300x"),
    ],
)
def test_devices_are_recognised(title: str, target: str, multiprocessors: int, name: str) -> None:
    found = gpus.by_device(title, ARCHITECTURES[target], multiprocessors)
    assert found is GPUS[name]


def test_unknown_device_has_its_share_of_the_nearest() -> None:
    found = gpus.by_device("NVIDIA GeForce RTX 4060", ARCHITECTURES["sm_89"], 24)
    assert found.name == "l4*"
    assert found.multiprocessors == 24
    assert found.flops["fp16"] == pytest.approx(GPUS["l4"].flops["fp16"] * 24 / 58)


def test_part_of_a_gpu_has_part_of_its_bandwidth() -> None:
    title = "NVIDIA A100-SXM4-80GB MIG 3g.40gb"
    found = gpus.by_device(title, ARCHITECTURES["sm_80"], 42)
    whole = GPUS["a100"]
    assert found.memory_bytes_per_s == pytest.approx(whole.memory_bytes_per_s * 42 / 108)
    assert found.flops["tf32"] == pytest.approx(whole.flops["tf32"] * 42 / 108)


def test_products_can_be_keys() -> None:
    assert len({gpu: name for name, gpu in GPUS.items()}) == len(GPUS)


@pytest.mark.parametrize(
    ("name", "int8"),
    [
        *(("t4", 130), ("a10", 250), ("a100", 624), ("rtx3090", 284), ("l4", 242.5)),
        *(("l40s", 733), ("rtx4090", 660.6), ("h100", 1978.9), ("h200", 1978.9)),
        *(("b200", 4500), ("h100-pcie", 1513), ("rtx5090", 838), ("mi210", 181)),
        *(("mi250x", 191.5), ("mi300x", 2614.9)),
    ],
)
def test_peaks_of_int8(name: str, int8: float) -> None:
    """As printed, without sparsity: twice or four times that of fp16, on AMD's older chips once."""
    gpu = gpus.by_name(name)
    assert gpu.flops["int8"] == pytest.approx(int8 * 1e12)
    assert gpu.flops["int8"] / gpu.flops["fp16"] == pytest.approx(
        min((1, 2, 4), key=lambda n: abs(n - gpu.flops["int8"] / gpu.flops["fp16"])), rel=0.02
    )


@pytest.mark.parametrize("gpu", GPUS.values(), ids=list(GPUS))
def test_fp8_is_nowhere_faster_than_int8(gpu: Gpu) -> None:
    """If one joins where it is, docs/decisions/no-fp8.md is to be thought over."""
    assert gpu.flops["fp8"] <= gpu.flops["int8"]
