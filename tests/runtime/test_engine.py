"""The engines: equal answers, every layout of the input, NaN, notes, and shapes without data."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastres.accuracy.relative_error import ErrorSums
from fastres.errors import InputError
from fastres.ir.propagate import propagate
from fastres.runtime import float16
from fastres.system.versions import why_not_interpreted
from tests.support.optimizing import optimize
from tests.support.oracle import PRECISIONS, in_precision
from tests.support.small import Net, assert_right, conv, images, measured, net, pair_net
from tests.zoo.quirks_residual import AverageShortcut, LongSkip, SqueezeExcite
from tests.zoo.resblk import ConcatenationNetwork, ResBlkNetwork


def everything() -> nn.Module:
    """Every operator and every special case of the oneDNN engine in a few layers."""

    def function(m: Any, x: Tensor) -> Any:
        y = F.relu(m.norm(m.stem(F.pad(x, (0, 1, 0, 1)))))
        y = F.max_pool2d(y, 3, 2, 1, ceil_mode=True)
        y = F.relu6(m.grouped(y)) + y
        y = F.silu(m.depthwise(y) + y)
        y = F.relu(torch.tanh(y) + torch.sigmoid(y))
        y = m.after(m.dilated(y)) * y.mean((2, 3), keepdim=True)
        return y, m.head(F.hardswish(m.wide(y)).mean((2, 3)))

    return net(
        function,
        stem=conv(4, 8, 3, stride=2, padding=0, bias=False),
        norm=nn.BatchNorm2d(8),
        grouped=conv(8, 8, groups=2),
        depthwise=conv(8, 8, 5, groups=8),
        dilated=conv(8, 8, padding=(2, 3), dilation=(2, 3)),
        after=nn.BatchNorm2d(8),
        wide=conv(8, 40, 1),
        head=nn.Linear(40, 5),
    )


MODELS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "everything": (everything, (4, 19, 17)),
    "one shortcut for three blocks": (LongSkip, (4, 8, 9)),
    "squeeze and excite": (SqueezeExcite, (4, 8, 9)),
    "pooled shortcut": (AverageShortcut, (4, 21, 23)),
    "ReLU before the addition": (lambda: ResBlkNetwork(talk=False), (3, 37, 35)),
    "concatenation": (ConcatenationNetwork, (3, 16, 18)),
}


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[int, ...]]:
    build, size = MODELS[request.param]
    return measured(build(), torch.randn(3, *size)), size


ENGINES = ["onednn", "native", "eager", *([] if why_not_interpreted() else ["triton"])]


@pytest.mark.sampled(6)
def test_engines_agree(case: tuple[nn.Module, tuple[int, ...]]) -> None:
    model, size = case
    check_engines(model, size, "fp32")


@pytest.mark.campaign
def test_engines_agree_in_bfloat16() -> None:
    check_engines(everything(), (4, 19, 17), "bf16")


def check_engines(model: nn.Module, size: tuple[int, ...], precision: str) -> None:
    fast = {
        engine: optimize(model, torch.randn(2, *size), engine=engine, precision=precision)
        for engine in ENGINES
    }
    assert {name: module.engine for name, module in fast.items()} == {n: n for n in fast}
    for batch in (1, 3):
        x = torch.randn(batch, *size)
        for module in fast.values():
            assert_right(model, module, x, precision=precision)
    assert fast["eager"].report.found == fast["onednn"].report.found


def test_auto_is_the_fastest_engine_that_takes_the_model() -> None:
    model = measured(nn.Sequential(conv()))
    assert optimize(model, images(2)).engine == "native"


@torch.no_grad()
@pytest.mark.parametrize("engine", ["native", "onednn"])
@pytest.mark.parametrize("name", ["plain", "islands", "two outputs"])
def test_float16_is_computed_in_float32(engine: str, name: str) -> None:
    """Nearer to float64 than torch's float16; what goes in and comes out is float16."""
    forwards = {
        "plain": lambda m, x: m.b(m.a(x).relu()).mean((2, 3)),
        "islands": lambda m, x: m.b(torch.softmax(m.a(x).float(), 1).to(x.dtype)),
        "two outputs": lambda m, x: (m.a(x), m.b(m.a(x)).float(), x),
    }
    model = net(forwards[name], a=conv(4, 20), b=conv(20, 7)).half()
    x = images(2, 4, 9, 11).half()
    fast = optimize(model, x, engine=engine)
    assert (fast.engine, fast.report.precision) == (engine, "float16")
    assert float16.NOTE in fast.report.notes
    results = fast(x), optimize(model, x, engine="eager")(x)
    exact = in_precision(model, torch.float64)(x.double()) if name != "islands" else None
    for y, half in zip(*map(pytree.tree_leaves, results), strict=True):
        assert (y.dtype, y.shape) == (half.dtype, half.shape)
        torch.testing.assert_close(y, half, rtol=1e-2, atol=1e-2)
    if exact is not None:
        sums = ErrorSums(torch.finfo(torch.float16).eps)
        for y64, ye, y in zip(*map(pytree.tree_leaves, (exact, *results[::-1])), strict=True):
            sums.add(y, y64, ye)
        assert sums.ratio <= 1.02


