"""Random small networks: whatever fastres makes of one agrees with float64."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, assume, given, settings
from optimizing import optimize
from oracle import assert_as_accurate, float64_error
from torch import nn
from zoo.generated import Network, networks
from zoo.statistics import randomise_statistics

# Some networks subtract a value from itself; what remains is rounding, which nobody can be held to.
WELL_CONDITIONED = 1e-5


def build(network: Network) -> tuple[nn.Module, torch.Tensor]:
    """A network with measured statistics, and a batch of three images."""
    generator = torch.Generator().manual_seed(network.seed)
    model = network.build()
    randomise_statistics(model, torch.randn(6, *network.image, generator=generator))
    model.eval()
    images = torch.randn(3, *network.image, generator=generator)
    assume(float64_error(model, model, images.clone()).eager < WELL_CONDITIONED)
    return model, images


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(networks())
def test_a_random_network_is_as_accurate(network: Network) -> None:
    model, images = build(network)
    fast = optimize(model, images[:2])
    assert_as_accurate(model, fast, images)
    report = fast.report
    assert all(report.done[kind] <= count for kind, count in report.found.items())


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(networks())
def test_a_random_network_is_as_accurate_in_bfloat16(network: Network) -> None:
    model, images = build(network)
    fast = optimize(model, images[:2], precision="bf16")
    assert_as_accurate(model, fast, images, precision="bf16")
