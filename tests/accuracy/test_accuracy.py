"""Networks in which rounding errors show: where each was found, ours was many times torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastres
from tests.support.small import Net, conv, measured

BOUND = 3.0
ENGINES = ["auto", "onednn"]


def assert_accurate(model: nn.Module, *inputs: Tensor, **options: Any) -> Any:
    """Optimised, the error is at most three times eager's, NaN and infinity are where its are."""
    fast = fastres.optimize(model, inputs[0], **options)
    for x in inputs:
        verification = fastres.verify(model, fast, x)
        assert verification.error_ratio <= BOUND, f"{verification}\n{fast.report}"
        ours, eager = fast(x), model(x)
        assert torch.equal(ours.isfinite(), eager.isfinite())
    return fast


@pytest.mark.sampled(4)
@pytest.mark.filterwarnings("ignore:not everything was optimised")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bias", [3.0, 100.0])
@pytest.mark.parametrize(("channels", "kernel"), [(3, 3), (16, 3), (64, 3), (20, 1)])
def test_a_bias_that_group_norm_takes_away(
    engine: str, bias: float, channels: int, kernel: int
) -> None:
    model: Any = nn.Sequential(conv(channels, 32, kernel), nn.GroupNorm(8, 32)).eval()
    nn.init.constant_(model[0].bias, bias)
    assert_accurate(model, torch.randn(2, channels, 20, 20), engine=engine)


NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "group": lambda y: F.group_norm(y, 4),
    "batch": lambda y: F.batch_norm(y, None, None, training=True),
    "vector": lambda y: y / torch.linalg.vector_norm(y, dim=(2, 3), keepdim=True),
    "norm": lambda y: y / y.norm(p=2, dim=(2, 3), keepdim=True),
}


@pytest.mark.sampled(3)
@pytest.mark.filterwarnings("ignore:not everything was optimised")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("norm", NORMS)
def test_norms_of_channels_last_images(engine: str, norm: str) -> None:
    model: Any = Net(
        lambda m, x: m.last(NORMS[norm](m.first(x))), first=conv(8, 32), last=conv(32, 4)
    )
    nn.init.constant_(model.first.bias, 4.0)
    x = torch.randn(2, 8, 40, 40)
    assert_accurate(model.eval(), x, x.to(memory_format=torch.channels_last), engine=engine)


@pytest.mark.campaign
@pytest.mark.filterwarnings("ignore:not everything was optimised")
@pytest.mark.parametrize("engine", ENGINES)
def test_a_gated_product_minus_its_input(engine: str) -> None:
    def function(m: Any, x: Tensor) -> Any:
        y = m.conv(x)
        gate = F.hardsigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(y, 1)))))
        z = F.max_pool2d(y * gate - y, 3, 1, 1, 2)
        return F.group_norm(F.channel_shuffle(z, 2), 4)

    parts = {"conv": conv(16, 4), "down": conv(4, 2, 1), "up": conv(2, 4, 1)}
    for _ in range(3):
        assert_accurate(Net(function, **parts).eval(), torch.randn(1, 16, 16, 16), engine=engine)


CUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "sigmoid": torch.sigmoid,
    "clamp": lambda y: y.clamp(max=2.0),
}


@pytest.mark.sampled(3)
@pytest.mark.filterwarnings("ignore:not everything was optimised")
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("tap", [1e3, 7e4, 1e38])
def test_one_outlying_tap_before_what_cuts_it_off(cut: str, tap: float) -> None:
    def function(m: Any, x: Tensor) -> Any:
        y = F.relu(m.norm(m.first(x)))
        return CUTS[cut](m.second(y) + y)

    parts = {"first": conv(3, 64), "norm": nn.BatchNorm2d(64), "second": conv(64, 64)}
    model: Any = measured(Net(function, **parts), torch.randn(2, 3, 24, 24))
    with torch.no_grad():
        model.second.weight[5, 7, 1, 1] = tap
    assert_accurate(model, torch.randn(2, 3, 24, 24))


@pytest.mark.parametrize("pixel", [1e2, 1e5, 1e12])
def test_one_outlying_pixel_before_what_cuts_it_off(pixel: float) -> None:
    model: Any = Net(lambda m, x: F.relu6(m.conv(x)), conv=conv(64, 64)).eval()
    x = torch.randn(2, 64, 28, 28)
    x[0, 3, 5, 6] = pixel
    assert_accurate(model, x)


def test_outlying_taps_without_a_cut() -> None:
    def function(m: Any, x: Tensor) -> Any:
        return F.relu6(m.last(F.relu(m.first(x))))

    model: Any = Net(function, first=conv(64, 64), last=conv(64, 16, 1)).eval()
    with torch.no_grad():
        model.first.weight[::9, 7, 1, 1] = 1e4
    assert_accurate(model, torch.randn(2, 64, 28, 28))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e20, 1e30])
def test_pixels_that_are_no_numbers(value: float) -> None:
    def function(m: Any, x: Tensor) -> Any:
        y = F.relu6(m.first(x))
        return F.relu6(m.second(y) + y), m.first(x)

    model: Any = Net(lambda m, x: function(m, x)[0], first=conv(3, 64), second=conv(64, 64)).eval()
    x = torch.randn(2, 3, 24, 24)
    x[1, 2, 5, 6] = value
    fast = fastres.optimize(model, torch.randn(2, 3, 24, 24))
    assert torch.equal(fast(x).isnan(), model(x).isnan())
    torch.testing.assert_close(fast(x), model(x), equal_nan=True, rtol=1e-5, atol=1e-5)


def test_a_tiny_epsilon() -> None:
    def function(m: Any, x: Tensor) -> Any:
        y = F.relu6(m.norm(m.first(x)))
        return F.relu6(m.second(y) + y)

    parts = {"first": conv(3, 64), "norm": nn.BatchNorm2d(64, eps=1e-45), "second": conv(64, 64)}
    model: Any = Net(function, **parts).eval()
    for variance in (1.0, 1e-30, 1e-43, 0.0):
        model.norm.running_var[3] = variance
        assert_accurate(model, torch.randn(2, 3, 24, 24))


def test_standardised_weights_are_made_once() -> None:
    class Standardised(nn.Conv2d):
        """Weights standardised in forward, as in BiT."""

        def forward(self, x: Tensor) -> Tensor:
            k = self.out_channels
            weight = F.batch_norm(self.weight.reshape(1, k, -1), None, None, training=True)
            return F.conv2d(x, weight.reshape_as(self.weight), self.bias, padding=1)

    layers = (Standardised(8, 32, 3), nn.GroupNorm(8, 32), nn.ReLU(), Standardised(32, 8, 3))
    model: Any = nn.Sequential(*layers).eval()
    with pytest.warns(fastres.FastresWarning, match="group_norm"):
        fast = assert_accurate(model, torch.randn(2, 8, 30, 30))
    assert "batch_norm" not in fast.graph_module.code
    assert not any(remark.module in ("0", "3") for remark in fast.report.left)
