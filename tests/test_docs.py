"""What the pages say is true: code runs, figures are their records', links lead somewhere."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import fastres
from benchmarks import accuracy, throughput, versions
from benchmarks.coverage import record as coverage_record
from benchmarks.coverage import table as coverage_table
from benchmarks.gpu_day import tables as gpu_tables
from fastres import preprocess
from fastres.accuracy import bounds
from fastres.bench import record, table
from fastres.bench.peers import peer

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
GPU_RECORD = RESULTS / "gpu_day" / "2026-11-28b"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob(".github/**/*.md")])
MEASURED = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks() -> Iterator[tuple[str, str]]:
    """Every block of Python with where it stands."""
    for page in PAGES:
        found = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        for index, code in enumerate(found):
            yield f"{name_of(page)} {index}", code


def marked(text: str, name: str) -> str:
    """What stands between ``<!-- name -->`` and ``<!-- /name -->``."""
    inside = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", text, flags=re.DOTALL)
    assert inside is not None, name
    return inside[1]


def flat(text: str) -> str:
    """The text with every line break as a space, so that sentences can be looked for."""
    return " ".join(text.split())


CODE = dict(blocks())


def test_the_pages_hold_code() -> None:
    assert {"README.md 0", "README.md 1", "docs/using.md 0", "docs/using.md 1"} <= set(CODE)


@pytest.mark.campaign
@pytest.mark.parametrize("code", CODE.values(), ids=CODE.keys())
def test_code_runs(
    code: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "resnet50.pth" in code:  # the reader has a checkpoint
        torch.save(fastres.models.resnet50().state_dict(), "resnet50.pth")
    names: dict[str, object] = {}
    exec(compile(code, "a page", "exec"), names)
    assert type(names["fast"]).__name__ == "OptimizedModule"
    printed = capsys.readouterr().out
    if "resnet50.pth" in code:
        assert names["answers"].shape == (1, 1000)  # type: ignore[attr-defined]
        assert fastres.load("resnet50.fastres").report.precision == "float32"
        assert Path("models/resnet50/config.pbtxt").is_file()
        assert Path("models/resnet50/1/model.onnx").is_file()
    if "print" in code:
        assert "53/53 BatchNorms folded" in printed
        if 'precision="fp16"' in code:
            assert "float16 by the ranges of 8 images" in printed
        elif 'precision="int8"' in code:  # its check says how often the first choice is the same
            assert re.search(r"the same first choice for \d of 8", printed)
        else:
            assert "passed: error" in printed
            assert "layer4.2.conv3" in printed


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub links to them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each).strip().lower().replace(" ", "-") for each in headings}


def test_links_and_pictures_exist() -> None:
    links = [
        (page, target)
        for page in PAGES
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
        if not target.startswith("https://")
    ]
    assert len(links) > 20
    broken = []
    for page, target in links:
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(f"{name_of(page)}: {target}")
    assert broken == []


def test_every_page_is_linked_to() -> None:
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page, text in texts.items()
        for target in re.findall(r"\]\(([^)\s#]+)", text)
    }
    pages = set((ROOT / "docs").rglob("*.md"))
    assert sorted(name_of(page) for page in pages - linked) == []


def test_the_table_of_the_bench_is_the_record() -> None:
    wanted = table.markdown(record.read(RESULTS / "resnet50.json"), "eager-fp32").strip()
    assert wanted
    assert wanted in marked(MEASURED, "table")


def test_the_gpu_table_is_the_record() -> None:
    assert marked(MEASURED, "gpu table") == gpu_tables.markdown(GPU_RECORD)


def test_the_table_of_versions_is_the_record() -> None:
    text = (ROOT / "docs" / "using.md").read_text(encoding="utf-8")
    assert marked(text, "versions") == versions.table()
    tested = {tuple(row[name] for name in ("torch", "triton")) for row in versions.rows()}
    assert {version.partition("+")[0] for version, _ in tested} >= {"2.9.1", "2.11.0", "2.14.1"}


def test_the_table_of_accuracy_is_the_record() -> None:
    assert marked(MEASURED, "accuracy") == accuracy.markdown(accuracy.read(accuracy.RECORD))


def test_the_table_of_throughput_is_the_record(capsys: pytest.CaptureFixture[str]) -> None:
    assert throughput.main(["--from-record", str(RESULTS / "throughput.json")]) == 0
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert marked(MEASURED, "throughput").splitlines() == printed


def test_the_table_of_coverage_is_the_record() -> None:
    found = coverage_record.read(RESULTS / "coverage.json")
    assert marked(MEASURED, "coverage") == coverage_table.markdown(found)
    assert len(found.rows) >= 40


def test_int8_is_as_accurate_as_is_said() -> None:
    """At most half a point less than float32, the same answers, no worse than others' int8."""
    results = [each for each in accuracy.read(accuracy.RECORD) if each.rows[0].right is not None]
    assert len(results) == 4
    for result in results:
        rows = {row.way: row for row in result.rows}
        ours = rows["fastres int8, mse"]
        reference = rows["torch eager fp32"]
        assert ours.right is not None and reference.right is not None
        assert reference.right / reference.images > 0.85  # it has learned something
        assert ours.right >= reference.right - 0.005 * reference.images
        assert ours.agreement >= 0.99
        others = [rows["NNCF int8, in OpenVINO"], rows["ONNX Runtime int8"]]
        assert all(ours.interval[1] >= other.interval[0] for other in others)


