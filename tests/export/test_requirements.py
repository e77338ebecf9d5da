"""An extra brings one build of ONNX Runtime: the usual one, or the one for GPUs."""

from __future__ import annotations

import sys

import pytest
from packaging.requirements import Requirement

from tests.support import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))[
    "project"
]["optional-dependencies"]


@pytest.mark.parametrize(
    ("extra", "build"), [("onnx", "onnxruntime"), ("onnx-gpu", "onnxruntime-gpu")]
)
def test_an_extra_for_each_build_of_onnx_runtime(extra: str, build: str) -> None:
    assert sorted(needed.name for needed in map(Requirement, EXTRAS[extra])) == ["onnx", build]


def test_no_other_extra_names_a_build() -> None:
    for name, needed in EXTRAS.items():
        builds = [each for each in needed if each.startswith("onnxruntime")]
        assert name in ("onnx", "onnx-gpu") or not builds, name
    assert "fastres[onnx]" in EXTRAS["bench"]
