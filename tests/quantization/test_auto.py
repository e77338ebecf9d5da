"""``precision="auto"``: what is tried, what is refused, and what is taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastres
from fastres.errors import FastresWarning, OptionError
from fastres.optimization import precision_choice
from tests.quantization.test_int8 import small
from tests.support.small import conv, images, net


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds of a call by precision, in place of what a busy machine measures."""
    chosen = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0}

    def timed(candidates: Any, call: Any) -> None:
        for each in candidates:
            each.seconds = [chosen[each.fast.report.precision]] * 3

    monkeypatch.setattr(precision_choice, "_time", timed)
    return chosen


def taken(model: nn.Module, x: Tensor, **options: Any) -> tuple[str, list[str]]:
    fast = fastres.optimize(model, x[:1], precision="auto", **options)
    return fast.report.precision, fast.report.notes


def test_the_fastest_within_the_error_is_taken(speeds: dict[str, float]) -> None:
    model, x = small(), images(8)
    precision, notes = taken(model, x, calibration=[x])
    assert precision == "int8"
    assert any("took int8, the fastest within max_error=0.05" in note for note in notes)
    for name in ("own precision", "bf16", "int8"):
        assert any(note.startswith(f"tried {name}: ") for note in notes)


@pytest.mark.campaign
def test_an_error_that_is_too_large_is_refused(speeds: dict[str, float]) -> None:
    model, x = small(), images(8)
    precision, notes = taken(model, x, calibration=[x], max_error=1e-5)
    assert precision == "float32"
    tried = [note for note in notes if note.startswith("tried int8")]
    assert len(tried) >= 2, "and mixed ones"
    assert all("its error is larger than is allowed" in note for note in tried)


def test_int8_is_not_tried_without_calibration(speeds: dict[str, float]) -> None:
    precision, notes = taken(small(), images(4))
    assert precision == "bfloat16"
    assert not any("int8" in note for note in notes if note.startswith("tried"))


@pytest.mark.campaign
def test_nothing_that_is_slower_than_the_models_own_is_taken(speeds: dict[str, float]) -> None:
    speeds.update(bfloat16=4.0, int8=3.95)
    x = images(4)
    precision, _ = taken(small(), x, calibration=[x])
    assert precision == "float32"


@pytest.mark.campaign
def test_accuracy_on_labelled_images(speeds: dict[str, float]) -> None:
    model, x = small(), images(40)
    labels = model(x).argmax(dim=1)
    precision, notes = taken(model, x, calibration=[(x, labels)], max_accuracy_drop=1.0)
    assert precision == "int8"
    assert any("accuracy 100.00%" in note for note in notes if note.startswith("tried own"))
    wrong = (labels + 1) % 5  # every answer that int8 changes is a gain
    assert taken(model, x, calibration=[(x, wrong)], max_accuracy_drop=0.0)[0] == "int8"


@pytest.mark.campaign
def test_times_are_measured() -> None:
    x = images(4)
    _, notes = taken(small(), x, calibration=[x])
    assert all(" ms, error " in note for note in notes if note.startswith("tried"))


