"""The script that answers single images in turn and in streams."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import throughput

pytestmark = pytest.mark.campaign


def test_all_ways_are_measured_and_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "record.json"
    given = "--model cifar_resnet20 --images 4 --size 32 --rounds 2 --threads 2 --precision fp32"
    assert throughput.main([*given.split(), "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    told = json.loads(path.read_text(encoding="utf-8"))
    assert set(told["seconds"]) == {"fp32"}
    times = told["seconds"]["fp32"]
    assert list(times) == [throughput.IN_TURN, throughput.STREAMS, throughput.OPENVINO]
    assert all(len(each) == 2 and min(each) > 0 for each in times.values())
    assert throughput.main(["--from-record", str(path)]) == 0
    assert capsys.readouterr().out == printed


def test_other_answers_in_streams_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = throughput.ways

    def wrong(*args: object) -> object:
        calls = ways(*args)  # type: ignore[arg-type]
        right = calls[throughput.STREAMS]
        calls[throughput.STREAMS] = lambda: right()[::-1]
        return calls

    monkeypatch.setattr(throughput, "ways", wrong)
    given = "--model cifar_resnet20 --images 2 --size 32 --rounds 1 --threads 2 --precision fp32"
    with pytest.raises(RuntimeError, match="not those in turn"):
        throughput.main(given.split())
