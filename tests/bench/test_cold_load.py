"""The script that compares first answers of saved and of optimised models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import cold_load

pytestmark = pytest.mark.campaign


def test_all_ways_answer_alike_and_are_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "record.json"
    given = ["--model", "cifar_resnet20", "--rounds", "1", "--json", str(record)]
    assert cold_load.main(given) == 0
    assert "load answers" in capsys.readouterr().out
    told = json.loads(record.read_text(encoding="utf-8"))
    (optimized,), (loaded,), (eager,) = (told["processes"][way] for way in cold_load.WAYS)
    assert optimized["answer"] == loaded["answer"]
    assert eager["answer"] == pytest.approx(loaded["answer"], rel=1e-3, abs=1e-4)
    assert set(loaded["stages"]) == {"load", "first shape"}
    assert loaded["made"] + loaded["first"] < loaded["process"]
    assert str(Path.home()) not in record.read_text(encoding="utf-8")
