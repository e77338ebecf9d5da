"""``python -m fastres.predict``: real images, one of them damaged; files, options, Ctrl-C."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import fastres
from fastres import cli
from fastres.errors import OptionError
from fastres.models import cifar_resnet20
from fastres.predict import calibration, main, model, writing
from fastres.preprocess import load_images
from fastres.quantization import folder
from fastres.transforms import Transforms
from fastres.workload import model_source as sources
from tests.support.predicting import COUNT, DAMAGED, NAMES, SMALL, Setting


@pytest.fixture(scope="module")
def wanted(setting: Setting) -> list[list[tuple[int, float]]]:
    """The three likeliest classes of each readable image, by hand."""
    readable = [path for i, path in enumerate(setting.images) if i != DAMAGED]
    with torch.no_grad():
        chances = torch.softmax(setting.network(load_images(readable, SMALL)).double(), 1)
    values, indices = chances.topk(3)
    return [
        list(zip(row.tolist(), value.tolist(), strict=True))
        for row, value in zip(indices, values, strict=True)
    ]


def assert_alike(got: list[tuple[int, float]], by_hand: list[tuple[int, float]]) -> None:
    assert [index for index, _ in got] == [index for index, _ in by_hand]
    assert [chance for _, chance in got] == pytest.approx(
        [chance for _, chance in by_hand], abs=1e-4
    )


@pytest.mark.campaign
def test_200_images_with_a_damaged_one(
    setting: Setting,
    wanted: list[list[tuple[int, float]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("pyarrow")
    outputs = {kind: tmp_path / f"out.{kind}" for kind in ("csv", "json", "parquet")}
    options = [str(part) for kind, path in outputs.items() for part in (f"--{kind}", path)]
    assert setting.run("--top-k", "3", "--batch", "64", *options, setting.folder) == 1
    out, err = capsys.readouterr()
    assert out == ""
    bad = setting.images[DAMAGED]
    (complaint, said) = err.splitlines()
    assert complaint.startswith(f"fastres predict: {bad} cannot be read as an image")
    assert said.startswith(f"fastres predict: {COUNT - 1} images in ")
    assert said.endswith("; 1 could not be classified")

    stored = json.loads(outputs["json"].read_text(encoding="utf-8"))
    entries = stored["images"]
    assert [Path(entry["image"]) for entry in entries] == setting.images
    assert (entries[DAMAGED]["predictions"], entries[DAMAGED]["error"]) == (
        [],
        complaint.removeprefix("fastres predict: "),
    )
    assert Transforms.from_dict(stored["transforms"]) == SMALL
    assert stored["precision"] == "float32"
    readable = [entry for i, entry in enumerate(entries) if i != DAMAGED]
    for entry, by_hand in zip(readable, wanted, strict=True):
        assert entry["error"] is None
        found = entry["predictions"]
        assert_alike([(c["class"], c["probability"]) for c in found], by_hand)
        assert [c["label"] for c in found] == [NAMES[index] for index, _ in by_hand]
    assert len({entry["predictions"][0]["class"] for entry in readable}) > 2

    flat = [
        [e["image"], rank, c["class"], c["label"], c["probability"], None]
        for e in entries
        for rank, c in enumerate(e["predictions"], 1)
    ]
    position = 3 * DAMAGED
    flat.insert(position, [str(bad), None, None, None, None, entries[DAMAGED]["error"]])
    assert_same_rows(outputs, flat)


def assert_same_rows(outputs: dict[str, Path], rows: list[list[Any]]) -> None:
    """CSV and Parquet hold these rows, and nothing is lost on the way."""
    from pyarrow import parquet

    with outputs["csv"].open(encoding="utf-8", newline="") as file:
        header, *lines = list(csv.reader(file))
    assert tuple(header) == writing.COLUMNS
    assert [line[:4] for line in lines] == [
        ["" if value is None else str(value) for value in row[:4]] for row in rows
    ]
    assert [float(line[4]) if line[4] else None for line in lines] == [row[4] for row in rows]
    table = parquet.read_table(outputs["parquet"])
    assert tuple(table.column_names) == writing.COLUMNS
    assert [list(row.values()) for row in table.to_pylist()] == rows
    assert json.loads(table.schema.metadata[b"fastres"])["model"] == "cifar_resnet20"


@pytest.mark.campaign
def test_results_are_printed(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    first = setting.images[0]
    options = [option for option in setting.options() if option != "--quiet"]
    assert main([*options, "--top-k", "2", str(first)]) == 0
    out, err = capsys.readouterr()
    name, *lines = out.splitlines()
    assert name == str(first)
    assert len(lines) == 2
    assert all("%  kind " in line for line in lines)
    assert err.startswith("fastres predict: 1 image in ")


@pytest.mark.campaign
def test_folders_in_folders_and_other_files(
    setting: Setting, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a" / "deep").mkdir(parents=True)
    for name in ("b.png", "a/c.JPG", "a/deep/d.jpeg"):
        Image.open(setting.images[3]).convert("RGB").save(tmp_path / name)
    for name in ("notes.txt", "a/.hidden.png", "a/data.csv"):
        (tmp_path / name).write_bytes(b"no image")
    out = tmp_path / "out.json"
    assert setting.run("--json", out, tmp_path, setting.images[4]) == 0
    found = [entry["image"] for entry in json.loads(out.read_text(encoding="utf-8"))["images"]]
    expected = [tmp_path / name for name in ("a/c.JPG", "a/deep/d.jpeg", "b.png")]
    assert found == [*map(str, expected), str(setting.images[4])]
    (tmp_path / "empty").mkdir()
    assert setting.run(tmp_path / "empty") == 2
    assert "holds no image" in capsys.readouterr().err


def test_a_missing_file_does_not_stop_the_rest(
    setting: Setting, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.csv"
    odd = tmp_path / "odd\nname [bold].png"
    Image.open(setting.images[3]).convert("RGB").save(odd)
    assert setting.run("--csv", out, "--top-k", "1", tmp_path / "missing.png", odd) == 1
    assert "missing.png does not exist" in capsys.readouterr().err
    with out.open(encoding="utf-8", newline="") as file:
        _, missing, found = list(csv.reader(file))
    assert missing[1:5] == ["", "", "", ""]
    assert found[:2] == [str(odd), "1"]


def test_names_that_are_no_text(setting: Setting, tmp_path: Path) -> None:
    name = tmp_path / os.fsdecode(b"caf\xe9.png")
    try:
        Image.open(setting.images[3]).convert("RGB").save(name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    out = tmp_path / "out.json"
    assert (
        main([*(o for o in setting.options() if o != "--quiet"), "--json", str(out), str(name)])
        == 0
    )
    (entry,) = json.loads(out.read_text(encoding="utf-8"))["images"]
    assert entry["image"] == f"{tmp_path}/caf\\xe9.png"


def test_damaged_files_whose_names_are_no_text(setting: Setting, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    name = tmp_path / os.fsdecode(b"caf\xe9.png")
    try:
        name.write_bytes(b"no image")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    outputs = {kind: tmp_path / f"out.{kind}" for kind in ("csv", "json", "parquet")}
    options = [str(part) for kind, path in outputs.items() for part in (f"--{kind}", path)]
    assert setting.run(*options, name, setting.images[0]) == 1
    (entry, _) = json.loads(outputs["json"].read_text(encoding="utf-8"))["images"]
    assert entry["error"].startswith(f"{tmp_path}/caf\\xe9.png is no image")
    assert "caf\\xe9.png is no image" in outputs["csv"].read_text(encoding="utf-8")


def test_odd_images_are_told_and_the_rest_goes_on(setting: Setting, tmp_path: Path) -> None:
    folder, picture = tmp_path / "odd", Image.open(setting.images[3]).convert("RGB")
    (folder / "directory.png").mkdir(parents=True)
    (folder / "empty.jpg").touch()
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "loop").symlink_to(folder)
    Image.new("I;16", (9, 9)).save(folder / "deep.png")
    for mode, name in (
        *(("CMYK", "cmyk.jpg"), ("P", "palette.gif"), ("LA", "alpha.png"), ("1", "bits.png")),
        *(("RGBA", "clear.webp"), ("YCbCr", "video.tiff")),
    ):
        picture.convert(mode).save(folder / name)
    picture.resize((1, 1)).save(folder / "pixel.png")
    picture.resize((1, 900)).save(folder / "thread.png")
    out = tmp_path / "out.json"
    assert setting.run("--json", out, "--exif", folder) == 1
    entries = json.loads(out.read_text(encoding="utf-8"))["images"]
    told = {Path(entry["image"]).name: entry["error"] for entry in entries}
    assert len(told) == len(entries) == 11
    wrong = {name for name, error in told.items() if error is not None}
    assert wrong == {"empty.jpg", "gone.png", "deep.png"}
    assert "does not exist" in told["gone.png"]
    assert "more than eight bits" in told["deep.png"]


def test_answers_that_are_no_numbers_are_errors(
    setting: Setting, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = cifar_resnet20().eval()
    with torch.no_grad():
        network.fc.weight[0, 0] = float("nan")
    weights, out = tmp_path / "w.pth", tmp_path / "out.json"
    torch.save(network.state_dict(), weights)
    arguments = setting.options("--weights", weights, "--json", out, setting.images[0])
    assert main(arguments) == 1
    assert "the model's answer is NaN" in capsys.readouterr().err
    (entry,) = json.loads(out.read_text(encoding="utf-8"))["images"]
    assert entry["predictions"] == []


@pytest.mark.sampled(8)
@pytest.mark.parametrize("form", ["uint8_nhwc", "uint8_nchw", "resize", "answers", "plain"])
def test_saved_models(
    setting: Setting, wanted: list[list[tuple[int, float]]], tmp_path: Path, form: str
) -> None:
    options: dict[str, Any] = {"input_format": form, "transforms": SMALL}
    if form == "plain":
        options = {}
    elif form == "resize":
        options = {"input_format": "uint8_nhwc", "transforms": SMALL, "resize": True}
    elif form == "answers":
        options |= {"input_format": "uint8_nhwc", "softmax": True, "top_k": 4, "labels": NAMES}
    file, out = tmp_path / "model.fastres", tmp_path / "out.json"
    example = torch.zeros(1, 3, 32, 32) if form == "plain" else None
    fastres.optimize(setting.network, example, **options).save(file)
    own = ["--transforms", str(setting.transforms)] if form == "plain" else []
    own += [] if form == "answers" else ["--labels", str(setting.labels)]
    some = [str(path) for path in setting.images[:9]]
    known = ["--model", str(file), "--quiet", "--json", str(out), "--top-k", "3"]
    assert main([*known, *own, *some]) == 0
    for entry, by_hand in zip(
        json.loads(out.read_text(encoding="utf-8"))["images"], wanted, strict=False
    ):
        found = entry["predictions"]
        near = 0.05 if form == "resize" else 1e-4  # bytes may be one off Pillow's
        assert found[0]["probability"] == pytest.approx(by_hand[0][1], abs=near)
        assert found[0]["class"] == by_hand[0][0]
        assert found[0]["label"] == NAMES[by_hand[0][0]]


@pytest.mark.campaign
def test_ctrl_c_leaves_no_file(setting: Setting, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    many = [str(path) for path in setting.images if path != setting.images[DAMAGED]] * 100
    options = [option for option in setting.options() if option != "--quiet"]
    command = [sys.executable, "-m", "fastres.predict", *options, "--csv", str(out), *many]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline()  # the first result: it is in the middle of its work
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted, nothing was written" in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_images_are_decoded_ahead_but_not_all_at_once(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastres.predict import images

    started: list[Path] = []

    def slow(path: Path, *_: Any, **__: Any) -> Any:
        started.append(path)
        return torch.zeros(2, 2, 3, dtype=torch.uint8)

    monkeypatch.setattr(images, "load_pixels", slow)
    paths = setting.images
    decoded = images.decode(paths, SMALL, exif=False, workers=2, ahead=5)
    assert next(decoded).path == paths[0]
    time.sleep(0.1)
    assert len(started) <= 6
    assert [image.path for image in decoded] == paths[1:]


def test_transforms_come_from_the_model() -> None:
    """Those of the published weights that a file is named after; timm's own."""
    torchvisions = model._torchvision_transforms
    first, second = Path("resnet50-0676ba61.pth"), Path("resnet50-11ad3fa6.pth")
    assert torchvisions("resnet50", first) == Transforms()
    assert torchvisions("resnet50", second) == Transforms(resize=232)
    assert torchvisions("resnet50", Path("mine.pth")) == Transforms(resize=232)
    assert model._resized(Transforms(resize=232), 112) == Transforms(resize=116, crop=112)
    assert len(model._published_labels(sources.parse("torchvision:resnet18")) or ()) == 1000
    timms = sources.build(sources.parse("timm:resnet10t"), seed=0)
    assert model._timm_transforms(timms) == Transforms(
        resize=201, crop=176, interpolation="bicubic"
    )