def test_what_is_said_of_the_peak_is_the_record() -> None:
    found = json.loads((RESULTS / "layers.json").read_text())
    text = flat(MEASURED)
    shares = []
    for each in found["precisions"]:
        seconds = sum(statistics.median(row["native_ns"]) for row in each["convolutions"]) / 1e9
        products = found["batch"] * sum(row["multiply_adds"] for row in each["convolutions"])
        shares.append(f"{products / seconds / statistics.median(each['peak']):.0%}")
    assert f"At batch {found['batch']}, {shares[2]} in int8" in text
    assert f"({shares[0]} in float32 and {shares[1]} in bfloat16" in text


def test_the_hosts_time_is_the_record() -> None:
    rows = json.loads((RESULTS / "host_time.json").read_text())["rows"]
    (added,) = (row["added_us"] for row in rows if row["model"] == "resnet50")
    sentence = f"that adds {added:.0f} microseconds to the bare launch of a ResNet-50"
    assert sentence in flat(MEASURED)


def lines(name: str) -> list[dict[str, object]]:
    """A record of the GPU day, result by result."""
    return [json.loads(line) for line in (RESULTS / "gpu_day" / name).read_text().splitlines()]


def test_what_is_said_of_amx_is_the_record() -> None:
    passed = re.search(r"(\d+) passed", str(lines("2026-11-28b/amx.jsonl")))
    assert passed is not None
    found = json.loads((RESULTS / "gpu_day" / "2026-11-28a" / "layers_cpu_amx.json").read_text())
    (rows,) = (each["convolutions"] for each in found["precisions"])
    ours, onednn = (
        sum(statistics.median(row[name]) for row in rows) / 1e6
        for name in ("native_ns", "onednn_ns")
    )
    text = flat(MEASURED)
    assert f"{passed[1]} tests of them passed" in text
    assert f"took {ours:.1f} ms an image on four threads, {onednn / ours:.1f} times" in text
    assert (found["threads"], found["batch"]) == (4, 1)


def test_what_is_said_of_the_gpu_is_the_record() -> None:
    compiled = [
        256e6 / float(str(row["back_to_back_us"]))
        for row in lines("2026-11-28a/models.jsonl")
        if row.get("key") == "resnet50 fp16 256: compile"
    ]
    (verdict,) = {
        str(row["verdict"]).partition(" eager")[0].rpartition(" ")[2]
        for row in lines("2026-11-28b/networks.jsonl")
        if "verdict" in row
    }
    text = flat(MEASURED)
    assert f"`torch.compile` made {compiled[-1]:,.0f} images per second at batch 256" in text
    assert f"The error was {verdict.removesuffix('x')} times eager's own in float16" in text
    configured = sum("config" in row for row in lines("2026-11-28b/layers.jsonl"))
    decision = (ROOT / "docs" / "decisions" / "cost-model-before-tuning.md").read_text()
    assert f"measured {configured} configurations" in flat(decision)


def test_the_import_graph_is_what_the_command_prints() -> None:
    printed = subprocess.run(
        [sys.executable, "docs/import_graph.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.rstrip("\n")
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert marked(text, "import graph") == f"```text\n{printed}\n```", (
        "paste what `python docs/import_graph.py` prints into docs/architecture.md"
    )


def test_every_folder_has_its_paragraph() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    folders = [p.parent for p in (ROOT / "fastres").glob("*/__init__.py")]
    missing = [f.name for f in folders if f"{f.name}/" not in text]
    assert len(folders) > 10
    assert missing == []


def test_the_glossary_is_short() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    _, _, glossary = text.partition("## Glossary")
    terms = re.findall(r"^\| ([\w, -]+) \|", glossary, flags=re.MULTILINE)[1:]
    assert 10 <= len(terms) <= 20
    assert terms == sorted(terms, key=str.lower)


def test_the_bounds_are_the_codes() -> None:
    text = (ROOT / "docs" / "numerics.md").read_text(encoding="utf-8")
    values = {name: value for name, value in vars(bounds).items() if name.isupper()}
    values |= {"FASTRES_BOUND": peer.FASTRES_BOUND, "PEER_BOUND": peer.PEER_BOUND}
    assert len(values) >= 8
    missing = [
        f"{name} = {value:g}"
        for name, value in values.items()
        if not re.search(rf"^\| `{name}` \| {value:g}\D", text, flags=re.MULTILINE)
    ]
    assert missing == []


def test_the_formats_of_images_are_the_codes() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    *others, last = preprocess._FORMATS
    assert f"{', '.join(others)} or {last}" in text


def test_the_range_of_errors_is_the_record() -> None:
    found = record.read(RESULTS / "resnet50.json")
    ratios = [
        row.error_ratio
        for batch in found.batches
        for row in batch.rows
        if row.name == "fastres" and row.error_ratio is not None
    ]
    text = (ROOT / "docs" / "numerics.md").read_text(encoding="utf-8")
    assert f"fastres between {min(ratios):.2f} and {max(ratios):.2f} times" in flat(text)


def test_contributing_names_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w.-]+/[\w./-]*)`", text))
    named = {path for path in named if "NAME" not in path}  # of files that the reader makes
    assert len(named) > 40
    missing = sorted(path for path in named if not (ROOT / path).exists())
    tests = set(re.findall(r"`(test_\w+\.py)`", text))  # wherever they lie
    missing += sorted(tests - {path.name for path in (ROOT / "tests").rglob("test_*.py")})
    assert missing == []
