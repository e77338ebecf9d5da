"""Layers by their part in int8's error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastres
from fastres.errors import FastresError, InputError, OptionError
from tests.support.oracle import unchanged
from tests.support.small import Net, conv, images, measured


def uneven() -> nn.Module:
    """Three convolutions; one channel of what the second reads is 200 times larger than others."""
    parts: dict[str, nn.Module] = {"a": conv(4, 8), "b": conv(8, 8), "c": conv(8, 8)}

    def forward(net: Any, x: Tensor) -> Tensor:
        answer: Tensor = net.c(net.b(net.a(x).relu()).relu())
        return answer

    model = measured(Net(forward, **parts))
    with torch.no_grad():
        model.a.weight[3].mul_(200.0)  # type: ignore[index,union-attr]
        model.b.weight[:, 3].mul_(1 / 200)  # type: ignore[index,union-attr]
    return model


def test_the_layer_that_loses_the_most_comes_first() -> None:
    model, x = uneven(), images(8)
    with unchanged(model):
        found = fastres.sensitivity(model, [x], x[:1], observer="minmax")
    assert [row.module for row in found][-1] == "c"
    assert sum(row.share for row in found) == pytest.approx(1.0)
    assert found[0].error > 3 * found[-1].error
    assert found.unmeasured == ()
    first = [line.split()[0] for line in str(found).splitlines() if line.strip()]
    assert first[-3:] == [row.module for row in found]


@pytest.mark.campaign
def test_keeping_the_worst_layers_wider_helps() -> None:
    model, x = uneven(), images(8)
    options: dict[str, Any] = {"precision": "int8", "calibration": [x], "observer": "minmax"}
    worst = fastres.sensitivity(model, [x], x[:1], observer="minmax")[:2]
    plain = fastres.optimize(model, x[:1], **options)
    mixed = fastres.optimize(model, x[:1], keep={row.module: "fp32" for row in worst}, **options)
    exact = model(x).detach()
    assert (mixed(x) - exact).norm() < 0.5 * (plain(x) - exact).norm()


def test_a_time_limit_leaves_layers_out_and_says_so() -> None:
    x = images(4)
    found = fastres.sensitivity(uneven(), [x], x[:1], time_limit=1e-9)
    assert len(found) == 1
    assert len(found.unmeasured) == 2
    assert "not measured within the time limit: " in str(found)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((5, [images()]), OptionError, "model is a int"),
        ((uneven(), None), OptionError, "needs calibration"),
        ((uneven(), []), OptionError, "holds no image"),
        ((uneven(), [images() * torch.nan]), InputError, "holds NaN"),
    ],
)
def test_bad_arguments_are_refused(
    arguments: tuple[Any, Any], error: type[FastresError], text: str
) -> None:
    with pytest.raises(error, match=text):
        fastres.sensitivity(*arguments, images(1))


@pytest.mark.parametrize("limit", [0, -1.0, "long", True])
def test_bad_limits_are_refused(limit: Any) -> None:
    with pytest.raises(OptionError, match="time_limit: got"):
        fastres.sensitivity(uneven(), [images()], images(1), time_limit=limit)
