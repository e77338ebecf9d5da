"""verify(): good models pass; every planted fault is found, and by the name of its module."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastres
from fastres.errors import CaptureError, FastresWarning, InputError, OptionError, VerificationError
from fastres.ir.graph import constant
from fastres.passes import fold_batch_norm
from tests.support.optimizing import optimize
from tests.support.oracle import run_in, unchanged
from tests.support.small import Net, PairNet, conv, images, measured, net, pair_net
from tests.zoo.resblk import ResBlkNetwork


def classify(m: Any, x: Tensor) -> Any:
    y = F.relu(m.norm1(m.conv1(x)))
    y = F.relu(m.norm3(m.conv3(F.relu(m.norm2(m.conv2(y))))) + y)
    return m.head(F.adaptive_avg_pool2d(m.norm4(F.gelu(y)), 1).flatten(1))


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    parts: dict[str, nn.Module] = {f"conv{i}": conv(bias=False) for i in (1, 2, 3)}
    parts |= {f"norm{i}": nn.BatchNorm2d(4) for i in (1, 2, 3, 4)}
    return net(classify, **parts, head=nn.Linear(4, 6))


@pytest.fixture(scope="module")
def untouched(model: Any) -> Any:
    return optimize(model, images(2))


@pytest.fixture
def fast(untouched: Any) -> Any:
    """A copy of its own for every test, which may spoil it."""
    return copy.deepcopy(untouched)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("engine", ["onednn", "eager"])
def test_a_good_model_passes(model: Any, precision: str, engine: str) -> None:
    fast = optimize(model, images(2), precision=precision, engine=engine)
    with unchanged(model):
        result = fastres.verify(model, fast, images(16))
    assert result.passed
    assert result.error_ratio <= result.bound == 2.0
    assert result.first_drift is None
    assert result.images == 16
    assert result.precision == {"fp32": "float32", "bf16": "bfloat16"}[precision]
    assert result.top1_agreement >= (1.0 if precision == "fp32" else 0.8)
    assert 0 < result.error < (1e-5 if precision == "fp32" else 3e-2)
    assert str(result).startswith("passed: error ")
    assert "first layer that drifts: none" in str(result)


@pytest.mark.campaign
def test_a_deeper_model_passes_quietly(capsys: pytest.CaptureFixture[str]) -> None:
    model = measured(ResBlkNetwork(), torch.randn(4, 3, 48, 48))
    fast = optimize(model, torch.randn(2, 3, 48, 48))
    capsys.readouterr()
    result = fastres.verify(model, fast, torch.randn(4, 3, 48, 48))
    assert capsys.readouterr() == ("", "")  # the model prints in forward
    assert result.passed, str(result)
    assert result.first_drift is None, str(result)


def test_numbers_are_relative_root_mean_squares(model: Any, fast: Any) -> None:
    x = images(8)
    result = fastres.verify(model, fast, x)
    exact = run_in(model, torch.float64, x)
    for error, answer in ((result.error, fast(x)), (result.eager_error, model(x))):
        wanted = (answer.double() - exact).square().sum().sqrt() / exact.square().sum().sqrt()
        assert error == pytest.approx(float(wanted.detach()), rel=1e-3)
    floor = max(result.eager_error, torch.finfo(torch.float32).eps)
    assert result.error_ratio == pytest.approx(result.error / floor)


def weights(fast: Any) -> dict[str, Tensor]:
    return dict(fast.graph_module.named_buffers())


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("buffer", "module"),
    [
        ("conv1_weight_folded", "conv1"),
        ("conv1_bias_folded", "conv1"),
        ("conv2_weight_folded", "conv2"),
        ("conv3_weight_folded", "conv3"),
        ("conv3_bias_folded", "conv3"),
        ("norm4_scale", "norm4"),
        ("norm4_shift", "norm4"),
        ("head_weight", "head"),
        ("head_bias", "head"),
    ],
)
def test_one_changed_weight_is_found(model: Any, fast: Any, buffer: str, module: str) -> None:
    with torch.no_grad():
        weights(fast)[buffer].mul_(1.01)
    result = fastres.verify(model, fast, images(1))
    assert not result.passed
    assert result.error_ratio > 100
    assert result.first_drift is not None
    assert result.first_drift.module == module
    assert result.first_drift.error > result.first_drift.eager_error
    assert str(result).startswith("FAILED: error ")
    assert f"first layer that drifts: {module} (fastres." in str(result)


def test_one_changed_number_is_found(model: Any, fast: Any) -> None:
    with torch.no_grad():
        weights(fast)["conv2_weight_folded"][2, 1, 0, 2] += 0.01
    result = fastres.verify(model, fast, images(8))
    assert not result.passed
    assert result.first_drift is not None and result.first_drift.module == "conv2"


def test_a_fault_in_bfloat16_is_found(model: Any) -> None:
    fast = optimize(model, images(2), precision="bf16")
    with torch.no_grad():
        weights(fast)["conv3_weight_folded"].mul_(1.25)
    result = fastres.verify(model, fast, images(8))
    assert not result.passed
    assert result.first_drift is not None and result.first_drift.module == "conv3"


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("change", "module"),
    [
        (lambda m: m.norm1.running_mean.add_(0.1), "conv1"),
        (lambda m: m.norm2.running_var.mul_(1.1), "conv2"),
        (lambda m: m.norm3.weight.mul_(0.9), "conv3"),
        (lambda m: m.norm4.bias.add_(0.1), "norm4"),
        (lambda m: m.conv2.weight.mul_(1.02), "conv2"),
    ],
    ids=["mean", "variance", "scale", "shift of an unfolded one", "weight"],
)
def test_a_model_changed_after_optimising_is_found(
    change: Callable[[Any], Any], module: str
) -> None:
    torch.manual_seed(0)
    parts: dict[str, nn.Module] = {f"conv{i}": conv(bias=False) for i in (1, 2, 3)}
    parts |= {f"norm{i}": nn.BatchNorm2d(4) for i in (1, 2, 3, 4)}
    model = net(classify, **parts, head=nn.Linear(4, 6))
    fast = optimize(model, images(2))
    with torch.no_grad():
        change(model)
    result = fastres.verify(model, fast, images(8))
    assert not result.passed
    assert result.first_drift is not None and result.first_drift.module == module


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_torchscript_is_refused(model: Any, fast: Any) -> None:
    traced = torch.jit.trace(model, images(1), check_trace=False)
    with pytest.raises(CaptureError, match=r"TorchScript module: pass the nn\.Module"):
        fastres.verify(traced, fast, images(2))


def test_top1_counts_images_over_batches(model: Any, fast: Any) -> None:
    with torch.no_grad():
        weights(fast)["head_bias"][4] += 1e4  # now it always answers 4
    batches = [images(n, height=9 + n) for n in (5, 1, 12)]
    exact = torch.cat([run_in(model, torch.float64, x) for x in batches]).argmax(1)
    result = fastres.verify(model, fast, batches)
    assert result.images == 18
    assert result.top1_agreement == pytest.approx(int((exact == 4).sum()) / 18)
    assert f"{result.top1_agreement:.2%} of 18 images" in str(result)


def test_a_fault_that_only_a_later_batch_shows_is_found(model: Any, fast: Any) -> None:
    with torch.no_grad():
        weights(fast)["conv1_weight_folded"][:, 3].mul_(1.1)
    blind = images(4)
    blind[:, 3] = 0
    assert fastres.verify(model, fast, blind).passed
    result = fastres.verify(model, fast, [blind, images(4), blind])
    assert not result.passed
    assert result.images == 12
    assert result.first_drift is not None and result.first_drift.module == "conv1"


def test_a_generator_is_read_once(model: Any, fast: Any) -> None:
    def batches() -> Iterator[Tensor]:
        for number in (1, 2):
            yield images(number)

    assert fastres.verify(model, fast, batches()).images == 3


def test_batches_of_several_arguments() -> None:
    x, other = images(2), images(2)
    model = pair_net(lambda m, x, other: F.relu(m.conv(x) + other), x, other, conv=conv())
    fast = optimize(model, (x, other))
    assert fastres.verify(model, fast, [(x, other)]).passed
    assert fastres.verify(model, fast, [{"x": x, "other": other}, (other, x)]).passed
    with torch.no_grad():
        weights(fast)["conv_weight"].mul_(1.1)
    result = fastres.verify(model, fast, [{"x": x, "other": other}])
    assert result.first_drift is not None and result.first_drift.module == "conv"


def test_the_bound(model: Any, fast: Any) -> None:
    x = images(8)
    assert not fastres.verify(model, fast, x, bound=1e-3).passed
    with torch.no_grad():
        weights(fast)["head_weight"].mul_(1.0001)
    assert not fastres.verify(model, fast, x).passed
    generous = fastres.verify(model, fast, x, bound=1e6)
    assert generous.passed
    assert generous.bound == 1e6
    assert generous.first_drift is None


def test_nan_instead_of_a_number_fails(model: Any, fast: Any) -> None:
    with torch.no_grad():
        weights(fast)["head_bias"][1] = math.nan
    result = fastres.verify(model, fast, images(4))
    assert result.error_ratio == math.inf
    assert not result.passed


def test_nan_of_the_models_own_passes(model: Any, fast: Any) -> None:
    x = images(4)
    x[1, 0, 3, 3] = math.nan
    result = fastres.verify(model, fast, x)
    assert result.passed, str(result)


def test_infinity_of_the_models_own_precision_passes() -> None:
    # In float16 the model overflows where float64 does not; so does what was made of it.
    model = Net(lambda m, x: m.conv(x) * 60000.0, conv=conv()).eval()
    fast = optimize(model, images(2), precision="fp16", engine="eager")
    x = 10 * images(4)
    assert fast(x).isinf().any()
    assert fastres.verify(model, fast, x).passed


def test_better_than_eager_is_no_fault() -> None:
    # In float16 the variance underflows to zero, and eager divides by it; folded in float64, the
    # BatchNorm is right.
    norm = nn.BatchNorm2d(4, eps=0.0)
    assert norm.running_var is not None
    norm.running_var.fill_(1e-8)
    model = nn.Sequential(conv(bias=False), norm).eval()
    x = 1e-3 * images(2)
    fast = optimize(model, x, precision="fp16")
    assert fast.report.done["batch_norm"] == 1
    assert bool(fast(x).isfinite().all())
    assert fastres.verify(model, fast, x).passed


def test_exact_answers_have_no_error() -> None:
    model = Net(lambda m, x: F.relu(m.conv(x)), conv=conv()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.mul(8).round())
    fast = optimize(model, images(2).round())
    result = fastres.verify(model, fast, images(4).mul(4).round())
    assert (result.error, result.error_ratio) == (0.0, 0.0)
    assert result.passed
    zero = fastres.verify(model, fast, torch.zeros(2, 4, 9, 8))
    assert zero.passed


def test_integer_results_are_not_judged(model: Any) -> None:
    ranked = Net(lambda m, x: (m.inner(x), m.inner(x).argmax(1)), inner=model).eval()
    fast = optimize(ranked, images(2))
    assert fastres.verify(ranked, fast, images(4)).passed


def test_a_model_in_training_mode_is_read_in_eval_mode(model: Any, fast: Any) -> None:
    model.train()
    try:
        with unchanged(model):
            assert fastres.verify(model, fast, images(4)).passed
        assert model.training
    finally:
        model.eval()


def test_another_model_is_refused(fast: Any) -> None:
    other = measured(nn.Sequential(conv(), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    with pytest.raises(
        VerificationError, match=r"model answers .*\[2, 4\], the optimised .*\[2, 6\]"
    ):
        fastres.verify(other, fast, images(2))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ([], "data has no batch: pass a tensor"),
        ((), "data has no batch"),
        ([5], "expected a tensor, a tuple of positional arguments or a dict"),
        (7, "data is a int"),
        (None, "data is a NoneType"),
    ],
    ids=str,
)
def test_wrong_data(model: Any, fast: Any, data: Any, text: str) -> None:
    with pytest.raises(OptionError, match=text):
        fastres.verify(model, fast, data)


def test_wrong_arguments(model: Any, fast: Any) -> None:
    with pytest.raises(OptionError, match="fast is a Net: expected what optimize"):
        fastres.verify(model, model, images(2))
    with pytest.raises(OptionError, match="model is a int: expected an nn"):
        fastres.verify(3, fast, images(2))  # type: ignore[arg-type]
    for bound in (0, -1.0, math.nan):
        with pytest.raises(OptionError, match=rf"bound={bound!r}: expected a positive multiple"):
            fastres.verify(model, fast, images(2), bound=bound)
    with pytest.raises(InputError, match="channels"):
        fastres.verify(model, fast, images(2, channels=3))


@pytest.mark.parametrize("example", ["one", "two", "none"])
def test_optimize_checks_itself(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fold = fold_batch_norm._fold

    def wrong(node: Any, context: Any) -> str | None:
        refusal = fold(node, context)
        weight = constant(node.args[0].args[1])
        assert weight is not None
        weight.mul_(1.01)
        return refusal

    monkeypatch.setattr(fold_batch_norm, "_fold", wrong)
    model = measured(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU()))
    given = {"one": images(1), "two": images(2), "none": None}[example]
    with pytest.raises(VerificationError) as caught:
        fastres.optimize(model, given)
    text = str(caught.value)
    assert text.startswith("the optimised Sequential differs from the model: error ")
    assert "(allowed 8x). Nothing is returned" in text


def test_optimize_does_not_check_what_is_random() -> None:
    model = PairNet(lambda m, x, other: m.conv(x) + torch.randn_like(other), conv=conv()).eval()
    with pytest.warns(FastresWarning):
        fast = fastres.optimize(model, (images(2), images(2)))
    assert fast.report.check is None
    assert any("not checked on a sample: the model draws random" in n for n in fast.report.notes)
