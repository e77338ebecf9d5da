"""BatchNorm into the convolution after it: where padding permits, and every reason not to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.optimizing import nodes
from tests.support.small import (
    Net,
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


@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"groups": 2}, {"groups": 4}, {"stride": 2, "dilation": 2}],
    ids=str,
)
def test_folded_into_a_convolution_that_does_not_pad(options: dict[str, Any]) -> None:
    model = measured(nn.Sequential(nn.BatchNorm2d(4), conv(channels=8, padding=0, **options)))
    fast = optimized(model)
    assert counts(fast, "batch_norm") == (1, 1)
    assert fast.report.complete
    assert not nodes(fast, "scale_shift")


def test_the_folded_weight_is_the_float64_formula_rounded_once() -> None:
    model: Any = measured(nn.Sequential(nn.BatchNorm2d(4), conv(channels=6, padding=0, groups=2)))
    fast = optimized(model)
    norm, convolution = model
    weight, bias, mean, variance = (
        t.double() for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    scale = weight * torch.rsqrt(variance + norm.eps)
    shift = bias - mean * scale
    folded_weight, folded_bias = convolution.weight.double(), convolution.bias.double()
    for k in range(6):
        for c in range(2):
            channel = k // 3 * 2 + c
            folded_bias[k] += (folded_weight[k, c] * shift[channel]).sum()
            folded_weight[k, c] *= scale[channel]
    weight_used, bias_used = folded(fast)
    assert torch.equal(weight_used, folded_weight.float())
    torch.testing.assert_close(bias_used, folded_bias.float(), rtol=3e-7, atol=0)


def test_on_both_sides_of_one_convolution() -> None:
    layers = (nn.BatchNorm2d(4), conv(padding=0), nn.BatchNorm2d(4))
    fast = optimized(measured(nn.Sequential(*layers)))
    assert counts(fast, "batch_norm") == (2, 2)
    assert fast.report.complete


def test_padding_is_no_matter_without_a_shift() -> None:
    model: Any = measured(nn.Sequential(nn.BatchNorm2d(4), conv()))
    with torch.no_grad():
        model[0].bias.zero_()
    model[0].running_mean.zero_()
    fast = optimized(model)
    assert counts(fast, "batch_norm") == (1, 1)
    assert fast.report.complete


def test_refused_before_a_convolution_that_pads() -> None:
    fast = optimized(measured(nn.Sequential(nn.BatchNorm2d(4), conv())))
    assert counts(fast, "batch_norm") == (0, 1)
    reason = "nor forwards: 1 pads, and folding the shift would change the border pixels; it runs"
    assert_refused(fast, "0", "BatchNorm", reason)
    assert len(nodes(fast, "scale_shift")) == 1


@pytest.mark.parametrize("side", range(4))
def test_refused_before_padding_on_any_one_side(side: int) -> None:
    sides = [0, 0, 0, 0]
    sides[side] = 1
    model = net(
        lambda m, x: m.conv(F.pad(m.norm(x), sides)),
        norm=nn.BatchNorm2d(4),
        conv=conv(padding=0),
    )
    assert_refused(optimized(model), "norm", "BatchNorm", "nor forwards: conv pads")


def test_refused_with_two_readers() -> None:
    def function(m: Any, x: Tensor) -> Any:
        y = m.norm(x)
        return m.left(y) * m.right(y)

    model = net(function, norm=nn.BatchNorm2d(4), left=conv(padding=0), right=conv(padding=0))
    assert_refused(optimized(model), "norm", "BatchNorm", "nor forwards: 2 operations read it")


@pytest.mark.parametrize(
    ("after", "operator"),
    [(nn.ReLU(), "aten.relu"), (nn.ReflectionPad2d(1), "aten"), (nn.MaxPool2d(2), "fastres.max")],
    ids=["ReLU", "reflection", "pooling"],
)
def test_refused_without_a_convolution_right_after(after: nn.Module, operator: str) -> None:
    fast = optimized(measured(nn.Sequential(nn.BatchNorm2d(4), after, conv(padding=0))))
    reason = rf"nor forwards: it is read by {operator}\S*, not by a convolution"
    assert_refused(fast, "0", "BatchNorm", reason)


def test_refused_as_the_last_operation() -> None:
    fast = optimized(measured(nn.Sequential(conv(), nn.ReLU(), nn.BatchNorm2d(4))))
    assert_refused(fast, "2", "BatchNorm", "nor forwards: it is read by output, not by a conv")


def test_refused_as_the_filters_of_a_convolution() -> None:
    def function(m: Any, x: Tensor) -> Any:
        filters = m.norm(F.gelu(m.first(x)))
        return F.conv2d(x, filters, padding=1)

    x = images(4, height=3, width=3)
    model = measured(Net(function, first=conv(), norm=nn.BatchNorm2d(4)), x)
    fast = optimized(model, x)
    assert_refused(
        fast, "norm", "BatchNorm", "nor forwards: it is read by .*not as its image|not by"
    )


def test_refused_with_a_weight_from_the_input() -> None:
    x, filters = images(2), torch.randn(4, 4, 3, 3)
    model = pair_net(
        lambda m, x, w: m.last(F.conv2d(m.norm(x), w)),
        x,
        filters,
        norm=nn.BatchNorm2d(4),
        last=conv(),
    )
    fast = optimized(model, x, filters)
    assert_refused(fast, "norm", "BatchNorm", "nor forwards: the weight of .* from the input")


def test_refused_with_a_bias_from_the_input() -> None:
    x, bias = images(2), torch.randn(4)
    model = pair_net(
        lambda m, x, b: F.conv2d(m.norm(x), m.last.weight, b),
        x,
        bias,
        norm=nn.BatchNorm2d(4),
        last=conv(),
    )
    fast = optimized(model, x, bias)
    assert_refused(fast, "norm", "BatchNorm", "nor forwards: the bias of .* from the input")


def test_refused_where_float16_would_overflow() -> None:
    norm, convolution = nn.BatchNorm2d(4), conv(padding=0, bias=False)
    with torch.no_grad():
        norm.weight.fill_(1e3)
        convolution.weight.mul_(1e3)
    assert norm.running_var is not None
    norm.running_var.fill_(1e-2)
    model, x = nn.Sequential(norm, convolution).eval(), 1e-4 * images(2)
    assert counts(optimized(model, x), "batch_norm") == (1, 1)
    fast = optimized(model, x, precision="fp16")
    assert counts(fast, "batch_norm") == (0, 1)
    reason = r"nor forwards: the folded weight of 1 would overflow .*torch\.float16"
    assert_refused(fast, "0", "BatchNorm", reason)
