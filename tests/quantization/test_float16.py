"""``optimize(..., precision="fp16", calibration=...)``: beyond its range layers are float32."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastres
from fastres.accuracy.relative_error import ErrorSums
from fastres.artifact.quantized import float16_ranges_from_json
from fastres.errors import (
    ArtifactError,
    FastresError,
    FastresWarning,
    InputError,
    ModelError,
    OptionError,
)
from fastres.ir.precision import rounded_as_float16
from fastres.quantization.float16_ranges import Range
from fastres.transforms import Transforms
from tests.support.optimizing import optimize
from tests.support.oracle import float64_error, in_precision, unchanged
from tests.support.small import Net, classifier, conv, images, measured, net
from tests.zoo.resblk import ConcatenationNetwork
from tests.zoo.statistics import randomise_statistics

STEP = 2.0**15
"""A power of two, so that a network blown up by it has the answers, and in a precision without end
the rounding errors, of the one before."""


def blown(model: nn.Module, batch_norm: str, reader: str, factor: float = STEP) -> nn.Module:
    """The same function, its values ``factor`` times larger between two layers."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for value in twin.get_submodule(batch_norm).parameters():
            value.mul_(factor)
        weight = twin.get_submodule(reader).weight
        assert isinstance(weight, Tensor)
        weight.div_(factor)
    return twin


def stays(fast: Any) -> dict[str, str]:
    """The layers that the receipt says stay in float32, with the reasons."""
    split = (note.partition(": stays in float32: ") for note in fast.report.notes)
    return {module: reason for module, found, reason in split if found}


def assert_like(twin: nn.Module, fast: Any, x: Tensor) -> None:
    """At most twice as far from float64 as torch's own float16 is in the network before."""
    error = float64_error(twin, lambda y: fast(y.to(fast.report.device)).cpu(), x, precision="fp16")
    assert error.ratio <= 2.0


def assert_near(model: nn.Module, fast: Any, x: Tensor, bound: float) -> None:
    with torch.no_grad():
        exact = in_precision(model, torch.float64)(x.double())
        assert float((fast(x) - exact).norm() / exact.norm()) < bound


def wide_layers(fast: Any) -> list[str]:
    return [module for module, _, dtype in fast.report.layers if dtype == "torch.float32"]


@pytest.mark.parametrize("engine", ["eager", "triton"])
def test_a_layer_that_overflows_stays_in_float32(engine: str, device: str) -> None:
    twin: Any = classifier()
    x = images(4, 3, 16, 16)
    model = blown(twin, "block.1", "block.3")
    assert not in_precision(model, torch.float16)(x.half()).isfinite().any()
    fast = optimize(model, x[:1], precision="fp16", calibration=[x], engine=engine, device=device)
    assert fast.engine == engine
    assert_like(twin, fast, images(3, 3, 16, 16))
    told = stays(fast)
    assert list(told) == ["block.0", "block.3"]
    reached = twin.block[:3](twin.stem(x)).detach().max()
    assert told["block.0"] == (
        f"its values reach {float(reached) * STEP:.4g}, past float16's 65504"
    )
    assert told["block.3"].startswith("it reads block.0")
    assert wide_layers(fast) == ["block.0", "block.3"]


def test_nothing_stays_wider_without_an_outlier() -> None:
    model, x = classifier(), images(4, 3, 16, 16)
    fast = optimize(model, x[:1], precision="fp16", calibration=[x], engine="eager")
    plain = optimize(model, x[:1], precision="fp16", engine="eager")
    assert stays(fast) == {}
    assert wide_layers(fast) == []
    assert torch.equal(fast(x), plain(x))
    assert fast.report.precision == "float16"
    assert any("by the ranges of 4 images, with a factor of 2 to spare: no layers" in note
               for note in fast.report.notes)  # fmt: skip
    assert fast.report.layers == plain.report.layers