def test_float16_weights_that_are_renewed_are_widened_again() -> None:
    model = net(lambda m, x: m.a(x), a=conv(4, 8)).half()
    x = images(1, 4, 8, 8).half()
    fast = optimize(model, x)
    first = fast(x)
    for weight in fast.buffers():
        weight.mul_(2)
    torch.testing.assert_close(fast(x), 2 * first, rtol=2e-3, atol=1e-3)


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same numbers at other places in memory."""
    n, c, h, w = x.shape
    return {
        "NCHW": x.contiguous(),
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "sliced": torch.zeros(n, 2 * c, h + 3, 2 * w)[:, ::2, 1 : h + 1, 1::2].copy_(x),
        "sliced channels last": torch.zeros(n, h, w, c + 2)[..., 1 : c + 1]
        .permute(0, 3, 1, 2)
        .copy_(x),
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "batch last": x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    }


def feature_map() -> nn.Module:
    """Returns a feature map to which its own input was added."""
    return net(lambda m, x: F.relu(m.norm(m.conv(x)) + x), conv=conv(), norm=nn.BatchNorm2d(4))


@pytest.mark.parametrize("engine", [each for each in ENGINES if each != "native"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_layout_of_the_input_is_that_of_the_result(engine: str, precision: str) -> None:
    model = feature_map()
    fast = optimize(model, images(2), engine=engine, precision=precision)
    x = images(3)
    wanted = fast(x)
    for name, given in layouts(x).items():
        assert torch.equal(given, x), name
        kept = given.clone()
        got = fast(given)
        tolerance = 4 * torch.finfo(PRECISIONS[precision]).eps * float(wanted.max())
        torch.testing.assert_close(got, wanted, rtol=0, atol=tolerance)
        assert got.stride() == model(given).stride(), name
        assert torch.equal(given, kept), name


@pytest.mark.parametrize("engine", [each for each in ENGINES if each != "native"])
def test_expanded_inputs(engine: str) -> None:
    model = feature_map()
    fast = optimize(model, images(2), engine=engine)
    for x in (
        torch.randn(1, 4, 9, 8).expand(3, 4, 9, 8),
        torch.randn(3, 4, 1, 1).expand(3, 4, 9, 8),
        torch.randn(3, 1, 9, 8).expand(3, 4, 9, 8),
        torch.randn(1, 1, 1, 1).expand(3, 4, 9, 8),
    ):
        kept = x.clone()
        assert_right(model, fast, x)
        assert torch.equal(x, kept)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("channels", "height", "width"),
    [(1, 9, 8), (1, 1, 1), (4, 1, 1), (1, 1, 7), (1, 7, 1), (4, 1, 7), (17, 1, 1), (17, 3, 3)],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_one_channel_and_one_pixel(channels: int, height: int, width: int, batch: int) -> None:
    x = torch.randn(batch, channels, height, width)
    layers = (conv(channels, 5), nn.BatchNorm2d(5), nn.ReLU(), conv(5, 1), conv(1, 3, 1))
    model = measured(nn.Sequential(*layers), torch.randn(4, channels, 5, 5))
    fast = optimize(model, torch.randn(2, channels, 5, 6))
    for given in layouts(x).values():
        assert_right(model, fast, given)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1)], ids=str)
def test_residuals_of_one_pixel(size: tuple[int, int]) -> None:
    model = feature_map()
    fast = optimize(model, images(2))
    for given in layouts(images(3, height=size[0], width=size[1])).values():
        kept = given.clone()
        assert_right(model, fast, given)
        assert torch.equal(given, kept)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38, -3e38, 2.0**64, 1e25])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nan_and_infinity_come_out_as_of_torch(value: float, precision: str) -> None:
    model = net(
        lambda m, x: F.max_pool2d(F.relu(m.last(F.relu(m.norm(m.conv(x)) + x))), 2),
        conv=conv(),
        norm=nn.BatchNorm2d(4),
        last=conv(),
    )
    fast = optimize(model, images(2), precision=precision)
    x = images(3)
    ordinary = fast(x)
    x[1, 2, 4, 3] = value
    got, wanted = fast(x), model.to(PRECISIONS[precision])(x.to(PRECISIONS[precision])).float()
    assert torch.equal(got.isnan(), wanted.isnan())
    assert torch.equal(got.isinf(), wanted.isinf())
    scale = float(ordinary.abs().max())
    for index in (0, 2):  # the other images of the batch do not notice
        torch.testing.assert_close(got[index], ordinary[index], rtol=0, atol=0.02 * scale)


BORN_INSIDE: dict[str, Any] = {
    "0 / 0": lambda y: F.relu(y) / F.relu(y),
    "logarithm": torch.log,
    "root": torch.sqrt,
    "infinity - infinity": lambda y: torch.exp(300 * y) - torch.exp(300 * y),
    "power": lambda y: y.pow(0.3),
    "arc sine": lambda y: torch.asin(3 * y),
    "masked": lambda y: y.masked_fill(y > 0, math.nan),
    "where": lambda y: torch.where(y > 0, y, math.inf),
    "reciprocal of zero": lambda y: F.relu(y).reciprocal(),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", BORN_INSIDE)
def test_nan_and_infinity_born_inside_come_out_as_of_torch(name: str) -> None:
    model = Net(
        lambda m, x: F.relu(m.last(BORN_INSIDE[name](m.conv(x))) + x), conv=conv(), last=conv()
    )
    fast = optimize(model.eval(), images(2))
    for x in (images(3), images(1).abs()):
        got, wanted = fast(x), model(x)
        assert torch.equal(got.isnan(), wanted.isnan())
        assert torch.equal(got.isinf(), wanted.isinf())
        assert not wanted.isfinite().all()


def test_nan_in_a_second_input() -> None:
    x, other = images(2), images(2)
    model = pair_net(lambda m, x, y: F.relu(m.conv(x) + y), x, other, conv=conv())
    fast = optimize(model, (x, other))
    other[0, 1, 2, 3] = math.nan
    assert torch.equal(fast(x, other).isnan(), other.isnan())


def test_padding_that_differs_between_sides_is_noted() -> None:
    model = net(lambda m, x: m.conv(F.pad(x, (0, 1, 2, 1))), conv=conv(padding=0))
    fast = optimize(model, images(2), engine="onednn")
    note = "conv: padding [2, 0, 1, 1] differs between sides, so torch pads first"
    assert note in fast.report.notes
    assert f"note: {note}" in str(fast.report)
    assert optimize(model, images(2), engine="eager").report.notes == []


def test_an_activation_before_the_addition_is_noted() -> None:
    model = net(lambda m, x: F.relu(F.relu(m.conv(x)) + x), conv=conv())
    fast = optimize(model, images(2), engine="onednn")
    (note,) = fast.report.notes
    assert note.startswith("conv: the residual comes after relu and before relu; ")
    assert optimize(model, images(2), engine="eager").report.notes == []


def test_notes_name_the_model_itself() -> None:
    weight = torch.randn(4, 4, 3, 3)
    model = Net(lambda m, x: F.conv2d(F.pad(x, (0, 1, 0, 1)), m.weight), weight=weight)
    (note,) = optimize(model.eval(), images(2), engine="onednn").report.notes
    assert note.startswith("(the model itself): padding ")


def test_weights_from_the_input_are_left_to_torch() -> None:
    x, filters = images(2), torch.randn(4, 4, 3, 3)
    model = pair_net(
        lambda m, x, w: F.relu(m.conv(x) + F.conv2d(x, w, padding=1)), x, filters, conv=conv()
    )
    fast = optimize(model, (x, filters))
    left = [str(remark) for remark in fast.report.left]
    assert any(each.endswith("convolution: its weight is computed from the input") for each in left)
    assert_right(model, fast, x, filters)


def shapes_of(fast: Any, x: Tensor) -> dict[str, Any]:
    """Module -> shape, for operators of the fused graph."""
    facts = propagate(fast.graph_module, [x])
    return {
        node.meta["module"]: tuple(fact.shape)
        for node, fact in facts.items()
        if node.op == "call_function" and isinstance(fact, Tensor)
    }


def test_shapes_are_propagated_without_data() -> None:
    layers = (conv(4, 8, stride=2), nn.ReLU(), nn.MaxPool2d(2), conv(8, 6, 5, padding=0))
    fast = optimize(nn.Sequential(*layers).eval(), images(2, height=20, width=20))
    wanted = {"0": (3, 8, 15, 13), "2": (3, 8, 7, 6), "3": (3, 6, 3, 2)}
    assert shapes_of(fast, images(3, height=29, width=26)) == wanted
    with pytest.raises(InputError, match=r"at module 3 \(fastres\.conv2d\.default\): "):
        shapes_of(fast, images(3, height=12, width=12))


def peak_bytes(fast: Any, x: Tensor) -> int:
    peak: int = fast._runner.executable([x]).peak_bytes
    return peak


@pytest.mark.parametrize("engine", ["onednn", "eager"])
def test_peak_memory_by_hand(engine: str) -> None:
    # A stem of 8 channels; then a block whose widest moment has its input, 16 channels and 8 more.
    def function(m: Any, x: Tensor) -> Any:
        y = F.relu(m.stem(x))
        return F.max_pool2d(F.relu(m.narrow(F.relu(m.wide(y))) + y), 2)

    model = net(function, stem=conv(4, 8), wide=conv(8, 16), narrow=conv(16, 8))
    pixels = 9 * 8
    for precision, width in (("fp32", 4), ("bf16", 2)):
        fast = optimize(model, images(2), engine=engine, precision=precision)
        for batch in (1, 3):
            peak = peak_bytes(fast, images(batch))
            assert peak == (8 + 16 + 8) * pixels * width * batch, (precision, batch)


def test_peak_memory_of_a_chain_is_two_layers() -> None:
    layers = nn.Sequential(*(conv() for _ in range(6))).eval()
    fast = optimize(layers, images(2), engine="onednn")
    assert peak_bytes(fast, images(1)) == 2 * 4 * 9 * 8 * 4
    assert peak_bytes(fast, images(0)) == 0


@pytest.mark.parametrize("engine", ["native", "onednn", "eager"])
def test_tuning_says_that_it_does_nothing_on_cpus(engine: str) -> None:
    model, x = measured(nn.Sequential(conv())), images(1)
    tuned, plain = (optimize(model, x, engine=engine, tune=tune) for tune in (True, False))
    said = f"tune=True did nothing: the {engine} engine chooses by its cost model alone"
    assert (said in tuned.report.notes, said in plain.report.notes) == (True, False)