class Clock:
    """Seconds that only candidates take, ten each, and what is asked of the layers' errors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.measuring: list[float] = []
        made = precision_choice._made

        def slowly(*args: Any) -> Any:
            self.now += 10.0
            return made(*args)

        def measured(*args: Any, time_limit: float) -> Any:
            self.measuring.append(time_limit)
            return fastres.sensitivity(*args)

        monkeypatch.setattr(precision_choice, "_now", lambda: self.now)
        monkeypatch.setattr(precision_choice, "_made", slowly)
        monkeypatch.setattr(precision_choice, "sensitivity", measured)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("limit", "tried", "left_out", "measuring"),
    [
        (5, ["bf16"], "int8", []),
        (15, ["bf16", "int8"], "int8 with some layers in bf16", []),
        (25, ["bf16", "int8", "int8 with 1 layer in bf16"], "int8 with 2 layers in bf16", [5.0]),
        (
            95.5,
            ["bf16", "int8", "int8 with 1 layer in bf16", "int8 with 2 layers in bf16"],
            None,
            [60.0],
        ),
    ],
)
def test_a_time_limit_cuts_the_search_short(
    speeds: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
    limit: float,
    tried: list[str],
    left_out: str | None,
    measuring: list[float],
) -> None:
    clock, x = Clock(monkeypatch), images(8)
    precision, notes = taken(small(), x, calibration=[x], max_error=1e-5, time_limit=limit)
    assert precision == "float32"
    names = [note.removeprefix("tried ").split(":")[0] for note in notes if "tried " in note]
    cut = f"the search was cut short by time_limit={limit:g} seconds"
    assert names == ["own precision", *tried]
    assert [note for note in notes if "cut short" in note] == (
        [f"{cut}: not tried: {left_out}"] if left_out else []
    )
    assert clock.measuring == measuring


def overflowing() -> nn.Module:
    """Its float32 answers are fine; in float16 the values in the middle overflow."""
    model = net(lambda m, x: m.b(m.a(x).relu()), a=conv(4, 8, bias=False), b=conv(8, 4))
    with torch.no_grad():
        for value in model.get_submodule("a").parameters():
            value.mul_(2e5)
        for value in model.get_submodule("b").parameters():
            value.mul_(1e-4)
    return model


@pytest.mark.parametrize("calibrated", [False, True])
def test_what_overflows_is_not_taken(
    speeds: dict[str, float], monkeypatch: pytest.MonkeyPatch, calibrated: bool
) -> None:
    monkeypatch.setattr(precision_choice, "AUTOMATIC", {"cpu": ("fp16",)})
    model, x = overflowing(), images(2)
    options = {"calibration": [x]} if calibrated else {}
    precision, notes = taken(model, x, engine="eager", **options)
    assert precision == ("float16" if calibrated else "float32")
    assert any("a: stays in float32: its values reach" in note for note in notes) == calibrated
    (tried,) = [note for note in notes if note.startswith("tried fp16")]
    assert ("of its answers overflow" in tried) != calibrated


@pytest.mark.campaign
def test_what_overflows_on_the_sample_alone_is_not_taken(
    speeds: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision_choice, "AUTOMATIC", {"cpu": ("fp16",)})
    model, x = overflowing(), images(2)
    precision, notes = taken(model, x, calibration=[x * 1e-4], engine="eager")
    assert precision == "float32"
    (tried,) = [note for note in notes if note.startswith("tried fp16")]
    assert "float16 ends at 65504: calibrate on images like these" in tried


@pytest.mark.campaign
def test_a_model_that_overflows_itself_is_not_its_own_choice(speeds: dict[str, float]) -> None:
    model, x = overflowing().half(), images(2).half()
    speeds.update(float16=1.0, float32=4.0)
    with pytest.warns(FastresWarning, match="float16 ends at 65504"):
        plain = fastres.optimize(model, x[:1], engine="eager")
    assert plain.report.precision == "float16"
    precision, notes = taken(model, x, max_error=1.0, engine="eager")
    assert precision in ("float32", "bfloat16")
    (own,) = [note for note in notes if note.startswith("tried own")]
    assert "of its answers overflow" in own


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"time_limit": 0}, "time_limit: got 0, expected a positive number of seconds"),
        ({"max_error": 0}, "max_error: got 0, expected a positive relative error"),
        ({"max_error": "small"}, "max_error: got 'small'"),
        ({"max_accuracy_drop": 2}, "max_accuracy_drop: got 2, expected a share"),
        ({"max_accuracy_drop": 0.1, "calibration": [images()]}, "images without labels"),
        ({"calibration": []}, "calibration holds no image"),
    ],
    ids=["time_limit 0", "max_error 0", "max_error text", "drop 2", "no labels", "no images"],
)
def test_bad_limits_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        fastres.optimize(small(), images(1), precision="auto", **options)


@pytest.mark.parametrize("name", ["max_error", "max_accuracy_drop", "time_limit"])
def test_limits_belong_to_auto(name: str) -> None:
    with pytest.raises(OptionError, match=f"{name}: got with precision=None, expected"):
        fastres.optimize(small(), images(1), **{name: 0.1})  # type: ignore[arg-type]
