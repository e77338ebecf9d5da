"""What depends on weights alone is computed once; what depends on anything else is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

import fastres
from fastres.capture.capture import capture
from fastres.passes import fold_constants
from fastres.passes.context import Context
from fastres.report import Report
from tests.support.optimizing import nodes, operator_name
from tests.support.small import Net, assert_right, conv, counts, images, measured, net, optimized


def operators(fast: Any) -> list[str]:
    return [operator_name(n) for n in fast.graph_module.graph.nodes if n.op == "call_function"]


def test_a_frozen_batch_norm_is_folded() -> None:
    model = measured(nn.Sequential(conv(), FrozenBatchNorm2d(4), nn.ReLU()))
    fast = optimized(model)
    assert operators(fast) == ["conv2d"]
    assert fast.report.complete


def standardised(m: Any, x: Tensor) -> Any:
    """Weight standardisation, mean and deviation by two operations."""
    weight = m.conv.weight
    deviation = weight.std((1, 2, 3), keepdim=True) + 1e-5
    return torch.relu(m.norm(F.conv2d(x, (weight - weight.mean((1, 2, 3), True)) / deviation)))


def standardised_at_once(m: Any, x: Tensor) -> Any:
    """The same by one operation with two results."""
    deviation, mean = torch.std_mean(m.conv.weight, (1, 2, 3), keepdim=True)
    return torch.relu(m.norm(F.conv2d(x, (m.conv.weight - mean) / (deviation + 1e-5))))


def standardised_by_batch_norm(m: Any, x: Tensor) -> Any:
    """timm's spelling: a batch_norm over the filters."""
    weight = m.conv.weight
    flat = weight.reshape(1, len(weight), -1)
    flat = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-5)
    return torch.relu(m.norm(F.conv2d(x, flat.reshape_as(weight))))


@pytest.mark.parametrize(
    "function",
    [standardised, standardised_at_once, standardised_by_batch_norm],
    ids=lambda function: str(function.__name__),
)
def test_a_standardised_weight_is_folded(function: Any) -> None:
    fast = optimized(net(function, conv=conv(bias=False), norm=nn.BatchNorm2d(4)))
    assert operators(fast) == ["conv2d"]
    assert counts(fast, "batch_norm") == (1, 1)
    assert fast.report.complete


def test_a_weight_put_together_is_folded() -> None:
    def function(m: Any, x: Tensor) -> Any:
        half = m.conv.weight[:2]
        return m.norm(F.conv2d(x, torch.cat([half, -half.flip(3)]) * m.conv.bias.view(4, 1, 1, 1)))

    fast = optimized(net(function, conv=conv(), norm=nn.BatchNorm2d(4)))
    assert operators(fast) == ["conv2d"]


def test_the_users_weights_are_read_not_shared() -> None:
    model: Any = net(lambda m, x: F.conv2d(x, m.conv.weight.permute(0, 1, 3, 2)), conv=conv())
    x = images(2)
    fast = optimized(model)
    before = fast(x)
    with torch.no_grad():
        model.conv.weight.zero_()
    assert torch.equal(fast(x), before)


def test_random_numbers_are_drawn_in_every_call() -> None:
    def function(m: Any, x: Tensor) -> Any:
        return m.conv(x) + torch.rand_like(m.conv.bias).view(4, 1, 1)

    model = Net(function, conv=conv()).eval()
    with pytest.warns(fastres.FastresWarning, match="not everything was optimised"):
        fast = fastres.optimize(model, images(2))
    x = images(2)
    noise = (fast(x) - model.conv(x)).detach()  # type: ignore[operator]
    assert float(noise.max()) <= 1.001 and float(noise.min()) >= -0.001
    assert not torch.equal(fast(x), fast(x))
    assert any("draws random numbers" in note for note in fast.report.notes)


def test_what_depends_on_the_input_stays() -> None:
    def function(m: Any, x: Tensor) -> Any:
        gain = m.gain * x.mean((0, 2, 3)).view(4, 1, 1)
        return m.conv(x) * gain * (m.gain + x.shape[2])

    fast = optimized(net(function, conv=conv(), gain=torch.rand(4, 1, 1)))
    assert nodes(fast, "mul")


def test_arithmetic_is_in_the_models_own_dtype() -> None:
    # In float64 the 1 would survive; in the model's float32 it is lost, so it is in its answers.
    model = Net(
        lambda m, x: m.conv(x) * ((m.large + 1.0) - m.large),
        conv=conv(),
        large=torch.full((4, 1, 1), 2.0**30),
    )
    captured = capture(model.eval(), images(2))
    fold_constants.run(captured.module, Context(Report("Net"), torch.float32))
    folded = [b for b in captured.module.buffers() if b.shape == (4, 1, 1)]
    assert torch.equal(folded[-1], torch.zeros(4, 1, 1))


def test_constants_only_output() -> None:
    model = net(lambda m, x: (m.conv(x), m.conv.bias * 2), conv=conv())
    fast = optimized(model)
    first, second = fast(images(2))[1], fast(images(2))[1]
    first.zero_()
    assert float(second.abs().sum()) > 0
    assert_right(model, fast, images(3))
