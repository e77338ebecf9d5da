"""Weights in eight bits: scales by filter, biases in units of the sums, and their correction."""

from __future__ import annotations

import pytest
import torch

from fastres.quantization.weights import quantized_weights


def test_every_filter_has_its_own_scale() -> None:
    filters = torch.randn(5, 3, 3, 3) * torch.tensor([1e-3, 1.0, 7.0, 100.0, 1e4]).view(-1, 1, 1, 1)
    made = quantized_weights(filters, None, 0.1)
    assert made.weight.dtype == torch.int8
    assert made.scale.dtype == torch.float32
    assert made.bias.dtype == torch.int32
    assert (made.weight.abs().amax(dim=(1, 2, 3)) == 127).all()
    error = (made.weight.float() * made.scale.view(-1, 1, 1, 1) - filters).abs()
    assert (error <= made.scale.view(-1, 1, 1, 1) * 0.5001).all()
    assert not made.bias.any()


def test_minus_128_is_never_used() -> None:
    made = quantized_weights(-torch.ones(2, 4, 1, 1), None, 1.0)
    assert (made.weight == -127).all()


@pytest.mark.parametrize("value", [0.0, 1e-40])
def test_a_dead_filter_keeps_its_bias(value: float) -> None:
    bias = torch.tensor([0.5, -3.0])
    made = quantized_weights(torch.full((2, 3, 1, 1), value), bias, 0.02)
    assert torch.isfinite(made.scale).all()
    assert torch.allclose(made.bias * made.scale * 0.02, bias, rtol=0.05)


def test_a_bias_far_beyond_its_filter_fits() -> None:
    bias = torch.tensor([1e6])
    made = quantized_weights(torch.full((1, 1, 1, 1), 1e-6), bias, 1e-3)
    assert made.bias.abs().max() <= 2**29
    assert torch.allclose(made.bias.double() * made.scale.double() * 1e-3, bias.double(), rtol=1e-6)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_correction_takes_the_mean_error_away(groups: int) -> None:
    filters = torch.randn(6, 4 // groups, 1, 1)
    x = torch.rand(2000, 4, 1, 1) * torch.tensor([1.0, 5.0, 2.0, 9.0]).view(1, -1, 1, 1)
    exact = torch.conv2d(x.double(), filters.double(), groups=groups)
    errors = []
    for mean in (None, x.double().mean(dim=(0, 2, 3))):
        made = quantized_weights(filters, None, 1e-4, mean, groups)
        weight = made.weight.double() * made.scale.double().view(-1, 1, 1, 1)
        bias = made.bias.double() * made.scale.double() * 1e-4
        errors.append(
            (torch.conv2d(x.double(), weight, bias, groups=groups) - exact).mean((0, 2, 3))
        )
    assert errors[0].abs().max() > 1e-3
    assert errors[1].abs().max() < 1e-3 * errors[0].abs().max() + 1e-4