def test_it_is_a_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "--model", "resnet50", "x.png"]) == 2
    assert "would be random" in capsys.readouterr().err
    assert cli.main(["predict", "--top-k", "0", "--model", "resnet50", "x.png"]) == 2


def test_images_for_a_calibration(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    assert calibration.chosen(None, None, setting.images, False) is None
    assert calibration.chosen("fp16", None, setting.images, False) is None
    own = calibration.chosen("int8", None, setting.images[DAMAGED - 10 :], False)
    assert own is not None
    shapes = [tuple(batch.shape) for batch in own.batches(SMALL)]
    assert set(shapes[:-1]) <= {(8, 32, 32, 3), (7, 32, 32, 3)}, "one of them is damaged"
    left = min(calibration.OWN_IMAGES, COUNT - DAMAGED + 10)
    assert own.count == sum(shape[0] for shape in shapes) == left - 1
    assert str(own) == f"calibrated on {left - 1} images, the first of these"
    monkeypatch.setattr(folder, "MOST_IMAGES", 5)
    others = calibration.chosen("fp16", setting.folder, [], False)
    assert others is not None
    assert others.paths == setting.images[:: COUNT // 5]
    bad = calibration.chosen("int8", None, [setting.images[DAMAGED]], False)
    assert bad is not None
    with pytest.raises(OptionError, match="none of the first of these can be read"):
        list(bad.batches(SMALL))


@pytest.mark.campaign
@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_calibrated_precision(
    setting: Setting,
    wanted: list[list[tuple[int, float]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    precision: str,
) -> None:
    out = tmp_path / "out.json"
    few = tmp_path / "few"
    few.mkdir()
    for path in setting.images[:12]:
        (few / path.name).write_bytes(path.read_bytes())
    options: list[str | Path] = [] if precision == "int8" else ["--calibration", few]
    images = setting.images[:40]
    assert setting.run("--precision", precision, *options, "--json", out, *images) == 0
    said = capsys.readouterr().err
    stored = json.loads(out.read_text(encoding="utf-8"))
    expected = "calibrated on 40 images, the first of these"
    if precision == "fp16":
        expected = f"calibrated on 12 images, those in {few}"
    assert said.rstrip().endswith(expected)
    assert stored["calibration"] == expected
    assert stored["precision"] == {"int8": "int8", "fp16": "float16"}[precision]
    first = [entry["predictions"][0]["class"] for entry in stored["images"]]
    right = sum(got == by_hand[0][0] for got, by_hand in zip(first, wanted[:40], strict=True))
    assert right >= 36
