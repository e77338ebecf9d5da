"""What the README says is true: code runs, the table is its record, links lead somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import fastres
from benchmarks import versions
from benchmarks.gpu_day import tables as gpu_tables
from fastres.bench import record, table
from tests.support import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
RECORD = ROOT / "benchmarks" / "results" / "resnet50.json"
GPU_RECORD = ROOT / "benchmarks" / "results" / "gpu_day" / "2026-11-28b"
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=[f"block {i}" for i, _ in enumerate(BLOCKS)])
def test_code_runs(
    code: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "resnet50.pth" in code:  # the reader has a checkpoint
        torch.save(fastres.models.resnet50().state_dict(), "resnet50.pth")
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert type(names["fast"]).__name__ == "OptimizedModule"
    printed = capsys.readouterr().out
    if "resnet50.pth" in code:
        assert names["answers"].shape == (1, 1000)  # type: ignore[attr-defined]
        assert fastres.load("resnet50.fastres").report.precision == "float32"
        assert Path("models/resnet50/config.pbtxt").is_file()
        assert Path("models/resnet50/1/model.onnx").is_file()
    if "print" in code:
        assert "53/53 BatchNorms folded" in printed
        assert "passed: error" in printed
        assert "layer4.2.conv3" in printed


def test_table_is_the_record() -> None:
    inside = re.search(r"<!-- table -->\n(.*?)<!-- /table -->", TEXT, flags=re.DOTALL)
    assert inside is not None
    wanted = table.markdown(record.read(RECORD), "eager-fp32").strip()
    assert wanted
    assert wanted in inside[1]


def test_links_and_pictures_exist() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target


def test_receipt_has_the_lines_of_a_real_one() -> None:
    receipt = re.search(r"```text\nfastres: ResNet(.*?)```", TEXT, flags=re.DOTALL)
    assert receipt is not None
    for line in ("53/53 BatchNorms folded", "16/16 residual additions fused", "49/49 activations"):
        assert line in receipt[1]


def test_the_gpu_table_is_the_record() -> None:
    inside = re.search(r"<!-- gpu table -->\n(.*?)\n<!-- /gpu table -->", TEXT, flags=re.DOTALL)
    assert inside is not None
    assert inside.group(1) == gpu_tables.markdown(GPU_RECORD)


def test_the_table_of_versions_is_the_record() -> None:
    inside = re.search(r"<!-- versions -->\n(.*?)\n<!-- /versions -->", TEXT, flags=re.DOTALL)
    assert inside is not None
    assert inside[1] == versions.table()
    tested = {tuple(row[name] for name in ("torch", "triton")) for row in versions.rows()}
    assert {version.partition("+")[0] for version, _ in tested} >= {"2.9.1", "2.11.0", "2.14.1"}


def test_the_hosts_time_is_the_record() -> None:
    rows = json.loads((ROOT / "benchmarks" / "results" / "host_time.json").read_text())["rows"]
    (added,) = (row["added_us"] for row in rows if row["model"] == "resnet50")
    assert f"that adds {added:.0f} microseconds to the bare launch of a ResNet-50" in TEXT
