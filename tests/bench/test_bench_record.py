"""Records: written whole or not at all, read back the same, fit to be published."""

from __future__ import annotations

import json
import math
import platform
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fastres import bench
from fastres.bench import plot, record, revision, table
from fastres.bench.record import Batch
from fastres.errors import OptionError
from tests.support import ROOT
from tests.support.record_sample import sample

PUBLISHED = ROOT / "benchmarks" / "results"
MOST_LINES = 8000
"""Of a record: what a person can still page through, and a change of it be looked at. 56
architectures in three precisions, beside four contenders, take 6,300."""


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    record.write(sample(), path)
    again = record.read(path)
    expected = sample()
    assert again.batches == expected.batches
    assert again.settings == expected.settings
    assert again.command == expected.command
    assert again.environment == json.loads(json.dumps(again.environment))


def test_the_file_says_what_it_is_and_holds_every_time(tmp_path: Path) -> None:
    record.write(sample(), tmp_path / "record.json")
    text = (tmp_path / "record.json").read_text()
    tree = json.loads(text)
    assert (tree["schema"], tree["version"]) == ("fastres.bench", 1)
    row = tree["batches"][0]["rows"][0]
    assert len(row["samples_ns"]) == 20
    assert row["summary"]["p50_ns"] == 44_750_000
    assert row["key"] == "eager-fp32"
    assert max(map(len, text.splitlines())) > 200, "one line per time makes the file unreadable"


def test_writing_replaces_the_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text("old")
    record.write(sample(), path)
    assert record.read(path).model["name"] == "resnet50"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text("old")
    with pytest.raises(ValueError, match="JSON compliant"):
        record.write(replace(sample(), settings={"seconds": math.nan}), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(source: str, target: Path) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "record.json"
    path.write_text("old")
    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        record.write(sample(), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_lists_are_on_one_line() -> None:
    long = ["sixty characters, and two of these are more than a line has"] * 2
    tree = {
        "times": list(range(1000)),
        "pairs": ((1, 2.5), (3, -1e-05)),
        "names": ["a, b", "[ 1,  2 ]", None, True],
        "sentences": long,
        "rows": [{"of": [1, 2]}, [{"inner": []}]],
        "nothing": {},
    }
    text = record.text_of(tree)
    assert json.loads(text) == json.loads(json.dumps(tree))
    assert (
        text.replace(str(list(range(1000))), "[0 to 999]")
        == f"""{{
 "times": [0 to 999],
 "pairs": [[1, 2.5], [3, -1e-05]],
 "names": ["a, b", "[ 1,  2 ]", null, true],
 "sentences": [
  "{long[0]}",
  "{long[1]}"
 ],
 "rows": [
  {{
   "of": [1, 2]
  }},
  [
   {{
    "inner": []
   }}
  ]
 ],
 "nothing": {{}}
}}
"""
    )


def test_what_json_has_no_form_for_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    for value in (math.inf, [math.nan], {"in": [{"a": [1.0, math.nan]}]}):
        with pytest.raises(ValueError, match="JSON compliant"):
            record.write_tree({"value": value}, path)
    with pytest.raises(TypeError):
        record.write_tree({"value": {1, 2}}, path)
    assert list(tmp_path.iterdir()) == []


def damaged(**changes: Any) -> str:
    tree = json.loads(record.to_json(sample()))
    tree.update(changes)
    return json.dumps(tree)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "the record is not JSON"),
        ("[]", "not a record of python -m fastres.bench"),
        ("{}", "not a record of python -m fastres.bench"),
        (damaged(schema="other"), "not a record of python -m fastres.bench"),
        (damaged(version=2), "of version 2, this fastres reads 1"),
        (damaged(batches=[{"batch": 1}]), "incomplete or damaged: KeyError"),
        (damaged(batches=None), "incomplete or damaged: TypeError"),
        (damaged().replace('"timed"', '"guessed"'), "status 'guessed'"),
        (damaged().replace('"timed"', '"failed"'), "timed rows, and no others"),
        (damaged().replace('"top1"', '"top5"'), "incomplete or damaged"),
    ],
)
def test_what_is_no_record(text: str, says: str) -> None:
    with pytest.raises(OptionError, match=re.escape(says)):
        record.from_json(text)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/home/somebody/models/net.py:12 failed", "net.py:12 failed"),
        ("cannot open '/tmp/x/'", "cannot open 'x'"),
        ("--images=/data/photos", "--images=photos"),
        ("1/2 of a/b/c", "1/2 of a/b/c"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
    ],
)
def test_paths_are_cut_down(text: str, left: str) -> None:
    assert record.anonymous(text) == left


def assert_fit_to_be_published(text: str) -> None:
    for value in re.findall(r'"((?:[^"\\]|\\.)*)"', text):
        assert record.anonymous(value) == value, "an absolute path"
    for name in (platform.node(), Path.home().name):
        if len(name) > 4:  # shorter ones are parts of words
            assert name not in text


def test_no_record_holds_paths_or_hosts() -> None:
    told = replace(sample(), model={**sample().model, "weights": ["/home/somebody/w.pt"]})
    text = record.to_json(told)
    assert "somebody" not in text
    assert_fit_to_be_published(text)


def published() -> list[Path]:
    return sorted(PUBLISHED.rglob("*.json"))


