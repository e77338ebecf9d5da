"""Pooling and the classifier: as torch, on every window, and nowhere else in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastres.kernels import reference
from fastres.kernels.launch.pooling import (
    avg_pool2d,
    avg_pool2d_calls,
    global_avg_pool,
    global_avg_pool_calls,
    max_pool2d,
    max_pool2d_calls,
)
from fastres.kernels.tuning.pooling import (
    PoolConfig,
)
from tests.support.addresses import accesses, last_program, touched
from tests.support.kernel_oracle import (
    fenced,
    guarded_output,
    judge,
    layouts,
    random_images,
    random_tensor,
)

STORED = ("fp16", "bf16", "fp32")

# shape, kernel, stride, padding, dilation, ceil mode
WINDOWS: dict[str, tuple[Any, ...]] = {
    "3x3, stride 2": ((2, 24, 9, 7), (3, 3), (2, 2), (1, 1), (1, 1), False),
    "whole tiles": ((1, 16, 8, 8), (2, 2), (2, 2), (0, 0), (1, 1), False),
    "ceil mode": ((2, 3, 7, 6), (3, 3), (2, 2), (0, 0), (1, 1), True),
    "ceil mode, padded": ((1, 2, 6, 7), (2, 3), (3, 2), (1, 1), (1, 1), True),
    "last window in the padding": ((1, 1, 5, 5), (2, 2), (2, 2), (1, 1), (1, 1), True),
    "beyond the padding": ((1, 3, 6, 5), (4, 4), (3, 3), (1, 1), (1, 1), True),
    "oblong": ((2, 17, 6, 9), (1, 4), (1, 3), (0, 2), (1, 1), False),
    "one pixel": ((2, 5, 1, 1), (1, 1), (1, 1), (0, 0), (1, 1), False),
    "one pixel, padded": ((1, 3, 1, 1), (3, 3), (1, 1), (1, 1), (1, 1), False),
    "stride beyond the window": ((1, 2, 7, 7), (1, 2), (3, 4), (0, 0), (1, 1), False),
    "large window": ((1, 3, 9, 8), (7, 6), (1, 2), (3, 2), (1, 1), False),
    "empty batch": ((0, 3, 7, 6), (3, 3), (2, 2), (1, 1), (1, 1), False),
    "empty stride": ((1, 3, 7, 6), (3, 2), (), (1, 1), (1, 1), False),
}
DILATED: dict[str, tuple[Any, ...]] = {
    "dilated": ((1, 2, 8, 9), (2, 3), (1, 2), (1, 1), (2, 3), False),
    "dilated, ceil mode": ((2, 5, 9, 8), (3, 2), (2, 2), (1, 0), (1, 3), True),
    "dilated into the padding": ((1, 3, 3, 4), (2, 2), (1, 1), (1, 1), (3, 4), False),
}
SMALL = PoolConfig(16, 16)


def check_pool(
    calls: Callable[..., Any],
    oracle: Callable[..., Tensor],
    x: Tensor,
    arguments: tuple[Any, ...],
    precision: str,
) -> None:
    shape = oracle(x.cpu(), *arguments).shape
    with guarded_output(*shape, precision=precision, device=x.device.type) as out:
        for call in calls(x, out, *arguments, config=SMALL):
            call.run()
    judge(out, oracle, (x, *arguments), precision)


def check_max_pool2d(window: tuple[Any, ...], precision: str, device: str) -> None:
    shape, *arguments = window
    x = random_images(*shape, precision=precision, device=device)
    check_pool(max_pool2d_calls, reference.max_pool2d, x, tuple(arguments), precision)


def check_avg_pool2d(
    window: tuple[Any, ...], include_pad: bool, divisor: int | None, precision: str, device: str
) -> None:
    shape, kernel, stride, padding, _, ceil_mode = window
    x = random_images(*shape, precision=precision, device=device)
    arguments = (kernel, stride, padding, ceil_mode, include_pad, divisor)
    check_pool(avg_pool2d_calls, reference.avg_pool2d, x, arguments, precision)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("precision", STORED)
@pytest.mark.parametrize("name", [*WINDOWS, *DILATED])
def test_max_pool2d(name: str, precision: str, device: str) -> None:
    check_max_pool2d({**WINDOWS, **DILATED}[name], precision, device)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("precision", STORED)
@pytest.mark.parametrize("name", WINDOWS)
def test_avg_pool2d(name: str, precision: str, device: str) -> None:
    check_avg_pool2d(WINDOWS[name], True, None, precision, device)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("include_pad", "divisor"), [(False, None), (True, 5), (False, -3)])
@pytest.mark.parametrize("name", WINDOWS)
def test_divisors(name: str, include_pad: bool, divisor: int | None, device: str) -> None:
    check_avg_pool2d(WINDOWS[name], include_pad, divisor, "fp32", device)


def check_special_numbers(value: float, precision: str, device: str) -> None:
    """In a corner, in the middle, in a window of nothing else, and beside a larger number."""
    x = random_tensor(2, 3, 7, 6, precision=precision)
    x[0, 1, 0, 0] = value
    x[1, 2, 3, 3] = value
    x[1, 0, :4, :4] = value
    x[1, 1, 2, 2:4] = torch.tensor([value, math.inf])
    x = fenced(x.to(device))
    window = ((3, 3), (2, 2), (1, 1))
    check_pool(max_pool2d_calls, reference.max_pool2d, x, (*window, (1, 1), False), precision)
    check_pool(avg_pool2d_calls, reference.avg_pool2d, x, (*window, False, False, None), precision)


@pytest.mark.parametrize("precision", STORED)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_special_numbers(value: float, precision: str, device: str) -> None:
    check_special_numbers(value, precision, device)


def test_negative_images_are_not_padded_with_zero(device: str) -> None:
    x = fenced(-1.0 - random_tensor(1, 5, 4, 4, precision="fp16").abs().to(device))
    arguments = ((3, 3), (2, 2), (1, 1), (1, 1), True)
    check_pool(max_pool2d_calls, reference.max_pool2d, x, arguments, "fp16")


@pytest.mark.campaign
@settings(max_examples=50)
@given(
    axes=st.tuples(*[st.tuples(*[st.integers(1, most) for most in (9, 4, 4, 2)])] * 2),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    channels=st.integers(1, 20),
    ceil_mode=st.booleans(),
    include_pad=st.booleans(),
)
def test_any_window(
    axes: tuple[tuple[int, ...], ...],
    shares: tuple[float, float],
    channels: int,
    ceil_mode: bool,
    include_pad: bool,
    device: str,
) -> None:
    sizes, kernel, stride, dilation = zip(*axes, strict=True)
    padding = tuple(int(share * size / 2) for share, size in zip(shares, kernel, strict=True))
    x = random_images(1, channels, *sizes, precision="fp32", device=device)

    def fits(dilated: tuple[int, ...]) -> bool:
        every = zip(sizes, kernel, padding, dilated, strict=True)
        return all(d * (k - 1) < size + 2 * pad for size, k, pad, d in every)

    window = (kernel, stride, padding)
    if fits(dilation):
        arguments: tuple[Any, ...] = (*window, dilation, ceil_mode)
        check_pool(max_pool2d_calls, reference.max_pool2d, x, arguments, "fp32")
    if fits((1, 1)):
        arguments = (*window, ceil_mode, include_pad, None)
        check_pool(avg_pool2d_calls, reference.avg_pool2d, x, arguments, "fp32")


IMAGES = {
    "7x7": (3, 40, 7, 7),
    "more pixels than a step": (2, 5, 9, 11),
    "whole tiles": (1, 32, 4, 4),
    "one pixel": (3, 33, 1, 1),
    "one channel": (2, 1, 3, 5),
    "one of everything": (1, 1, 1, 1),
    "empty batch": (0, 3, 4, 4),
}


def check_global_avg_pool(shape: tuple[int, ...], precision: str, device: str) -> None:
    x = random_images(*shape, precision=precision, device=device)
    for keepdim in (True, False):
        size = (*shape[:2], 1, 1) if keepdim else shape[:2]
        with guarded_output(*size, precision=precision, device=device) as out:
            for call in global_avg_pool_calls(x, out, SMALL):
                call.run()
        judge(out, reference.global_avg_pool, (x, keepdim), precision)


@pytest.mark.parametrize("precision", STORED)
@pytest.mark.parametrize("name", IMAGES)
def test_global_avg_pool(name: str, precision: str, device: str) -> None:
    check_global_avg_pool(IMAGES[name], precision, device)


def test_sums_are_kept_in_float32(device: str) -> None:
    # In float16 the sum would be infinite.
    x = torch.full((1, 3, 16, 16), 1000.0, dtype=torch.float16, device=device)
    assert global_avg_pool(x, False).tolist() == [[1000.0] * 3]
    got = avg_pool2d(x, (16, 16), (16, 16), (0, 0), False, True, None)
    assert got.flatten().tolist() == [1000.0] * 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_special_numbers_in_global_means(value: float, device: str) -> None:
    x = random_tensor(2, 20, 3, 3, precision="fp16")
    x[0, 3, 1, 1] = value
    x[1, 19, 2, 2] = value
    x = fenced(x.to(device))
    judge(global_avg_pool(x, True), reference.global_avg_pool, (x, True), "fp16")


def test_any_memory_format_at_the_public_functions(device: str) -> None:
    x = random_images(2, 3, 6, 5, precision="fp32", device=device)
    window = ((3, 2), (2, 2), (1, 1))
    for given_ in layouts(x).values():
        arguments: tuple[Any, ...] = (*window, (1, 1), True)
        judge(max_pool2d(given_, *arguments), reference.max_pool2d, (x, *arguments), "fp32")
        arguments = (*window, True, False, None)
        judge(avg_pool2d(given_, *arguments), reference.avg_pool2d, (x, *arguments), "fp32")
        for keep in (True, False):
            judge(global_avg_pool(given_, keep), reference.global_avg_pool, (x, keep), "fp32")


LARGE = (2**15, 33, 2**6, 2**5)  # 2.2e9 elements


def check_large_images() -> None:
    """The last tiles of images that are not there."""
    n, c, h, w = LARGE
    x = torch.empty(n, h, w, c, dtype=torch.float16, device="meta").permute(0, 3, 1, 2)
    out = torch.empty(n, h, w, c, dtype=torch.float16, device="meta").permute(0, 3, 1, 2)
    block = SMALL.block_m
    row = n * h * w - block
    written = ((row + np.arange(block, dtype=np.int64))[:, None] * c + np.arange(32, c)).flatten()
    for (call,) in (
        max_pool2d_calls(x, out, (1, 1), (1, 1), (0, 0), (1, 1), False, SMALL),
        avg_pool2d_calls(x, out, (1, 1), (1, 1), (0, 0), False, True, None, SMALL),
    ):
        found = accesses(call, last_program(call))
        assert np.array_equal(touched(found, "store", "out_ptr"), written)
        assert np.array_equal(touched(found, "load", "x_ptr"), written)
    means = torch.empty(n, c, dtype=torch.float16, device="meta")
    (call,) = global_avg_pool_calls(x, means, PoolConfig(2048, 16))
    found = accesses(call, last_program(call))
    pixels = np.arange((n - 1) * h * w, n * h * w, dtype=np.int64)
    read = (pixels[:, None] * c + np.arange(32, c)).flatten()
    assert np.array_equal(touched(found, "load", "x_ptr"), read)
    assert np.array_equal(touched(found, "store", "out_ptr"), [n * c - 1])


def test_offsets_past_32_bits() -> None:
    check_large_images()


@pytest.mark.parametrize("pixels", [2**31 - 2**14, 2**31 - 5])
def test_counts_past_32_bits(pixels: int) -> None:
    """Masked lanes that count beyond 2**31 would come back as negative pixels, which exist."""
    x = torch.empty(1, 1, 1, pixels, dtype=torch.float16, device="meta")
    (call,) = max_pool2d_calls(x, x, (1, 1), (1, 1), (0, 0), (1, 1), False, SMALL)
    found = accesses(call, last_program(call))
    wanted = np.arange((pixels - 1) // 16 * 16, pixels)
    assert np.array_equal(touched(found, "store", "out_ptr"), wanted)
    assert call.constants["INT64"] == (pixels == 2**31 - 5)
