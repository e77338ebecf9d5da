"""What the README says is true: table and chart are the record, CI's commands are there, few lines.

Its code and its links are looked at with those of the other pages, in ``test_docs.py``.
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import summary
from fastres.bench import record
from tests.support import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_is_the_record() -> None:
    inside = re.search(r"<!-- summary -->\n(.*?)\n<!-- /summary -->", TEXT, flags=re.DOTALL)
    assert inside is not None
    assert inside[1] == summary.table(record.read(summary.RECORD)), (
        "paste what `python -m benchmarks.summary` prints"
    )


def test_the_table_has_at_most_eight_rows_a_batch() -> None:
    assert 0 < len(summary.ROWS) <= 8
    found = record.read(summary.RECORD)
    assert all(len(summary.rows(batch)) == len(summary.ROWS) for batch in found.batches)
    assert {"eager-fp32", "fastres-fp32", "fastres-bf16", "fastres-int8"} <= set(summary.ROWS)


def test_the_chart_is_the_record() -> None:
    drawn = summary.CHART.read_text(encoding="utf-8")
    assert drawn == summary.chart(record.read(summary.RECORD)), (
        "`python -m benchmarks.summary --chart` draws it anew"
    )
    assert f"]({summary.CHART.relative_to(ROOT)})" in TEXT


def test_the_command_prints_the_table_and_draws_the_chart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = summary.CHART.read_text(encoding="utf-8")
    monkeypatch.setattr(summary, "CHART", tmp_path / "chart.svg")
    assert summary.main([]) == 0
    assert capsys.readouterr().out.strip() in TEXT
    assert list(tmp_path.iterdir()) == []
    assert summary.main(["--chart"]) == 0
    assert (tmp_path / "chart.svg").read_text(encoding="utf-8") == drawn
    ElementTree.fromstring(drawn)  # well-formed


def test_receipt_has_the_lines_of_a_real_one() -> None:
    receipt = re.search(r"```text\nfastres: ResNet(.*?)```", TEXT, flags=re.DOTALL)
    assert receipt is not None
    for line in ("53/53 BatchNorms folded", "16/16 residual additions fused", "49/49 activations"):
        assert line in receipt[1]


def test_a_stranger_reads_it_to_the_end() -> None:
    assert len(TEXT.splitlines()) <= 200


def test_the_commands_that_ci_reads_are_there() -> None:
    for name in ("main job", "tests"):
        assert len(re.findall(rf"^<!-- ci: {name} -->\n```bash\n.+\n```$", TEXT, re.MULTILINE)) == 1
