"""Between torch's steps and kernels: what torch leaves in another layout is laid out anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastres.kernels.launch import layout
from fastres.runtime.triton.layouts import laid_out
from tests.support.kernel_oracle import channels_last_strides
from tests.support.optimizing import optimize
from tests.support.small import assert_right, conv, images, net


@pytest.fixture
def transposed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that the kernel was launched for."""
    seen: list[tuple[int, ...]] = []
    kernel = layout.to_channels_last

    def counted(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return kernel(x)

    monkeypatch.setattr(layout, "to_channels_last", counted)
    return seen


def shuffled() -> nn.Module:
    """Channels in another order, by reshaping: torch leaves NCHW."""

    def function(m: Any, x: Tensor) -> Any:
        y = F.relu(m.first(x))
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return m.second(y)

    return net(function, first=conv(4, 24), second=conv(24, 8))


def check_shuffled(precision: str) -> None:
    model = shuffled()
    fast = optimize(model, images(2), engine="triton", precision=precision)
    for x in (images(1), images(3, height=11, width=7)):
        assert_right(model, fast, x, precision=precision)
    assert fast(images(0)).shape == (0, 8, 9, 8)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_nchw_between_two_steps(precision: str, transposed: list[tuple[int, ...]]) -> None:
    check_shuffled(precision)
    assert (1, 24, 9, 8) in transposed and (3, 24, 11, 7) in transposed


def test_channels_last_of_torchs_costs_nothing(transposed: list[tuple[int, ...]]) -> None:
    model = net(lambda m, x: m.second(F.gelu(m.first(x))), first=conv(4, 24), second=conv(24, 8))
    fast = optimize(model, images(2), engine="triton")
    assert_right(model, fast, images(3))
    assert transposed == []


def strides(x: Tensor) -> tuple[int, ...]:
    return tuple(channels_last_strides(x.shape))


def test_what_lies_right_stays(transposed: list[tuple[int, ...]]) -> None:
    for x in (
        images(2).contiguous(memory_format=torch.channels_last),
        images(3, channels=1),
        images(3, height=1, width=1),
        images(1, channels=1, height=1, width=1),
    ):
        got = laid_out(x, strides(x))
        assert got.data_ptr() == x.data_ptr()
        assert got.stride() == strides(x)
        assert torch.equal(got, x)
    assert transposed == []


@pytest.mark.parametrize(
    ("name", "by_kernel"),
    [("nchw", True), ("slice of channels", False), ("batch last", False), ("integers", False)],
)
def test_the_rest_is_copied(name: str, by_kernel: bool, transposed: list[tuple[int, ...]]) -> None:
    whole = images(3, channels=10)
    x = {
        "nchw": whole,
        "slice of channels": whole[:, 2:7],
        "batch last": whole.movedim(0, -1).contiguous().movedim(-1, 0),
        "integers": (whole * 9).int(),
    }[name]
    got = laid_out(x, strides(x))
    assert torch.equal(got, x)
    assert got.stride() == strides(x)
    assert bool(transposed) == by_kernel


def test_rows() -> None:
    x = torch.arange(24).view(4, 6).T
    got = laid_out(x, (4, 1))
    assert torch.equal(got, x) and got.stride() == (4, 1)


def test_without_memory_nothing_is_launched(transposed: list[tuple[int, ...]]) -> None:
    x = images(3).to("meta")
    assert laid_out(x, strides(x)).stride() == strides(x)
    assert transposed == []
