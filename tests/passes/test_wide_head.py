"""The last pooling and classifier of bfloat16 networks on CPUs stay in float32."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastres.passes import wide_head
from tests.support.optimizing import optimize
from tests.support.oracle import in_precision
from tests.support.small import assert_right, conv, images, measured, net


def classifier(*sizes: int) -> nn.Sequential:
    linears = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*(each for linear in linears for each in (linear, nn.ReLU())))[:-1]


NETWORKS: dict[str, tuple[Any, list[str]]] = {
    "pooling, flattening, linear": (
        lambda: nn.Sequential(conv(4, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
        ["3"],
    ),
    "the last of several linear layers": (
        lambda: nn.Sequential(conv(4, 8), nn.Flatten(), classifier(576, 16, 16, 5)),
        ["2.4"],
    ),
    "two classifiers": (
        lambda: net(
            lambda m, x: (m.one(m.body(x).mean((2, 3))), m.two(m.body(x).mean((2, 3)))),
            body=conv(4, 8), one=nn.Linear(8, 3), two=nn.Linear(8, 7),
        ),
        ["one", "two"],
    ),
    "a convolution of what is pooled": (
        lambda: nn.Sequential(conv(4, 8), nn.AdaptiveAvgPool2d(1), conv(8, 5, 1), nn.Flatten()),
        ["2"],
    ),
    "a gate is no head": (
        lambda: net(
            lambda m, x: m.out(m.body(x) * m.gate(m.body(x).mean((2, 3), keepdim=True)).sigmoid()),
            body=conv(4, 8), gate=conv(8, 8, 1), out=conv(8, 4),
        ),
        [],
    ),
    "pooled, then read on": (
        lambda: net(
            lambda m, x: (m.head(m.body(x).mean((2, 3))), m.body(x)),
            body=conv(4, 8), head=nn.Linear(8, 3),
        ),
        ["head"],
    ),
    "a weight of two layers": (
        lambda: net(
            lambda m, x: m.head(m.head(m.body(x).mean((2, 3)))),
            body=conv(4, 8), head=nn.Linear(8, 8),
        ),
        [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("engine", ["native", "onednn", "eager"])
@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_which_layers_are_the_head(name: str, own: torch.dtype, engine: str) -> None:
    build, expected = NETWORKS[name]
    model, x = measured(build()).to(own), images().to(own)
    fast = optimize(model, x, precision="bf16", engine=engine)
    wide = [module for module, _, dtype in fast.report.layers if dtype == "torch.float32"]
    assert wide == expected
    assert_right(model, fast, x, precision="bf16")


@torch.no_grad()
def test_the_head_loses_nothing_to_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only the head could lose anything: the body's values are bfloat16 as they are."""
    model = nn.Sequential(
        nn.Conv2d(64, 64, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 50)
    )
    model.get_parameter("0.weight").copy_(torch.eye(64)[:, :, None, None])
    model, x = model.eval(), images(4, 64, 7, 7).bfloat16().float()
    exact = in_precision(model, torch.float64)(x.double())

    def error() -> float:
        y = optimize(copy.deepcopy(model), x, precision="bf16")(x)
        return float((y - exact).norm() / exact.norm())

    wide = error()
    monkeypatch.setattr(wide_head, "is_wanted", lambda dtype, device: False)
    assert wide < 1e-6 < 1e-3 < error()


def test_renewed_weights_stay_wide() -> None:
    model = measured(nn.Sequential(conv(4, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                                   nn.Linear(8, 5)))  # fmt: skip
    x: Tensor = images()
    fast = optimize(model, x, precision="bf16")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(0.7)
    fast.refresh(other.state_dict())
    assert torch.equal(fast(x), optimize(other, x, precision="bf16")(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_only_bfloat16_on_cpus(dtype: torch.dtype, device: str) -> None:
    wanted = wide_head.is_wanted(dtype, torch.device(device))
    assert wanted == (dtype == torch.bfloat16 and device == "cpu")
