"""What is said to be supported, what is asked of torch and Triton, and who asks."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import triton
from torch.export.graph_signature import OutputKind

from benchmarks import versions as lane
from fastres.system import versions
from tests.support import ROOT


@pytest.mark.parametrize(
    ("version", "wanted"),
    [("2.11.0+cu130", (2, 11)), ("3.8.0", (3, 8)), ("2.10.0a0+git1", (2, 10)), ("2.9rc1", (2, 9))],
)
def test_releases_are_read(version: str, wanted: tuple[int, int]) -> None:
    assert versions.release(version) == wanted


def test_this_torch_and_triton_are_supported() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for name, installed in (("torch", torch.__version__), ("triton", triton.__version__)):
        found = re.search(rf'"{name}>=(\d+\.\d+)', text)
        assert found is not None
        assert versions.release(installed) >= versions.release(found.group(1))


def test_writes_of_buffers_are_known() -> None:
    assert OutputKind.BUFFER_MUTATION in versions.STATE_WRITES


def test_capabilities_are_a_mapping() -> None:
    assert isinstance(dict(versions.cpu_capabilities()), dict)


def test_an_interpreter_that_fails_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for triton_version, numpy, refused in (
        ("3.6.0", "2.4.0", "pip install 'numpy<2.4'"),
        ("3.6.0", "2.3.9", None),
        ("3.7.1", "2.4.0", None),
        ("3.5.1", "2.3.9", "use Triton 3.6 or later"),
    ):
        monkeypatch.setattr(triton, "__version__", triton_version)
        versions.why_not_interpreted.cache_clear()
        monkeypatch.setattr(np, "__version__", numpy)
        reason = versions.why_not_interpreted()
        assert (reason is None) == (refused is None)
        assert refused is None or (reason is not None and refused in reason)
    monkeypatch.undo()
    versions.why_not_interpreted.cache_clear()


def test_nobody_else_asks_which_version_is_here() -> None:
    """Records name versions; only one module decides by them."""
    asking = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for folder in ("fastres", "kernels", "export")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "versions.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Compare)
        and any(
            isinstance(part, ast.Attribute) and part.attr == "__version__"
            for part in ast.walk(node)
        )
    ]
    assert asking == []


def test_the_lane_exists() -> None:
    assert [name for name in lane.LANE if not (ROOT / name).exists()] == []


def test_the_record_keeps_a_row_for_each_set_of_versions(tmp_path: Path) -> None:
    path = tmp_path / "versions.json"
    row = {"python": "3.12", "torch": "2.11.0+cu130", "triton": "3.6.0"}
    row |= {"torchvision": "0.26.0+cu130", "numpy": "2.3.0"}
    lane.add_row({**row, "passed": 1}, path)
    lane.add_row({**row, "torch": "2.9.1", "passed": 2}, path)
    lane.add_row({**row, "passed": 3}, path)
    assert [each["passed"] for each in lane.rows(path)] == [2, 3]
    assert lane.table(path).splitlines()[-1].startswith("| 3.12 | 2.11.0 | 3.6.0 | 0.26.0 |")
