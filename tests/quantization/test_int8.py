"""``optimize(..., precision="int8")``: answers, receipts, what is refused, and what stays wider."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fastres
from fastres.errors import FastresError, InputError, OptionError, TargetError, VerificationError
from fastres.ir import ops
from fastres.quantization import calibration as calibrating
from fastres.quantization.observers import OBSERVERS
from fastres.transforms import Transforms
from tests.support.oracle import unchanged
from tests.support.small import Net, conv, images, measured


def small(activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    """A stem, a residual block and a classifier."""
    block = nn.Sequential(conv(8, 8), nn.BatchNorm2d(8), activation(), conv(8, 8))
    parts: dict[str, nn.Module] = {
        "stem": conv(4, 8),
        "act": activation(),
        "block": block,
        "pool": nn.AdaptiveAvgPool2d(1),
        "fc": nn.Linear(8, 5),
    }

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.act(net.stem(x))
        x = net.act(net.block(x) + x)
        answer: Tensor = net.fc(net.pool(x).flatten(1))
        return answer

    return measured(Net(forward, **parts))


def relative(ours: Tensor, expected: Tensor) -> float:
    return float((ours - expected).detach().norm() / expected.detach().norm())


def test_answers_are_near_and_integers_are_the_definitions() -> None:
    model, x = small(), images(6)
    with unchanged(model):
        fast = fastres.optimize(model, x[:1], precision="int8", calibration=[x])
    assert relative(fast(x), model(x)) < 0.05
    assert torch.equal(fast(x), fast.by_definition(x))
    targets = [node.target for node in fast.graph_module.graph.nodes]
    assert targets.count(ops.quantize) == 1
    assert targets.count(ops.quantized_conv2d) == 3
    assert ops.dequantize not in targets
    assert fast(x).dtype == torch.float32
    assert "int8" in str(fast.report)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("equalization", [False, True])
def test_every_option_gives_near_answers(observer: str, equalization: bool) -> None:
    model, x = small(), images(16)
    fast = fastres.optimize(
        model,
        x[:1],
        precision="int8",
        calibration=x.split(4),
        observer=observer,
        equalization=equalization,
        bias_correction=not equalization,
    )
    assert relative(fast(x), model(x)) < 0.1


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_of_another_dtype_keeps_it_outside(dtype: torch.dtype) -> None:
    model, x = small().to(dtype), images(4).to(dtype)
    fast = fastres.optimize(model, x[:1], precision="int8", calibration=[x])
    assert fast(x).dtype == dtype
    assert relative(fast(x).double(), model.double()(x.double())) < 0.1


@pytest.mark.sampled(4)
@pytest.mark.parametrize("activation", [nn.ReLU6, nn.Hardswish, nn.SiLU, nn.Identity])
def test_activations(activation: Callable[[], nn.Module]) -> None:
    """Those that no quantised operator applies leave their convolutions wide, and it is said."""
    model, x = small(activation), images(4)
    fast = fastres.optimize(model, x[:1], precision="int8", calibration=[x])
    assert relative(fast(x), model(x)) < 0.1
    if activation is nn.SiLU:
        assert any("stem: stays wider than int8" in note for note in fast.report.notes)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["fc", "block", "stem", "block.0"])
def test_kept_modules_stay_wider(name: str, precision: str) -> None:
    model, x = small(), images(4)
    fast = fastres.optimize(model, x[:1], precision="int8", calibration=[x], keep={name: precision})
    assert relative(fast(x), model(x)) < 0.05
    dtypes = {module: dtype for module, _, dtype in fast.report.layers if dtype}
    wide = {"fp32": "torch.float32", "bf16": "torch.bfloat16"}[precision]
    for module, dtype in dtypes.items():
        kept = module == name or module.startswith(f"{name}.")
        assert dtype == (wide if kept else "torch.int8")
    assert any(note.startswith(name) and "wider" in note for note in fast.report.notes)


def pairs() -> DataLoader[Any]:
    return DataLoader(TensorDataset(images(10), torch.arange(10)), batch_size=4)


def generator() -> Iterator[Tensor]:
    yield from images(6).split(2)


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    "data",
    [
        lambda: [images(2)],
        lambda: images(5),
        pairs,
        generator,
        lambda: [(images(2),), [images(1)]],
        lambda: [{"x": images(2)}],
        lambda: [images(2, height=12), images(1, height=7)],
    ],
    ids=["list", "tensor", "loader", "generator", "tuples", "dicts", "sizes"],
)
def test_forms_of_calibration_data(data: Callable[[], Any]) -> None:
    model = small()
    fast = fastres.optimize(model, images(1), precision="int8", calibration=data())
    x = images(3)
    assert relative(fast(x), model(x)) < 0.3


NOTHING: list[Tensor] = []


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({}, OptionError, "needs calibration="),
        ({"calibration": NOTHING}, OptionError, "holds no image"),
        ({"calibration": 5}, OptionError, "got a int"),
        ({"calibration": [images(0)]}, InputError, r"batch 0 is empty \[0, 4, 9, 8\]"),
        ({"calibration": [images(), images() * torch.nan]}, InputError, "batch 1 holds NaN"),
        ({"calibration": [images() * 1e38 * 1e3]}, InputError, "batch 0 holds NaN or inf"),
        ({"calibration": [images() * 1e25]}, InputError, "which eight bits cannot cover"),
        ({"calibration": [images().byte()]}, InputError, "batch 0: got torch.uint8"),
        ({"calibration": [images(channels=3)]}, InputError, "batch 0: got .* is 4 in this model"),
        ({"calibration": [images()[0]]}, InputError, "batch 0: got a tensor of rank 3"),
        ({"calibration": images()[0]}, OptionError, r"got a tensor \[4, 9, 8\]"),
        ({"calibration": [(images(), 1, 2)]}, InputError, "does not fit the model's forward"),
        ({"calibration": [{"y": images()}]}, InputError, "does not fit the model's forward"),
        ({"calibration": ["image"]}, InputError, "batch 0 is a str"),
        ({"calibration": "folder"}, OptionError, "without transforms="),
        ({"calibration": [images()], "observer": "best"}, OptionError, "observer: got 'best'"),
        ({"calibration": [images()], "keep": {"fcc": "bf16"}}, OptionError, "did you mean 'fc'"),
        ({"calibration": [images()], "keep": {"fc": "int4"}}, OptionError, r"keep\['fc'\]: got"),
        ({"calibration": [images()], "keep": ["fc"]}, OptionError, "keep: got"),
        ({"calibration": [images()], "bias_correction": "no"}, OptionError, "bias_correction: got"),
    ],
)
def test_bad_arguments_are_refused(
    options: dict[str, Any], error: type[FastresError], text: str
) -> None:
    model = small()
    with unchanged(model), pytest.raises(error, match=text):
        fastres.optimize(model, images(1), precision="int8", **options)


@pytest.mark.parametrize(
    "options",
    [{"calibration": [images()]}, {"observer": "mse"}, {"keep": {}}, {"equalization": False}],
    ids=lambda options: next(iter(options)),
)
def test_options_of_int8_need_int8(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(OptionError, match=f"{name}: got with precision='bf16'"):
        fastres.optimize(small(), images(1), precision="bf16", **options)


def test_other_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastres.optimization, "checked_device", lambda _: torch.device("meta"))
    with pytest.raises(TargetError, match="int8' has no kernels for meta"):
        fastres.optimize(small(), images(1), precision="int8", calibration=[images()])


def test_calibration_can_be_interrupted() -> None:
    def data() -> Iterator[Tensor]:
        yield images()
        raise KeyboardInterrupt

    model = small()
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        fastres.optimize(model, images(1), precision="int8", calibration=data())


def test_other_integers_than_the_definitions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """One number off in one answer; ``refresh`` looks as ``optimize`` does."""
    model, x = small(), images(2)
    options: dict[str, Any] = {"precision": "int8", "calibration": [x]}
    fast = fastres.optimize(model, x[:1], **options)
    before, defined = fast(x), fastres.runtime.integers.by_definition

    def off(runner: Any, inputs: Any) -> list[Tensor]:
        (answer,) = defined(runner, inputs)
        answer[0, 0] += 1e-3
        return [answer]

    monkeypatch.setattr(fastres.optimized, "by_definition", off)
    monkeypatch.setattr(fastres.refit, "by_definition", off)
    with pytest.raises(VerificationError, match="other integers than int8's definition: 1 answers"):
        fastres.optimize(model, x[:1], **options)
    with pytest.raises(VerificationError, match="other integers"):
        fast.refresh(model.state_dict())
    assert torch.equal(fast(x), before)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("engine", ["native", "onednn", "eager"])
def test_numbers_that_no_integer_stands_for(engine: str) -> None:
    """Infinity is cut off as everything beyond the range is; NaN is refused."""
    model, x = small(), images(2)
    try:
        fast = fastres.optimize(model, x, precision="int8", calibration=[x], engine=engine)
    except TargetError:
        pytest.skip(f"no {engine} engine here")
    whole = fast(x)
    for value in (torch.inf, -torch.inf, 1e30):
        x[0, 0, 0, 0] = value
        assert torch.equal(fast(x), fast.by_definition(x))
        assert torch.equal(fast(x)[1], whole[1])
    x[0, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match="got NaN, which int8 cannot hold"):
        fast(x)


@pytest.mark.campaign
def test_an_image_is_answered_alike_in_any_company() -> None:
    model, x = small(), images(7)
    fast = fastres.optimize(model, x[:1], precision="int8", calibration=[x])
    whole = fast(x)
    for i in range(7):
        assert torch.equal(fast(x[i : i + 1])[0], whole[i])
    assert torch.equal(fast(x.contiguous(memory_format=torch.channels_last)), whole)
    assert fast(x[:0]).shape == (0, 5)


@pytest.mark.campaign
def test_a_saved_model_answers_alike_and_takes_new_weights(tmp_path: Path) -> None:
    model, x = small(), images(4)
    fast = fastres.optimize(
        model, x[:1], precision="int8", calibration=[x], keep={"block.0": "bf16"}, observer="minmax"
    )
    fast.save(tmp_path / "model")
    loaded = fastres.load(tmp_path / "model")
    assert torch.equal(loaded(x), fast(x))
    assert loaded.is_quantized
    loaded.refresh(model.state_dict())
    assert torch.equal(loaded(x), fast(x))
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.01)
    loaded.refresh(other.state_dict())
    assert not torch.equal(loaded(x), fast(x))
    assert relative(loaded(x), other(x)) < 0.1


@pytest.mark.campaign
def test_verify_holds_it_against_the_definition_and_float64() -> None:
    model, x = small(), images(8)
    fast = fastres.optimize(model, x[:1], precision="int8", calibration=[x])
    result = fastres.verify(model, fast, x)
    assert result.passed
    assert result.precision == "int8"
    assert result.error_ratio == pytest.approx(1.0)
    assert 1e-4 < result.error < 0.05
    assert "1.00x that of int8's definition" in str(result)


@pytest.mark.campaign
def test_a_folder_of_images(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for i in range(11):
        pixels = torch.randint(0, 256, (40, 30 + i, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{i}.png")
    parts = {"conv": conv(3, 8), "bn": nn.BatchNorm2d(8)}
    model = measured(Net(lambda net, x: net.bn(net.conv(x)).relu(), **parts), images(2, channels=3))
    transforms = Transforms(resize=24, crop=20)
    options: dict[str, Any] = {
        "precision": "int8",
        "calibration": tmp_path,
        "transforms": transforms,
    }
    example = torch.randn(1, 3, 20, 20)
    fast = fastres.optimize(model, example, **options)
    assert any("ranges of 11 images" in note for note in fast.report.notes)
    x = fastres.preprocess.load_images([tmp_path / "3.png"], transforms)
    assert relative(fast(x), model(x)) < 0.05
    inside = fastres.optimize(model, input_format="uint8_nhwc", **options)
    pixels = fastres.preprocess.load_pixels(tmp_path / "3.png", transforms)[None]
    assert relative(inside(pixels), model(x)) < 0.05


def test_calibration_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = list(calibrating._shown(iter([1, 2, 3])))
    assert shown == [1, 2, 3]


@pytest.mark.filterwarnings("ignore::fastres.errors.FastresWarning")
def test_integers_that_two_pieces_of_the_network_read() -> None:
    """Between them is what the CPU library lacks; the value is quantised in the first."""

    def forward(net: Any, x: Tensor) -> Tensor:
        y = torch.relu(nn.functional.avg_pool2d(net.stem(x), 3, 1, 1))
        between = net.one(y).cumsum(1)
        answer: Tensor = net.two(y) + between
        return answer

    parts = {"stem": conv(4, 8), "one": conv(8, 8), "two": conv(8, 8)}
    model, x = measured(Net(forward, **parts)), images(4)
    fast = fastres.optimize(model, x[:1], precision="int8", calibration=[x])
    torch.testing.assert_close(fast(x), fast.by_definition(x), rtol=1e-5, atol=1e-5)
    assert relative(fast(x), model(x)) < 0.1
