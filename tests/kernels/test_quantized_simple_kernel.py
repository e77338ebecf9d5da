"""Quantised kernels that compute little: int8's integers, bit for bit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastres.errors import InputError, OptionError
from fastres.kernels import quantized, reference
from fastres.kernels.launch.pooling import avg_pool2d, max_pool2d
from fastres.kernels.launch.quantized_simple import (
    dequantize,
    dequantize_calls,
    quantize,
    quantize_calls,
    quantized_add,
    quantized_add_calls,
    quantized_global_avg_pool,
    quantized_global_avg_pool_calls,
)
from tests.kernels.test_pooling_kernel import DILATED, WINDOWS
from tests.kernels.test_quantized_conv2d_kernel import EXACT, defined, random_bytes
from tests.support.kernel_oracle import fenced, guarded_output, layouts

SHAPES = {
    "odd sizes": (2, 37, 3, 5),
    "whole vectors": (1, 64, 4, 8),
    "one number": (1, 1, 1, 1),
    "a matrix": (3, 19),
    "empty batch": (0, 8, 3, 3),
}


@pytest.mark.parametrize("zero_point", [0, 100, 255])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.sampled(3)
def test_quantize_and_back(
    shape: tuple[int, ...], dtype: torch.dtype, zero_point: int, device: str
) -> None:
    x = fenced((torch.randn(shape) * 3).to(dtype).to(device))
    with guarded_output(*shape, dtype=torch.uint8, device=device) as out:
        for call in quantize_calls(x, out, 0.03, zero_point):
            call.run()
    want = defined(quantized.quantize, x, 0.03, zero_point)
    assert torch.equal(out.cpu(), want)
    with guarded_output(*shape, dtype=torch.float32, device=device) as back:
        for call in dequantize_calls(out, back, 0.03, zero_point):
            call.run()
    assert torch.equal(back.cpu(), defined(quantized.dequantize, want, 0.03, zero_point))


def check_special(device: str) -> None:
    """Ties, NaN, infinities, and numbers around what float32 counts by ones."""
    values = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, 3e38, -3e38]
    values += [half / 2 for half in range(-600, 600)]
    values += [sign * 2.0**power for power in range(20, 40) for sign in (1, -1)]
    values += [math.nextafter(half / 2, 0.0) for half in range(-9, 10)]
    x = torch.tensor(values, dtype=torch.float32, device=device)
    for scale in (1.0, 0.5, 0.1, 0.7, 1e-30, 1e30):
        # Ties: a product with the inverse is another number in the last bit.
        ties = (torch.arange(-300, 300, device=device) + 0.5).to(torch.float32) * scale
        for numbers in (x, ties):
            for zero_point in (0, 1, 128, 255):
                got = quantize(numbers, scale, zero_point)
                want = defined(quantized.quantize, numbers, scale, zero_point)
                assert torch.equal(got.cpu(), want)


def test_quantize_of_special_numbers(device: str) -> None:
    check_special(device)


ADDITIONS = {
    "plain": (0.02, 131, 0.05, 5, 0.06, 120),
    "zeros": (0.02, 0, 0.05, 0, 0.06, 0),
    "255": (0.02, 255, 0.05, 255, 0.06, 255),
    "a ratio of a million": (1e-4, 3, 100.0, 9, 0.01, 7),
}


@pytest.mark.parametrize("scales", ADDITIONS.values(), ids=ADDITIONS)
@pytest.mark.parametrize("activation", EXACT)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.sampled(5)
def test_add(shape: tuple[int, ...], activation: str, scales: tuple[Any, ...], device: str) -> None:
    check_add(shape, activation, scales, device)


def check_add(
    shape: tuple[int, ...], activation: str, scales: tuple[Any, ...], device: str
) -> None:
    x, y = (random_bytes(*shape, device=device) for _ in range(2))
    with guarded_output(*shape, dtype=torch.uint8, device=device) as out:
        for call in quantized_add_calls(x, y, out, activation, *scales):
            call.run()
    want = defined(quantized.quantized_add, x, y, activation, *scales)
    assert torch.equal(out.cpu(), want)
    assert torch.equal(quantized_add(x, y, activation, *scales).cpu(), want)
    for call in quantized_add_calls(x, y, x, activation, *scales):  # into a summand
        call.run()
    assert torch.equal(x.cpu(), want)


MEANS = [(2, 37, 3, 5), (1, 64, 7, 7), (3, 1, 1, 1), (2, 5, 13, 17), (0, 4, 3, 3)]


@pytest.mark.parametrize("zero_point", [0, 131, 255])
@pytest.mark.parametrize("shape", MEANS, ids=str)
def test_global_avg_pool(shape: tuple[int, ...], zero_point: int, device: str) -> None:
    check_mean(shape, zero_point, device)


def check_mean(shape: tuple[int, ...], zero_point: int, device: str) -> None:
    x = random_bytes(*shape, device=device)
    for scales in ((0.05, zero_point, 0.011, 40), (1.0, zero_point, 1.0, zero_point)):
        with guarded_output(*shape[:2], dtype=torch.uint8, device=device) as out:
            for call in quantized_global_avg_pool_calls(x, out, *scales):
                call.run()
        want = defined(quantized.quantized_global_avg_pool, x, False, *scales)
        assert torch.equal(out.cpu(), want)


def test_mean_is_divided_last(device: str) -> None:
    """49ths are no numbers of float32, and halves are: in another order ties are none."""
    x = torch.randint(0, 12, (16, 64, 7, 7), dtype=torch.uint8)
    x = fenced(x.to(device))
    scales = (24.5, 0, 1.0, 0)  # half the sum
    got = quantized_global_avg_pool(x, False, *scales)
    assert torch.equal(got.cpu(), defined(quantized.quantized_global_avg_pool, x, False, *scales))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("window", [*WINDOWS.values(), *DILATED.values()], ids=[*WINDOWS, *DILATED])
def test_max_pool2d(window: tuple[Any, ...], device: str) -> None:
    shape, *rest = window
    x = random_bytes(*shape, device=device)
    x[x > 200] = 0  # so that 0 is the largest of some windows
    want = defined(reference.max_pool2d, x, *rest)
    assert torch.equal(max_pool2d(x, *rest).cpu(), want)
    zeros = torch.zeros_like(x)
    assert not max_pool2d(zeros, *rest).any()


def test_other_layouts(device: str) -> None:
    x = random_bytes(2, 20, 3, 5, device=device)
    scales = (0.02, 131, 0.05, 5, 0.06, 120)
    for name, image in layouts(x).items():
        assert torch.equal(quantized_add(image, x, "relu", *scales).cpu(), want_add(x, scales)), (
            name
        )
        mean = quantized_global_avg_pool(image, True, 0.05, 3, 0.01, 9)
        want = defined(quantized.quantized_global_avg_pool, x, True, 0.05, 3, 0.01, 9)
        assert mean.shape == (2, 20, 1, 1)
        assert torch.equal(mean.cpu(), want), name
        numbers = dequantize(image, 0.1, 7)
        assert torch.equal(numbers.cpu(), defined(quantized.dequantize, x, 0.1, 7)), name
        assert torch.equal(quantize(numbers, 0.1, 7), x), name


def want_add(x: Tensor, scales: tuple[Any, ...]) -> Tensor:
    return defined(quantized.quantized_add, x, x, "relu", *scales)


@pytest.mark.campaign
@settings(max_examples=100)
@given(
    x=st.lists(st.floats(width=32), min_size=1, max_size=40),
    scale=st.floats(2.0**-100, 2.0**100, width=32),
    zero_point=st.integers(0, 255),
)
def test_quantize_of_any_numbers(
    x: list[float], scale: float, zero_point: int, device: str
) -> None:
    numbers = torch.tensor(x, dtype=torch.float32, device=device)
    got = quantize(numbers, scale, zero_point)
    assert torch.equal(got.cpu(), defined(quantized.quantize, numbers, scale, zero_point))


def test_what_is_refused(device: str) -> None:
    x = random_bytes(1, 4, 3, 3, device=device)
    wide = x.float().contiguous(memory_format=torch.channels_last)
    flat = x[:, :, 0, 0].contiguous()
    scales = (0.1, 0, 0.1, 0, 0.1, 0)
    with pytest.raises(InputError, match=r"x of torch\.uint8: expected float16"):
        quantize_calls(x, x, 0.1, 0)
    with pytest.raises(InputError, match=r"out is .*uint8"):
        quantize_calls(wide, wide, 0.1, 0)
    with pytest.raises(OptionError, match="zero_point=-1: expected 0 to 255"):
        quantize_calls(wide, x, 0.1, -1)
    with pytest.raises(InputError, match=r"q is .*uint8"):
        dequantize_calls(wide, wide, 0.1, 0)
    with pytest.raises(InputError, match=r"out is .*float32"):
        dequantize_calls(x, x, 0.1, 0)
    with pytest.raises(InputError, match="y is"):
        quantized_add_calls(x, wide, x, "none", *scales)
    with pytest.raises(OptionError, match=r"silu.*exponential"):
        quantized_add_calls(x, x, x, "silu", *scales)
    with pytest.raises(InputError, match=r"x is .*uint8"):
        quantized_global_avg_pool_calls(wide, flat, *scales[:4])
    with pytest.raises(InputError, match="x has 2 axes"):
        quantized_global_avg_pool_calls(flat, flat, *scales[:4])
    with pytest.raises(InputError, match="x has 2 axes"):
        quantized_global_avg_pool(flat, True, *scales[:4])
    with pytest.raises(InputError, match="uint8"):
        avg_pool2d(x, (2, 2), (1, 1), (0, 0), False, True, None)
