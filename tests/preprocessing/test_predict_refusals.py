"""``python -m fastres.predict`` with options, weights and outputs that cannot be."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import fastres
from fastres.predict import main, writing
from tests.support.predicting import SMALL, Setting
from tests.support.small import classifier


def refusals(setting: Setting, home: Path) -> dict[str, tuple[list[str], str]]:
    """Options that cannot be, with what is said."""
    image, weights = str(setting.images[0]), str(setting.weights)
    cifar = ["--model", "cifar_resnet20"]
    state = setting.network.state_dict()

    class Code:
        def __reduce__(self) -> Any:
            return os.system, ("echo run",)

    files: dict[str, Any] = {
        "renamed.pth": {"other." + name: value for name, value in state.items()},
        "shapes.pth": {**state, "fc.weight": torch.zeros(7, 64)},
        "number.pth": {"weight": 3},
    }
    for name, content in files.items():
        torch.save(content, home / name)
    (home / "code.pth").write_bytes(pickle.dumps(Code()))
    (home / "broken.safetensors").write_bytes(b"{}")
    (home / "few.txt").write_text("cat\ndog\n", encoding="utf-8")
    (home / "broken.json").write_text("{", encoding="utf-8")
    os.mkfifo(home / "pipe")
    (home / "x").mkdir()
    known = ["--transforms", str(setting.transforms)]
    return {
        "no weights": ([*cifar, image], "would be random, which predict nothing"),
        "no transforms": ([*cifar, "--weights", weights, image], "give --transforms, a JSON"),
        "unknown model": (["--model", "resnet51", image], "did you mean resnet50"),
        "missing weights": (
            [*cifar, "--weights", "no.pth", image],
            "weights no.pth: there is no such file",
        ),
        "wrong names": (
            [*cifar, *known, "--weights", str(home / "renamed.pth"), image],
            "of the model's tensors are not there, first conv1.weight",
        ),
        "wrong shapes": (
            [*cifar, *known, "--weights", str(home / "shapes.pth"), image],
            "fc.weight is [7, 64], and [10, 64] in the model",
        ),
        "no tensors": (
            [*cifar, *known, "--weights", str(home / "number.pth"), image],
            "'weight' is a int; expected a state dict",
        ),
        "code": (
            [*cifar, *known, "--weights", str(home / "code.pth"), image],
            "it cannot be read as tensors alone",
        ),
        "no safetensors": (
            [*cifar, *known, "--weights", str(home / "broken.safetensors"), image],
            "it is no safetensors file",
        ),
        "labels": (
            [*setting.options("--labels", home / "few.txt"), image],
            "--labels: 2 names for a model of 10 classes",
        ),
        "transforms": (
            [*setting.options("--transforms", home / "broken.json"), image],
            "cannot be read as JSON",
        ),
        "classes": (
            [*setting.options("--classes", "12"), image],
            "[10, 64], and [12, 64] in the model",
        ),
        "output in no folder": (
            [*setting.options("--csv", home / "no" / "out.csv"), image],
            "out.csv: cannot be written: ",
        ),
        "output is a folder": (
            [*setting.options("--json", home), image],
            f"--json {home}: cannot be written: it is a directory",
        ),
        "one output twice": (
            [*setting.options("--csv", home / "o", "--json", home / "x" / ".." / "o"), image],
            "this file is --csv already; give another name",
        ),
        "output is an image": (
            [*setting.options("--csv", setting.images[5]), str(setting.folder)],
            "this file is read here",
        ),
        "output is the weights": (
            [*setting.options("--json", setting.weights), image],
            "this file is read here",
        ),
        "output is a pipe": (
            [*setting.options("--json", home / "pipe"), image],
            "no regular file, and is not replaced",
        ),
        "device": ([*setting.options("--device", "nonsense"), image], "device='nonsense'"),
        "calibration of nothing": (
            [*setting.options("--calibration", home), image],
            "got with no --precision, expected --precision int8 or fp16",
        ),
        "calibration by a file": (
            [*setting.options("--precision", "int8", "--calibration", image), image],
            "expected a folder of images",
        ),
        "calibration without images": (
            [*setting.options("--precision", "fp16", "--calibration", home), image],
            "no image",
        ),
        "output is of the calibration": (
            [
                *setting.options("--precision", "int8", "--calibration", setting.folder),
                *("--csv", str(setting.images[3]), image),
            ],
            "this file is read here",
        ),
    }


NAMED = (
    *("no weights", "no transforms", "unknown model", "missing weights", "wrong names"),
    *("wrong shapes", "no tensors", "code", "no safetensors", "labels", "transforms", "classes"),
    *("output in no folder", "output is a folder", "one output twice", "output is an image"),
    *("output is the weights", "output is a pipe", "device"),
    *("calibration of nothing", "calibration by a file", "calibration without images"),
    "output is of the calibration",
)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", NAMED)
def test_options_that_cannot_be(
    setting: Setting, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    every = refusals(setting, tmp_path)
    assert tuple(every) == NAMED
    arguments, message = every[name]
    before = sorted(tmp_path.iterdir())
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("fastres predict: ")
    assert message in err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("options", "saved", "message"),
    [
        (["--weights", "x.pth"], {}, "--weights with --model "),
        (["--precision", "bf16"], {}, "a saved model has its own"),
        ([], {}, "takes normalised images and does not say how; give --transforms"),
        (["--size", "64"], {}, "--size with a saved model needs --transforms"),
        (
            [],
            {"input_format": "uint8_nhwc", "transforms": SMALL, "top_k": 2, "softmax": True},
            "--top-k 5: the saved model answers 2 classes",
        ),
        (
            [],
            {"input_format": "uint8_nhwc", "transforms": SMALL, "top_k": 5},
            "there are no probabilities; optimise it with softmax=True too",
        ),
    ],
)
def test_saved_models_that_cannot_be_used_so(
    setting: Setting,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    saved: dict[str, Any],
    message: str,
) -> None:
    file = tmp_path / "model.fastres"
    example = None if saved else torch.zeros(1, 3, 32, 32)
    fastres.optimize(classifier(), example, **saved).save(file)
    assert main(["--model", str(file), *options, str(setting.images[0])]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.campaign
def test_an_output_that_cannot_be_written_leaves_the_old_one(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.csv"
    out.write_text("old", encoding="utf-8")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(writing._WRITERS, "csv", full)
    assert setting.run("--csv", out, setting.images[0]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]
    assert out.read_text(encoding="utf-8") == "old"


def test_parquet_without_pyarrow(
    setting: Setting,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(writing, "find_spec", lambda _: None)
    assert setting.run("--parquet", tmp_path / "out.parquet", setting.images[0]) == 2
    assert "--parquet needs pyarrow: pip install 'fastres[parquet]'" in capsys.readouterr().err