@pytest.mark.campaign
def test_the_yardstick_is_float16_without_its_end() -> None:
    """torch's own error is, to the last bit, that of the network before it was blown up."""
    twin, x = classifier(), images(4, 3, 16, 16)
    model = blown(twin, "block.1", "block.3")
    fast = optimize(model, x[:1], precision="fp16", calibration=[x], engine="eager")
    result = fastres.verify(model, fast, x)
    sums = ErrorSums(0.0)
    with torch.no_grad():
        exact, eager = in_precision(twin, torch.float64), in_precision(twin, torch.float16)
        sums.add_eagers(eager(x.half()), exact(x.double()))
    assert result.eager_error == sums.eager_error
    assert result.passed
    assert result.first_drift is None
    values = torch.cat([torch.randn(1000).abs() + 1, torch.arange(2048, 4096) + 0.5])  # and ties
    for size in (-(2.0**-14), 1.0, 2.0**3):
        given = values * size
        assert torch.equal(rounded_as_float16(given), given.half().float())
    large = torch.tensor([torch.inf, -torch.inf, torch.nan, 3e38])
    assert torch.equal(rounded_as_float16(large).nan_to_num(1.0), large.nan_to_num(1.0))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("factor", "expected"),
    [(0.9, {}), (1.1, {"a": "within a factor of 2 of"}), (2.2, {"a": "past"})],
)
def test_the_margin_is_a_factor_of_two(factor: float, expected: dict[str, str]) -> None:
    model, x = net(lambda m, x: m.b(m.a(x).relu()), a=conv(4, 8), b=conv(8, 8)), images(4)
    reached = float(model.a(x).relu().detach().max())  # type: ignore[operator]
    with torch.no_grad():
        for name, scale in (("a", factor * 32752 / reached), ("b", 2.0**-8)):
            for value in model.get_submodule(name).parameters():
                value.mul_(scale)
        model.a.bias.clamp_(min=0)  # type: ignore[union-attr,operator]
    fast = fastres.optimize(model, x[:1], precision="fp16", calibration=[x])
    told = stays(fast)
    assert list(told) == [*expected, *(["b"] if expected else [])]
    for name, part in expected.items():
        assert part in told[name]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("scale", "module", "text"),
    [
        ({"a": 2.0**-22, "b": 2.0**22}, "a", "so small that float16 would lose"),
        ({"b": 2.0**-18}, "b", "does not hold its folded weights or biases"),
        ({"a": 2.0**18, "b": 2.0**-18}, "a", "past float16's 65504"),
    ],
    ids=["small values", "small weights", "large"],
)
def test_reasons(scale: dict[str, float], module: str, text: str) -> None:
    model = net(lambda m, x: m.b(m.a(x).relu()), a=conv(4, 8, bias=False), b=conv(8, 8, bias=False))
    x = images(4)
    with torch.no_grad():
        for name, factor in scale.items():
            model.get_submodule(name).weight.mul_(factor)  # type: ignore[operator]
    fast = optimize(model, x[:1], precision="fp16", calibration=[x])
    assert text in stays(fast)[module]
    assert_near(model, fast, x, 2e-3)


@pytest.mark.campaign
def test_a_sum_that_its_activation_hides(device: str) -> None:
    """A value far below zero is cut off by the activation behind it, or makes NaN of HardSwish."""
    model, x = net(lambda m, x: m.act(m.a(x)), a=conv(4, 8), act=nn.Hardswish()), images(4)
    with torch.no_grad():
        model.a.weight.mul_(1e-3)  # type: ignore[union-attr,operator]
        model.a.bias.fill_(-9e4)  # type: ignore[union-attr,operator]
    fast = optimize(model, x[:1], precision="fp16", calibration=[x])
    assert "its sums reach 9e+04" in stays(fast)["a"]
    assert torch.equal(fast(x), torch.zeros(4, 8, 9, 8))


@pytest.mark.campaign
def test_a_residual_stream_that_grows() -> None:
    """What reads a value beyond float16 stays too, until its own results fit again."""
    twin, x = classifier(), images(4, 3, 16, 16)
    model = copy.deepcopy(twin)
    with torch.no_grad():
        for value in model.get_submodule("block.4").parameters():
            value.mul_(STEP)
    fast = optimize(model, x[:1], precision="fp16", calibration=[x])
    told = stays(fast)
    assert next(iter(told)) == "block.3"
    assert "past float16's 65504" in told["block.3"]
    assert all("it reads block" in reason for reason in list(told.values())[1:])
    assert "block.0" not in told
    assert_near(model, fast, x, 5e-3)


