"""What is asked of a GPU and its driver, from what they would answer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastres.errors import OptionError
from fastres.runtime.triton import engine
from fastres.system import target

NVIDIA = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n"
    "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n"
)
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n"


def written(root: Path, name: str, text: str) -> Path:
    file = root / name
    file.parent.mkdir(parents=True)
    file.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("proc/driver/nvidia/version", NVIDIA, "535.104.05"),
        ("proc/driver/nvidia/version", OPEN, "580.65.06"),
        ("sys/module/amdgpu/version", "6.3.6\n", "6.3.6"),
        ("proc/elsewhere", "", "unknown"),
    ],
)
def test_the_drivers_version(tmp_path: Path, name: str, text: str, wanted: str) -> None:
    assert target.gpu_driver(written(tmp_path, name, text)) == wanted


def device(monkeypatch: pytest.MonkeyPatch, **facts: Any) -> torch.device:
    """A GPU that torch sees."""
    told = SimpleNamespace(**{"total_memory": 80 * 2**30, "multi_processor_count": 108, **facts})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: told)
    return torch.device("cuda", 1)


def test_an_nvidia_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    found = device(monkeypatch, name="NVIDIA A100-SXM4-80GB", major=8, minor=0)
    told = target.gpu(found, written(tmp_path, "proc/driver/nvidia/version", NVIDIA))
    assert told == target.GpuTarget(
        "NVIDIA A100-SXM4-80GB", "cuda", "sm_80", 108, 80 * 2**30, "535.104.05"
    )
    assert engine._product(found).name == "a100"


def test_an_amd_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    facts = {"name": "AMD Instinct MI300X", "gcnArchName": "gfx942:sramecc+:xnack-"}
    found = device(monkeypatch, **facts, major=9, minor=4, multi_processor_count=304)
    assert target.gpu(found, tmp_path).architecture == "gfx942"
    assert engine._product(found).name == "mi300x"


def test_a_gpu_that_nobody_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    old = device(monkeypatch, name="Tesla V100", major=7, minor=0)
    with pytest.raises(OptionError, match=r"compute capability 7\.0"):
        engine._product(old)


def test_memory_that_torch_keeps_in_reserve_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 20)
    assert target.available_gpu_memory(torch.device("cuda")) == 130


def test_the_identity_of_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    found = device(monkeypatch, name="NVIDIA L4", major=8, minor=9)
    identity = engine._identity(found)
    assert identity.gpu == "NVIDIA L4"
    assert identity.triton.startswith("3.")
    assert len(identity.kernels) == 16
    assert engine._identity(found) == identity
