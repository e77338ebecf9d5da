"""The classifier on mean channels, one kernel: as torch's two operators."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastres.errors import InputError, OptionError
from fastres.kernels import reference
from fastres.kernels.activations import ACTIVATIONS
from fastres.kernels.launch.pool_linear import pool_linear, pool_linear_calls
from fastres.kernels.spec import PoolLinearSpec
from fastres.kernels.tuning.gpus import by_name
from fastres.kernels.tuning.pooling import (
    PoolLinearConfig,
    choose_pool_linear,
    pool_linear_candidates,
)
from tests.support.addresses import accesses, last_program, touched
from tests.support.kernel_oracle import (
    fenced,
    guarded_output,
    judge,
    layouts,
    random_images,
    random_tensor,
    random_vector,
)

STORED = ("fp16", "bf16", "fp32")
SMALL = PoolLinearConfig(16, 16, 16)

# images, classes, bias
CASES = {
    "partial tiles": ((3, 40, 5, 7), 21, True),
    "whole tiles": ((2, 32, 4, 4), 32, True),
    "no bias": ((2, 24, 3, 3), 10, False),
    "one pixel": ((2, 33, 1, 1), 5, True),
    "one channel": ((2, 1, 3, 5), 3, True),
    "one class": ((2, 20, 3, 3), 1, True),
    "one of everything": ((1, 1, 1, 1), 1, False),
    "empty batch": ((0, 3, 4, 4), 7, True),
}


def check_pool_linear(
    case: tuple[tuple[int, ...], int, bool],
    precision: str,
    device: str,
    activation: str = "none",
    config: PoolLinearConfig = SMALL,
) -> None:
    shape, classes, has_bias = case
    x = random_images(*shape, precision=precision, device=device)
    weight = fenced(random_tensor(classes, shape[1], precision=precision, device=device))
    bias = random_vector(classes, device) if has_bias else None
    with guarded_output(shape[0], classes, precision=precision, device=device) as out:
        for call in pool_linear_calls(x, weight, bias, out, activation, config):
            call.run()
    judge(out, reference.pool_linear, (x, weight, bias, activation), precision)


@pytest.mark.parametrize("precision", STORED)
@pytest.mark.parametrize("name", CASES)
def test_pool_linear(name: str, precision: str, device: str) -> None:
    check_pool_linear(CASES[name], precision, device)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str, device: str) -> None:
    check_pool_linear(CASES["partial tiles"], "fp32", device, activation)


def test_1000_classes(device: str) -> None:
    config = choose_pool_linear(PoolLinearSpec(1, 96, 7, 7, 1000), by_name("a100"))
    check_pool_linear(((1, 96, 7, 7), 1000, True), "fp16", device, config=config)


def test_means_are_rounded_before_the_product(device: str) -> None:
    # The mean of 1 and 1 + 2**-7 lies between two numbers of bfloat16; torch stores the even one.
    x = torch.tensor([1.0, 1.0 + 2**-7]).view(1, 1, 1, 2).to(torch.bfloat16).to(device)
    weight = torch.tensor([[1.0], [-256.0]], dtype=torch.bfloat16, device=device)
    bias = torch.tensor([-1.0, 256.0], device=device)
    got = pool_linear(fenced(x), weight, bias, "none")
    assert got.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_special_numbers(value: float, device: str) -> None:
    x = random_tensor(3, 20, 3, 3, precision="fp16")
    x[0, 19, 2, 2] = value
    weight, bias = random_tensor(7, 20, precision="fp16"), random_vector(7)
    weight[3, 5], bias[6] = value, value
    weight[1, 19] = 0.0  # infinity times zero
    x, weight = fenced(x.to(device)), fenced(weight.to(device))
    arguments = (x, weight, bias.to(device), "relu")
    judge(pool_linear(*arguments), reference.pool_linear, arguments, "fp16")


def test_any_memory_format_at_the_public_function(device: str) -> None:
    x = random_images(2, 6, 3, 5, precision="fp32", device=device)
    weight = random_tensor(6, 9, precision="fp32", device=device).t()
    bias = random_vector(18, device)[::2].to(torch.bfloat16)
    for given in layouts(x).values():
        got = pool_linear(given, weight, bias, "relu")
        judge(got, reference.pool_linear, (x, weight, bias, "relu"), "fp32")


def check_large_images() -> None:
    n, c, h, w, k = 2**14, 65, 2**6, 2**5, 1000
    x = torch.empty(n, h, w, c, dtype=torch.float16, device="meta").permute(0, 3, 1, 2)
    weight = torch.empty(k, c, dtype=torch.float16, device="meta")
    out = torch.empty(n, k, dtype=torch.float16, device="meta")
    (call,) = pool_linear_calls(x, weight, None, out, "none", PoolLinearConfig(16, 32, 1024))
    found = accesses(call, last_program(call))
    read = np.arange((n - 1) * h * w * c, n * h * w * c, dtype=np.int64)
    assert np.array_equal(touched(found, "load", "x_ptr"), read)
    assert np.array_equal(touched(found, "load", "weight_ptr"), np.arange(992 * c, k * c))
    assert np.array_equal(touched(found, "store", "out_ptr"), np.arange(n * k - 8, n * k))


def test_offsets_past_32_bits() -> None:
    check_large_images()


@pytest.mark.parametrize("gpu", ["t4", "a100", "h100"])
def test_choices_fill_the_gpu(gpu: str) -> None:
    product = by_name(gpu)
    for n in (1, 2, 8):
        spec = PoolLinearSpec(n, 2048, 7, 7, 1000)
        config = choose_pool_linear(spec, product)
        assert config in set(pool_linear_candidates(spec, product))
        wider = n * math.ceil(1000 / (2 * config.block_n))
        assert config.block_n == 32 or wider < product.multiprocessors


def test_refusals() -> None:
    x, weight = random_images(2, 3, 4, 5, precision="fp32"), random_tensor(7, 3, precision="fp32")
    out = torch.empty(2, 7)
    with pytest.raises(InputError, match=r"weight is \[7, 3\].*float16.*: expected .*float32"):
        pool_linear(x, weight.half(), None, "none")
    with pytest.raises(InputError, match=r"weight is \[7, 2\].*expected \[7, 3\]"):
        pool_linear(x, weight[:, :2], None, "none")
    with pytest.raises(InputError, match=r"bias is \[5\].*expected \[7\] of torch.float32"):
        pool_linear(x, weight, torch.ones(5), "none")
    with pytest.raises(InputError, match="weight has 1 axes"):
        pool_linear(x, weight[0], None, "none")
    with pytest.raises(OptionError, match="activation 'gelu'"):
        pool_linear(x, weight, None, "gelu")
    with pytest.raises(InputError, match=r"x is \[2, 3, 0, 5\].*expected \[2, 3, 1, 5\]"):
        pool_linear(x[:, :, :0], weight, None, "none")
    with pytest.raises(InputError, match=r"out is \[2, 6\].*expected \[2, 7\]"):
        pool_linear_calls(x, weight, None, out[:, :6], "none", SMALL)
    with pytest.raises(OptionError, match="block_p=0: expected a power of two"):
        PoolLinearConfig(16, 16, 0)