def _concatenated() -> nn.Module:
    torch.manual_seed(0)
    return randomise_statistics(ConcatenationNetwork(), torch.randn(8, 3, 21, 22)).eval()


def _split() -> nn.Module:
    """Two halves of the channels, one of which is beyond float16 in between."""

    def forward(m: Any, x: Tensor) -> Tensor:
        one, other = m.a(x).split(4, dim=1)
        answer: Tensor = m.c((one * 1e5) * 1e-5 + m.b(other))
        return answer

    return net(forward, a=conv(4, 8), b=conv(4, 4), c=conv(4, 4))


def _autocast() -> nn.Module:
    """A part of the model asks for bfloat16 by itself."""

    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = m.a(x)
        answer: Tensor = m.b(y.to(x.dtype) * 1e5) * 1e-5
        return answer

    return net(forward, a=conv(4, 8), b=conv(8, 4))


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("model", "shape", "wide"),
    [(_concatenated, (3, 21, 22), False), (_split, (4, 9, 8), True), (_autocast, (4, 9, 8), True)],
    ids=["concatenation", "split", "autocast"],
)
def test_other_graphs(model: Callable[[], nn.Module], shape: tuple[int, ...], wide: bool) -> None:
    made, x = model(), torch.randn(3, *shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FastresWarning)  # of what is left to torch
        fast = fastres.optimize(made, x[:1], precision="fp16", calibration=[x])
    assert bool(stays(fast)) == wide
    assert_near(made, fast, x, 2e-2 if model is _autocast else 5e-3)


@pytest.mark.campaign
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_of_another_dtype(dtype: torch.dtype) -> None:
    twin, x = classifier(), images(4, 3, 16, 16).to(dtype)
    model = blown(twin, "block.1", "block.3", 2.0**14).to(dtype)
    fast = optimize(model, x[:1], precision="fp16", calibration=[x])
    assert fast(x).dtype == dtype
    assert_near(model, fast, x, 1e-2)
    assert "block.0" in stays(fast)


@pytest.mark.campaign
def test_bytes_in_and_probabilities_out() -> None:
    twin = classifier()
    model = blown(twin, "block.1", "block.3")
    pixels = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8)
    options: dict[str, Any] = {
        "input_format": "uint8_nhwc", "softmax": True, "top_k": 3,
        "transforms": Transforms(resize=16, crop=16, mean=(0.5,) * 3, std=(0.25,) * 3),
    }  # fmt: skip
    fast = optimize(model, precision="fp16", calibration=[pixels], **options)
    plain = optimize(twin, **options)
    values, indices = fast(pixels)
    expected, places = plain(pixels)
    assert list(stays(fast)) == ["block.0", "block.3"]
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, expected, rtol=0, atol=5e-3)
    assert torch.equal(indices[:, 0], places[:, 0])


@pytest.mark.campaign
def test_a_saved_model_answers_alike_and_takes_new_weights(tmp_path: Path) -> None:
    twin, x = classifier(), images(4, 3, 16, 16)
    model = blown(twin, "block.1", "block.3")
    fast = optimize(model, x[:1], precision="fp16", calibration=[x], engine="eager")
    fast.save(tmp_path / "model")
    loaded = fastres.load(tmp_path / "model", engine="eager")
    assert torch.equal(loaded(x), fast(x))
    assert loaded.has_wider_layers
    loaded.refresh(model.state_dict())
    assert torch.equal(loaded(x), fast(x))
    assert stays(loaded) == stays(fast)
    loaded.refresh(twin.state_dict())  # ranges are those of the calibration
    assert list(stays(loaded)) == list(stays(fast))
    assert_like(twin, loaded, x)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "values",
    [{"a": [1.0, 2.0]}, {"a": [1.0, 2.0, -1.0]}, {"a": "x"}, {"a": [1.0, 2.0, 1e300]}, []],
    ids=["two", "negative", "text", "huge", "list"],
)
def test_a_file_with_other_ranges_is_refused(values: Any) -> None:
    with pytest.raises(ArtifactError, match="ranges"):
        float16_ranges_from_json({"images": 1, "values": values})


