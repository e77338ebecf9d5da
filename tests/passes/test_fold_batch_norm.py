"""BatchNorm into the layer before it: where it must fold, and every reason not to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastres.ir import ops
from tests.support.optimizing import nodes
from tests.support.small import (
    assert_refused,
    conv,
    counts,
    folded,
    images,
    measured,
    net,
    optimized,
    pair_net,
)


def unit(**options: Any) -> nn.Module:
    return measured(nn.Sequential(conv(channels=8, **options), nn.BatchNorm2d(8)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"groups": 2},
        {"groups": 4},
        {"stride": 2, "dilation": 2},
        {"padding": "same"},
    ],
    ids=str,
)
def test_folded(options: dict[str, Any]) -> None:
    fast = optimized(unit(**options))
    assert counts(fast, "batch_norm") == (1, 1)
    assert fast.report.complete
    assert not nodes(fast, "scale_shift")


def test_the_folded_weight_is_the_float64_formula_rounded_once() -> None:
    model: Any = unit()
    fast = optimized(model)
    convolution, norm = model
    weight, bias, mean, variance = (
        t.double() for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    scale = weight * torch.rsqrt(variance + norm.eps)
    weight_used, bias_used = folded(fast)
    wanted = convolution.weight.double() * scale[:, None, None, None]
    assert torch.equal(weight_used, wanted.float())
    wanted = convolution.bias.double() * scale + (bias - mean * scale)
    assert torch.equal(bias_used, wanted.float())


def test_circular_padding_is_an_operation_before_the_convolution() -> None:
    fast = optimized(unit(padding_mode="circular"))
    assert counts(fast, "batch_norm") == (1, 1)
    assert not fast.report.refused


def test_without_affine() -> None:
    model = measured(nn.Sequential(conv(), nn.BatchNorm2d(4, affine=False)))
    assert counts(optimized(model), "batch_norm") == (1, 1)


def test_epsilon_counts() -> None:
    model: Any = measured(nn.Sequential(conv(), nn.BatchNorm2d(4, eps=0.3)))
    model[1].running_var.mul_(0.01)
    assert counts(optimized(model), "batch_norm") == (1, 1)


def test_shared_convolution_gets_weights_for_each_norm() -> None:
    model = net(
        lambda m, x: m.second(m.conv(torch.relu(m.first(m.conv(x))))),
        conv=conv(),
        first=nn.BatchNorm2d(4),
        second=nn.BatchNorm2d(4),
    )
    fast = optimized(model)
    assert counts(fast, "batch_norm") == (2, 2)
    names = [str(node.args[1]) for node in nodes(fast, "conv2d")]
    assert len(set(names)) == 2


def test_shared_norm_folds_into_each_convolution() -> None:
    model = net(
        lambda m, x: m.norm(m.first(x)) * m.norm(m.second(x)),
        first=conv(),
        second=conv(kernel=1),
        norm=nn.BatchNorm2d(4),
    )
    assert counts(optimized(model), "batch_norm") == (2, 2)


def test_two_norms_in_a_row() -> None:
    model = measured(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.BatchNorm2d(4)))
    assert counts(optimized(model), "batch_norm") == (2, 2)


def test_into_a_linear_layer() -> None:
    model = net(
        lambda m, x: m.norm(m.linear(m.conv(x).mean((2, 3)))),
        conv=conv(),
        linear=nn.Linear(4, 6),
        norm=nn.BatchNorm1d(6),
    )
    fast = optimized(model)
    assert counts(fast, "batch_norm") == (1, 1)
    assert not nodes(fast, "scale_shift")


@pytest.mark.parametrize("rows", [4, 6], ids=["as many rows as outputs", "other"])
def test_not_into_a_linear_layer_over_rows(rows: int) -> None:
    # [N, rows, 4]: the BatchNorm's channels are the rows, not what the linear layer gives.
    model = measured(
        nn.Sequential(conv(channels=rows), nn.Flatten(2), nn.Linear(72, 4), nn.BatchNorm1d(rows)),
    )
    fast = optimized(model, images(2))
    assert counts(fast, "batch_norm") == (0, 1)
    assert_refused(fast, "3", "BatchNorm", "not folded backwards: .*; nor forwards: ")


@pytest.mark.parametrize(
    ("between", "operator"),
    [(nn.ReLU(), "aten.relu"), (nn.MaxPool2d(2), "fastres.max_pool2d"), (nn.GELU(), "aten.gelu")],
    ids=["ReLU", "pooling", "GELU"],
)
def test_refused_without_a_convolution_before(between: nn.Module, operator: str) -> None:
    fast = optimized(measured(nn.Sequential(conv(), between, nn.BatchNorm2d(4))))
    assert counts(fast, "batch_norm") == (0, 1)
    reason = rf"not folded backwards: there is no convolution right before it but {operator}"
    assert_refused(fast, "2", "BatchNorm", reason)
    assert len(nodes(fast, "scale_shift")) == 1


def test_refused_for_the_input_itself() -> None:
    fast = optimized(measured(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), conv())))
    assert_refused(fast, "0", "BatchNorm", "there is no convolution right before it but ")


def test_refused_with_a_second_reader() -> None:
    model = net(
        _two_readers,
        raw=conv(),
        other=conv(),
        norm=nn.BatchNorm2d(4),
    )
    fast = optimized(model)
    assert counts(fast, "batch_norm") == (0, 1)
    assert_refused(fast, "norm", "BatchNorm", "the output of raw is also read by other; nor")


def _two_readers(m: Any, x: torch.Tensor) -> torch.Tensor:
    raw = m.raw(x)
    result: torch.Tensor = torch.relu(m.norm(raw)) * m.other(raw)
    return result


def test_refused_where_the_convolution_is_an_output_too() -> None:
    def function(m: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raw = m.raw(x)
        return raw, m.norm(raw)

    fast = optimized(net(function, raw=conv(), norm=nn.BatchNorm2d(4)))
    assert_refused(fast, "norm", "BatchNorm", "the output of raw is also read by output")


def test_refused_with_a_weight_from_the_input() -> None:
    x, filters = images(2), torch.randn(4, 4, 3, 3)
    model = pair_net(
        lambda m, x, w: m.norm(F.conv2d(m.first(x), w)),
        x,
        filters,
        first=conv(),
        norm=nn.BatchNorm2d(4),
    )
    fast = optimized(model, x, filters)
    assert_refused(fast, "norm", "BatchNorm", "the weight of .* is computed from the input; nor")


def test_refused_with_a_bias_from_the_input() -> None:
    x, bias = images(2), torch.randn(4)
    model = pair_net(
        lambda m, x, b: m.norm(F.conv2d(x, m.first.weight, b)),
        x,
        bias,
        first=conv(),
        norm=nn.BatchNorm2d(4),
    )
    fast = optimized(model, x, bias)
    assert_refused(fast, "norm", "BatchNorm", "the bias of .* is computed from the input; nor")


def scaled(weight: float, variance: float, scale: float) -> nn.Module:
    """Conv without bias and BatchNorm with these numbers all over, and no mean or shift."""
    convolution, norm = conv(bias=False), nn.BatchNorm2d(4)
    with torch.no_grad():
        convolution.weight.mul_(weight)
        norm.weight.fill_(scale)
    assert norm.running_var is not None
    norm.running_var.fill_(variance)
    return nn.Sequential(convolution, norm).eval()


def test_refused_where_float16_would_overflow() -> None:
    model, x = scaled(weight=1e3, variance=1e-4, scale=1e3), 1e-4 * images(2)
    assert counts(optimized(model, x), "batch_norm") == (1, 1)
    fast = optimized(model, x, precision="fp16")
    assert counts(fast, "batch_norm") == (0, 1)
    reason = r"the folded weight of 0 would overflow .*torch\.float16"
    assert_refused(fast, "1", "BatchNorm", reason)


def test_refused_where_float16_would_lose_the_weight() -> None:
    model, x = scaled(weight=1e-3, variance=1.0, scale=1e-4), 1e3 * images(2)
    assert counts(optimized(model, x), "batch_norm") == (1, 1)
    fast = optimized(model, x, precision="fp16")
    assert counts(fast, "batch_norm") == (0, 1)
    assert_refused(
        fast, "1", "BatchNorm", r"the folded weight of 0 would .*underflow torch\.float16"
    )


def test_refused_behind_a_convolution_that_already_has_an_activation() -> None:
    model = net(lambda m, x: m.norm(fused(m, x, None, "relu")), raw=conv(), norm=nn.BatchNorm2d(4))
    fast = optimized(model)
    assert_refused(fast, "norm", "BatchNorm", "before it already has an activation")


@pytest.mark.parametrize("before", ["none", "relu"])
def test_refused_behind_a_convolution_that_already_adds(before: str) -> None:
    model = net(
        lambda m, x: m.norm(fused(m, x, x, "none", before)), raw=conv(), norm=nn.BatchNorm2d(4)
    )
    fast = optimized(model)
    assert counts(fast, "batch_norm") == (0, 1)
    assert_refused(fast, "norm", "BatchNorm", "not folded backwards: ")


def fused(m: Any, x: torch.Tensor, residual: Any, after: str, before: str = "none") -> torch.Tensor:
    """What an optimised and exported part of a model consists of."""
    shape = ([1, 1], [1, 1, 1, 1], [1, 1], 1)
    y: torch.Tensor = ops.conv2d(x, m.raw.weight, m.raw.bias, residual, *shape, before, after)
    return y


def test_a_refused_norm_is_one_operator() -> None:
    fast = optimized(measured(nn.Sequential(conv(), nn.GELU(), nn.BatchNorm2d(4), nn.ReLU())))
    (node,) = nodes(fast, "scale_shift")
    assert node.args[3] == "relu"
    reason = "it runs as one scale-and-shift$"
    assert_refused(fast, "2", "BatchNorm", reason)
