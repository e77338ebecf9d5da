"""The extra that brings ONNX Runtime brings it once, on every kind of machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent.parent
EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))[
    "project"
]["optional-dependencies"]

GPU_BUILD = [("linux", "x86_64"), ("win32", "AMD64")]
MACHINES = [
    *GPU_BUILD,
    *(("linux", "aarch64"), ("darwin", "arm64"), ("darwin", "x86_64"), ("win32", "ARM64")),
]


@pytest.mark.parametrize(("system", "machine"), MACHINES)
def test_one_build_of_onnx_runtime_for_each_machine(system: str, machine: str) -> None:
    where: dict[str, Any] = {"sys_platform": system, "platform_machine": machine}
    wanted = [
        needed.name
        for needed in map(Requirement, EXTRAS["onnx"])
        if needed.marker is None or needed.marker.evaluate(where)
    ]
    build = "onnxruntime-gpu" if (system, machine) in GPU_BUILD else "onnxruntime"
    assert sorted(wanted) == ["onnx", build]


def test_no_other_extra_names_a_build() -> None:
    for name, needed in EXTRAS.items():
        builds = [each for each in needed if each.startswith("onnxruntime")]
        assert name == "onnx" or not builds, name
    assert "fastres[onnx]" in EXTRAS["bench"]
