"""What does nothing in inference disappears; what does something stays and is said so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastres
from fastres.errors import FastresWarning
from tests.support.optimizing import operator_name, optimize
from tests.support.small import Net, assert_left, conv, images, measured, optimized


def operators(fast: Any) -> list[str]:
    return [operator_name(n) for n in fast.graph_module.graph.nodes if n.op == "call_function"]


@pytest.mark.parametrize(
    "idle",
    [
        nn.Dropout(0.5),
        nn.Dropout(0.5, inplace=True),
        nn.Dropout2d(0.5),
        nn.AlphaDropout(0.5),
        nn.FeatureAlphaDropout(0.5),
        nn.Identity(),
        nn.Sequential(),
        nn.Sequential(nn.Identity(), nn.Dropout(0.1), nn.Sequential()),
    ],
    ids=str,
)
def test_modules_that_do_nothing_in_eval_mode(idle: nn.Module) -> None:
    model = measured(nn.Sequential(conv(), idle, nn.BatchNorm2d(4), idle, nn.ReLU()))
    fast = optimized(model)
    assert operators(fast) == ["conv2d"]
    assert fast.report.complete
    assert fast.report.notes == []


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "idle",
    [
        lambda x: x.clone(),
        lambda x: x.detach(),
        lambda x: x.contiguous(),
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.to(torch.float32),
        lambda x: x.float(),
        lambda x: x.to(x.device),
        lambda x: x.to(x),
        lambda x: x.type_as(x),
        lambda x: F.dropout(x, 0.0, training=True),
        lambda x: F.dropout(x, 0.9, training=False),
        lambda x: x.view_as(x),
    ],
    ids=[
        *("clone", "detach", "contiguous", "channels last", "to float32", "float", "to device"),
        *("to like", "type as", "dropout of nothing", "dropout not in training", "view as"),
    ],
)
def test_operations_that_do_nothing(idle: Any) -> None:
    model = measured(
        Net(
            lambda m, x: torch.relu(idle(m.norm(idle(m.conv(x))))),
            conv=conv(),
            norm=nn.BatchNorm2d(4),
        )
    )
    x = images(2)
    fast = optimize(model, x)
    assert operators(fast) == ["conv2d"], fast.graph_module.code
    assert fast.report.complete
    # A forward that names a dtype has no float64 to compare with.
    torch.testing.assert_close(fast(x), model(x).detach(), rtol=0, atol=1e-5)


def test_a_dropout_that_is_active_stays() -> None:
    model = Net(lambda m, x: F.relu(F.dropout(m.conv(x), 0.5, training=True)), conv=conv()).eval()
    with pytest.warns(FastresWarning, match="dropout"):
        fast = fastres.optimize(model, images(2))
    assert_left(fast, "(the model itself)", "aten.dropout.default")
    notes = "\n".join(fast.report.notes)
    assert "(the model itself): aten.dropout.default is active in eval mode too" in notes
    assert "not checked on a sample" in notes
    x = images(8)
    first, second = fast(x), fast(x)
    assert not torch.equal(first, second)
    assert 0.4 < float((first == 0).double().mean()) < 0.95
    # What is not zero was doubled.
    plain = F.relu(model.conv(x))  # type: ignore[operator]
    torch.testing.assert_close(first, torch.where(first == 0, 0.0, 2 * plain))


def test_a_change_of_dtype_stays() -> None:
    model = Net(lambda m, x: m.conv(x).to(torch.float64), conv=conv()).eval()
    fast = fastres.optimize(model, images(2))
    x = images(3)
    assert fast(x).dtype == torch.float64
    torch.testing.assert_close(fast(x), model(x).detach(), rtol=0, atol=1e-6)
    assert any("changes the dtype, as in the model" in note for note in fast.report.notes)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_integer_image_is_converted(precision: str) -> None:
    def function(m: Any, x: Tensor) -> Any:
        return torch.relu(m.norm(m.conv(x.float() / 255)))

    model = Net(function, conv=conv(), norm=nn.BatchNorm2d(4)).eval()
    x = torch.randint(0, 256, (2, 4, 9, 8), dtype=torch.uint8)
    fast = optimize(model, x, precision=precision)
    assert fast(x).dtype == torch.float32
    tolerance = 1e-6 if precision == "fp32" else 2e-2
    wanted = model(x).detach()
    torch.testing.assert_close(fast(x), wanted, rtol=0, atol=tolerance * float(wanted.max()))
    assert "conv2d" in operators(fast)


def test_a_dropped_copy_does_not_make_an_output_the_input() -> None:
    model = Net(lambda m, x: (m.conv(x), x.clone(), x.detach()), conv=conv()).eval()
    fast = optimized(model)
    x = images(2)
    kept = x.clone()
    for result in fast(x):
        result.zero_()
    assert torch.equal(x, kept)


def test_a_copy_written_to_afterwards() -> None:
    def function(m: Any, x: Tensor) -> Any:
        y = m.conv(x)
        copied = y.clone()
        copied.mul_(2).add_(1)
        return y, copied

    assert optimized(Net(function, conv=conv()).eval())