def test_answers_that_overflow_say_what_to_do() -> None:
    model, x = blown(classifier(), "block.1", "block.3"), images(2, 3, 16, 16)
    with pytest.warns(FastresWarning, match="because float16 ends at 65504: precision='fp16' with"):
        fast = fastres.optimize(model, x, precision="fp16", engine="eager")
    assert any("20 answers to a sample [2, 3, 16, 16] are NaN or infinite" in note
               for note in fast.report.notes)  # fmt: skip


@pytest.mark.campaign
def test_a_sample_beyond_the_calibration_is_told() -> None:
    model, x = blown(classifier(), "block.1", "block.3", 2.0**13), images(2, 3, 16, 16)
    with pytest.warns(FastresWarning, match="calibrate on images like these"):
        fast = fastres.optimize(
            model, x * 100, precision="fp16", calibration=[x * 0.01], engine="eager"
        )
    assert stays(fast) == {}


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (lambda: [], OptionError, "calibration holds no image"),
        (lambda: 5, OptionError, "calibration: got a int"),
        (lambda: [images(1, channels=3)], InputError, "calibration: batch 0"),
        (lambda: [images(0)], InputError, "batch 0 is empty"),
        (lambda: [torch.full((1, 4, 9, 8), torch.nan)], InputError, "holds NaN or infinity"),
        (lambda: [images(1), images(1) * 1e30], InputError, "in float32; expected a network"),
        (lambda: "nowhere", FastresError, "without transforms"),
    ],
    ids=["none", "number", "channels", "empty", "NaN", "overflow", "folder"],
)
def test_bad_calibration_data_is_refused(
    data: Callable[[], Any], error: type[FastresError], text: str
) -> None:
    model = net(lambda m, x: m.a(x) * 1e5, a=conv(4, 8))
    with unchanged(model), pytest.raises(error, match=text):
        fastres.optimize(model, images(1), precision="fp16", calibration=data())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"precision": "bf16"},
            "calibration: got with precision='bf16', expected precision='int8'",
        ),
        ({}, "calibration: got with precision=None"),
        ({"precision": "fp16", "observer": "mse"}, "observer: got with precision='fp16', expected"),
        ({"precision": "fp16", "keep": {"a": "fp32"}}, "keep: got with precision='fp16', expected"),
    ],
    ids=["bf16", "own", "observer", "keep"],
)
def test_options_that_do_not_go_together(options: dict[str, Any], text: str) -> None:
    model = Net(lambda m, x: m.a(x), a=conv(4, 8)).eval()
    with pytest.raises(OptionError, match=text):
        fastres.optimize(model, images(1), calibration=[images(2)], **options)


@pytest.mark.campaign
def test_weights_of_another_graph_need_another_calibration() -> None:
    """A BatchNorm that cannot be folded with these weights is an operator that nobody looked at."""

    def forward(m: Any, x: Tensor) -> Tensor:
        answer: Tensor = m.b(torch.relu(m.bn(x)))
        return answer

    parts = {"bn": nn.BatchNorm2d(4), "b": conv(4, 4)}
    model, x = measured(Net(forward, **parts)), images(2)
    fast = optimize(model, x, precision="fp16", calibration=[x])
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.bn.running_mean.fill_(1e4)  # type: ignore[union-attr,operator]
        other.bn.running_var.fill_(1e-3)  # type: ignore[union-attr,operator]
    before = fast(x)
    with pytest.raises(ModelError, match="bn: calibration has not seen its values"):
        fast.refresh(other.state_dict())
    assert torch.equal(fast(x), before)


def test_a_ranges_reason() -> None:
    assert Range(1.0, 1.0, 1e-4).reason is None
    assert Range(0.0, 0.0, 0.0).reason is None
    assert "its sums reach 4e+04, within a factor of 2 of" in str(Range(1.0, 4e4, 0.0).reason)
    assert Range(1.0, 4e4, 0.0).is_held
    assert "would lose 1.0e-02" in str(Range(1e-7, 1e-7, 1e-2).reason)
