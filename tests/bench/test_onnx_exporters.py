"""Torch's ONNX exporter beside ours: the script runs, and the decision's page has its figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import onnx_exporters

PAGE = Path(__file__).parents[2] / "docs" / "decisions" / "own-onnx-rules.md"


def test_both_are_held_to_the_same_checks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript")
    path = tmp_path / "record.json"
    words = ["--network", "hard-swish", "--opset", "18", "--json", str(path)]
    assert onnx_exporters.main(words) == 0
    assert capsys.readouterr().out.count("as the model") == 2
    ours, theirs = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert (ours["by"], theirs["by"]) == ("fastres", "torch")
    assert ours["initialiser_bytes"] > 0
    for row in (ours, theirs):
        assert row["failed"] is None
        assert row["opset"] == 18
        assert row["not_in_tensorrt"] == []
        assert row["operators"]["Conv"] == row["operators"]["HardSigmoid"] == 1
    assert ours["modules_named"] == ours["modules"] == 3
    assert ours["open_sizes"] == ["batch"]


def test_the_pages_figures_are_the_records() -> None:
    text = PAGE.read_text(encoding="utf-8")
    inside = re.search(r"<!-- table -->\n(.*?)\n<!-- /table -->", text, flags=re.DOTALL)
    assert inside is not None
    assert inside[1] == onnx_exporters.table()
    good, every = onnx_exporters.passed()
    assert f"{good} of the {every} tests" in " ".join(text.split())
    record = json.loads(onnx_exporters.RECORD.read_text(encoding="utf-8"))
    for package in ("torch", "onnxscript"):
        version = record["environment"]["packages"][package]
        assert f"{package} {version.partition('+')[0]}" in " ".join(text.split())
