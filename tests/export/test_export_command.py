"""The command: what it writes, prints and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch

from fastres import cli, models
from fastres.errors import VerificationError
from fastres.export import command
from tests.support.small import Small, small_model

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.syspath_prepend(str(HERE))


def build() -> Small:
    """A model of the user's own, by its name on the command line."""
    return Small()


def test_a_file_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, labels, weights = tmp_path / "m.onnx", tmp_path / "labels.txt", tmp_path / "w.pth"
    labels.write_text("one\ntwo\nthree\nfour\nfive\n", encoding="utf-8")
    torch.save(small_model().state_dict(), weights)
    words = f"""export --model test_export_command:build --weights {weights} --out {path} --size 40
        --dynamic-size --opset 17 --labels {labels}"""
    assert cli.main(words.split()) == 0
    shown = capsys.readouterr().out
    for part in (
        *("opset 17", "x float32 [batch, 3, height, width]", "output float32 [batch, 5]"),
        *("6 Conv, 5 Relu", "against float64", "float64's on 12 of 12 images", "sha256"),
        *("onnx.checker", "2x3x47x61", "all operators are on TensorRT's list"),
    ):
        assert part in shown, shown
    assert "random" not in shown
    given = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert json.loads(given["fastres.labels"])[4] == "five"


def test_random_weights_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"--model cifar_resnet20 --size 32 --out {tmp_path / 'm.onnx'} --external-data"
    assert command.main(words.split()) == 0
    shown = capsys.readouterr().out
    assert "The weights are random" in shown
    assert ".data" in shown


def test_another_number_of_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, out = tmp_path / "w.pth", tmp_path / "m.onnx"
    torch.save(models.cifar_resnet20(num_classes=7).state_dict(), weights)
    words = f"--model cifar_resnet20 --size 32 --weights {weights} --out {out}".split()
    assert command.main(words) == 2
    assert "another number of classes" in capsys.readouterr().err
    assert command.main([*words, "--classes", "0"]) == 2
    assert "--classes 0: expected a number" in capsys.readouterr().err
    assert command.main([*words, "--classes", "7"]) == 0
    assert "output float32 [batch, 7]" in capsys.readouterr().out


@pytest.mark.campaign
def test_depth_and_float16(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thin ResNet-18 stands in for the real one, which takes half a minute in float16."""
    thin = models.cifar_resnet20()
    monkeypatch.setattr(models, "build", lambda name, **_: {"resnet18": thin}[name])
    path = tmp_path / "m.onnx"
    words = f"--depth 18 --size 32 --precision fp16 --float32-io --out {path}"
    assert command.main(words.split()) == 0
    assert "float16" in capsys.readouterr().out
    assert {n.op_type for n in onnx.load(path).graph.node} >= {"Cast", "Conv"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--depth 19", "did you mean"),
        ("--model nobody:function", "there is no module nobody"),
        ("--weights none.pth", "there is no such file"),
        ("--labels none.txt", "none.txt"),
        ("--opset 3", "opset: got 3, expected an integer from 13 to 23"),
        ("--size 0", "--size 0"),
        ("--precision int8", "fastres.optimize(model, precision='int8', calibration=...)"),
    ],
)
def test_what_cannot_be(
    words: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words.split() if words.startswith(("--depth", "--model")) else [
        *("--model", "test_export_command:build"), *words.split()
    ]  # fmt: skip
    assert command.main([*given, "--out", str(tmp_path / "m.onnx")]) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_differs_is_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def differs(*args: object, **kwargs: object) -> None:
        raise VerificationError("the exported file differs")

    monkeypatch.setattr(command, "to_onnx", differs)
    words = ["--model", "test_export_command:build", "--out", str(tmp_path / "m.onnx")]
    assert command.main(words) == 1
    assert "fastres export: the exported file differs" in capsys.readouterr().err


@pytest.mark.campaign
def test_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastres.export", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "usage: python -m fastres.export" in done.stdout
    assert "Exit status: 0, or 1" in done.stdout
