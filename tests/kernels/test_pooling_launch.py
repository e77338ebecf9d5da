"""Launches of the pooling kernels: how many windows there are, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastres.errors import InputError, OptionError
from fastres.kernels.launch.pooling import (
    avg_pool2d,
    global_avg_pool,
    global_avg_pool_calls,
    max_pool2d,
    max_pool2d_calls,
    pooled_size,
)
from fastres.kernels.tuning.pooling import PoolConfig, choose_global_avg_pool, choose_pool2d
from tests.support.kernel_oracle import random_images


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_pooled_sizes_are_torchs(ceil_mode: bool) -> None:
    for size in range(1, 12):
        for kernel in range(1, size + 1):
            for stride in range(1, 5):
                for padding in range(kernel // 2 + 1):
                    window = ([kernel] * 2, [stride] * 2, [padding] * 2, [1, 1], ceil_mode)
                    wanted = torch.max_pool2d(torch.zeros(1, 1, size, size), *window).shape[2]
                    assert pooled_size(size, kernel, stride, padding, 1, ceil_mode) == wanted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ((3, 3, 3), (2, 2), (1, 1), (1, 1)),
            r"kernel=\[3, 3, 3\]: expected \(height, width\), at",
        ),
        (((0, 3), (2, 2), (1, 1), (1, 1)), r"kernel=\[0, 3\]: expected .* at least 1"),
        (((3, 3), (2, 0), (1, 1), (1, 1)), r"stride=\[2, 0\]"),
        (((3, 3), (2, 2), (-1, 1), (1, 1)), r"padding=\[-1, 1\]: expected .* at least 0"),
        (((3, 3), (2, 2), (1, 2), (1, 1)), "expected at most half of it"),
        (((3, 3), (2, 2), (1, 1), (1, 9)), "too large for an image of 6 x 5 pixels"),
    ],
)
def test_windows_that_torch_refuses(arguments: Any, message: str) -> None:
    x = random_images(1, 2, 6, 5, precision="fp32")
    kernel, stride, padding, dilation = arguments
    with pytest.raises(OptionError, match=message):
        max_pool2d(x, kernel, stride, padding, dilation, False)
    with pytest.raises((RuntimeError, TypeError)):
        torch.max_pool2d(x, kernel, stride, padding, dilation, False)


def test_refusals() -> None:
    x = random_images(1, 2, 6, 5, precision="fp32")
    window = ((2, 2), (2, 2), (0, 0))
    with pytest.raises(OptionError, match="divisor_override=0"):
        avg_pool2d(x, *window, False, True, 0)
    with pytest.raises(InputError, match=r"out is \[1, 2, 6, 5\].*expected \[1, 2, 3, 2\]"):
        max_pool2d_calls(x, x, *window, (1, 1), False)
    with pytest.raises(InputError, match="x has 3 axes"):
        max_pool2d(x[0], *window, (1, 1), False)
    with pytest.raises(InputError, match=r"x of torch.float64: expected float16"):
        global_avg_pool(x.double(), True)
    with pytest.raises(InputError, match=r"x is \[1, 2, 0, 5\].*expected \[1, 2, 1, 5\]"):
        global_avg_pool(x[:, :, :0], True)
    with pytest.raises(InputError, match=r"has strides .* dense channels-last"):
        global_avg_pool_calls(x.contiguous(), torch.empty(1, 2))
    with pytest.raises(OptionError, match="block_m=12: expected a power of two"):
        PoolConfig(12, 16)


@pytest.mark.parametrize("element_bytes", [2, 4])
def test_chosen_tiles(element_bytes: int) -> None:
    for channels in (1, 3, 64, 100, 2048):
        config = choose_pool2d(channels, element_bytes)
        assert config.block_m * config.block_c * element_bytes == 128 * 32
        assert config.block_c < 2 * max(channels, 1)
        whole = choose_global_avg_pool(channels, 49, element_bytes)
        assert whole.block_m == 64
        assert whole.block_c * element_bytes == 64 or whole.block_c < 2 * channels