@pytest.mark.parametrize("path", published(), ids=lambda path: path.name)
def test_published_records(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert_fit_to_be_published(text)
    assert text == record.text_of(json.loads(text)), "not as record.write_tree writes it"
    assert text.count("\n") <= MOST_LINES
    if json.loads(text)["schema"] == record.SCHEMA:
        assert table.markdown(record.read(path), "eager-fp32")


def shown(reference: str = "eager-fp32", width: int = 0) -> str:
    with Console(force_terminal=bool(width), width=width or None, no_color=True) as console:
        console.begin_capture()
        table.show(sample(), reference, console)
        return re.sub(r"\x1b\[[\d;]*m", "", console.end_capture())


def test_the_table_shows_everybody() -> None:
    said = shown()
    eager = next(line for line in said.splitlines() if "torch eager NCHW" in line)
    assert eager.split() == [
        *("torch", "eager", "NCHW", "fp32", "44.8", "49.4", "40.0", "22.3"),
        *("1.00x", "(1.00–1.00)", "1.2", "/", "0.5", "700", "5.0e-07", "(1.00x)", "100%"),
    ]
    ours = next(line for line in said.splitlines() if line.strip().startswith("fastres  "))
    assert "2.00x (2.00–2.00)" in ours
    assert "Liar [beta] fp32: failed: error 1.0e+00" in said
    assert "ONNX Runtime bf16: unavailable: no bfloat16 convolution" in said
    assert "Peer fp32: 3.0 s of its cold start are the export" in said
    assert "fastres against others in fp32: 2.00x (2.00–2.00) torch eager NCHW; 2.00x" in said
    assert "fastres fp32: engine onednn" in said
    assert said.count("other programs had 25% of the processors' time") == 1


def test_ratios_are_to_whom_one_wants() -> None:
    eager = next(line for line in shown("fastres-fp32").splitlines() if "torch eager NCHW" in line)
    assert "0.50x (0.50–0.50)" in eager


def test_a_narrow_terminal_gets_two_tables() -> None:
    wide, narrow = shown(width=200), shown(width=90)
    assert wide.count("torch eager NCHW  ") == 2
    assert narrow.count("torch eager NCHW  ") == 4
    assert "…" not in narrow


def test_markdown_has_equally_many_cells_in_every_line() -> None:
    text = table.markdown(sample(), "eager-fp32")
    for block in re.findall(r"(?:^\|.*\|\n?)+", text, re.MULTILINE):
        cells = {line.count("|") for line in block.strip().splitlines()}
        assert len(cells) == 1
    assert "| fastres | fp32 | 22.4 |" in text


def test_a_record_prints_and_draws_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, picture = tmp_path / "record.json", tmp_path / "picture.png"
    record.write(sample(), path)
    words = ["--from-record", str(path), "--markdown", "--plot", str(picture)]
    assert bench.main(words) == 0
    assert capsys.readouterr().out == table.markdown(record.read(path), "eager-fp32") + "\n"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_record_in_which_fastres_failed_exits_with_1(tmp_path: Path) -> None:
    rows = sample().batches[0].rows
    failed = replace(rows[2], status="failed", reason="error", samples_ns=())
    record.write(
        replace(sample(), batches=(Batch(1, 16, None, (rows[0], failed)),)), tmp_path / "r.json"
    )
    assert bench.main(["--from-record", str(tmp_path / "r.json")]) == 1


def test_the_plot_leaves_out_who_was_not_timed(tmp_path: Path) -> None:
    plot.draw(sample(), tmp_path / "all.png")
    timed = tuple(
        replace(batch, rows=tuple(row for row in batch.rows if row.samples_ns))
        for batch in sample().batches
    )
    plot.draw(replace(sample(), batches=timed), tmp_path / "timed.png")
    assert (tmp_path / "all.png").read_bytes() == (tmp_path / "timed.png").read_bytes()


def test_the_revision_is_that_of_fastres(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True)

    package = tmp_path / "fastres"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert revision.of_fastres(package) is None, "no checkout"
    git("init", "--quiet")
    assert revision.of_fastres(package) is None, "installed inside somebody else's"
    git("add", "fastres")
    git("commit", "--quiet", "-m", "first")
    clean = revision.of_fastres(package)
    assert clean is not None
    assert re.fullmatch(r"[0-9a-f]{40,64}", clean)
    (package / "__init__.py").write_text("changed = True\n")
    assert revision.of_fastres(package) == f"{clean}+changes"


def quantized_sample() -> record.Record:
    """A record with int8: a peer without a multiple of an error, and ours."""
    whole = sample()
    ours = next(row for row in whole.batches[0].rows if row.name == "fastres")
    peer = replace(
        ours, name="openvino-nncf", title="OpenVINO (NNCF)", precision="int8", error_ratio=None
    )
    rows = (*whole.batches[0].rows, peer, replace(ours, precision="int8"))
    model = {**whole.model, "calibration": "32 other synthetic images"}
    return replace(whole, model=model, batches=(replace(whole.batches[0], rows=rows),))


def test_int8_is_explained_where_it_is_shown() -> None:
    found = record.from_json(record.to_json(quantized_sample()))
    said = table.markdown(found, "eager-fp32")
    assert "| OpenVINO (NNCF) | int8 |" in said
    assert "| 5.0e-07 | 100% |" in said, "no multiple of what is not there"
    assert "int8: quantised with 32 other synthetic images, by each contender's own tools" in said
    assert "int8's definition, bit for bit" in said
    assert "pass up to an error of 0.5." in said
    assert "int8" not in table.markdown(sample(), "eager-fp32")
