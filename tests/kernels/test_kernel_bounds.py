"""No kernel touches what lies outside its tensors, and each writes its output exactly once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fastres.kernels.launch.elementwise import add_relu_calls, scale_shift_calls
from fastres.kernels.launch.layout import convert_calls
from fastres.kernels.launch.pool_linear import pool_linear_calls
from fastres.kernels.launch.pooling import (
    avg_pool2d_calls,
    global_avg_pool_calls,
    max_pool2d_calls,
    pooled_size,
)
from fastres.kernels.spec import BottleneckSpec, ConvSpec
from fastres.kernels.tuning.elementwise import ElementwiseConfig, TransposeConfig
from fastres.kernels.tuning.pooling import PoolConfig, PoolLinearConfig
from tests.kernels import (
    test_bottleneck_kernel,
    test_conv2d_int64,
    test_conv2d_kernel,
    test_pointwise_kernel,
    test_stem_kernel,
)
from tests.support.addresses import accesses, assert_within_bounds, last_program, touched

SMALL = PoolConfig(16, 16)
IMAGES = [(2, 40, 3, 5), (1, 16, 4, 4), (3, 1, 1, 1), (2, 3, 7, 3)]


def meta(*shape: int) -> Tensor:
    """[N, C, H, W] in channels-last memory, other shapes row-major."""
    if len(shape) != 4:
        return torch.empty(shape, dtype=torch.float16, device="meta")
    n, c, h, w = shape
    return torch.empty(n, h, w, c, dtype=torch.float16, device="meta").permute(0, 3, 1, 2)


@pytest.mark.parametrize("shape", IMAGES, ids=str)
def test_elementwise(shape: tuple[int, ...]) -> None:
    x, constants = meta(*shape), torch.empty(shape[1], device="meta")
    config = ElementwiseConfig(64)
    assert_within_bounds(add_relu_calls(x, x, x, config), "out_ptr")
    calls = scale_shift_calls(x, constants, constants, x, "relu", config)
    assert_within_bounds(calls, "out_ptr")


@pytest.mark.parametrize("shape", IMAGES, ids=str)
def test_layouts(shape: tuple[int, ...]) -> None:
    nhwc, nchw = meta(*shape), torch.empty(shape, dtype=torch.float32, device="meta")
    for x, out in ((nhwc, nchw), (nchw, nhwc.float()), (nhwc, nhwc)):
        assert_within_bounds(convert_calls(x, out, TransposeConfig(16, 8)), "out_ptr")


def check_pooling(
    shape: tuple[int, ...], kernel: int, stride: int, padding: int, ceil_mode: bool
) -> None:
    n, c, h, w = shape
    window = ((kernel, kernel), (stride, stride), (padding, padding))
    p, q = (pooled_size(size, kernel, stride, padding, 1, ceil_mode) for size in (h, w))
    x, out = meta(*shape), meta(n, c, p, q)
    calls = max_pool2d_calls(x, out, *window, (1, 1), ceil_mode, SMALL)
    assert_within_bounds(calls, "out_ptr")
    calls = avg_pool2d_calls(x, out, *window, ceil_mode, True, None, SMALL)
    assert_within_bounds(calls, "out_ptr")


@pytest.mark.parametrize("shape", [(2, 20, 5, 7), (1, 16, 4, 4), (2, 1, 3, 3)], ids=str)
@pytest.mark.parametrize("window", [(3, 2, 1, False), (2, 3, 1, True), (1, 1, 0, False)], ids=str)
def test_pooling(shape: tuple[int, ...], window: tuple[int, int, int, bool]) -> None:
    check_pooling(shape, *window)


@pytest.mark.parametrize("shape", IMAGES, ids=str)
def test_global_pooling_and_classifier(shape: tuple[int, ...]) -> None:
    n, c = shape[:2]
    x = meta(*shape)
    assert_within_bounds(global_avg_pool_calls(x, meta(n, c), SMALL), "out_ptr")
    for k in (1, 16, 21):
        bias = torch.empty(k, device="meta")
        config = PoolLinearConfig(8, 16, 8)
        calls = pool_linear_calls(x, meta(k, c), bias, meta(n, k), "none", config)
        assert_within_bounds(calls, "out_ptr")


CONVOLUTIONS = {
    name: spec for name, spec in test_conv2d_kernel.SHAPES.items() if name != "1000 classes"
}


def check_conv2d(spec: ConvSpec, split_k: int) -> None:
    config = replace(test_conv2d_kernel.SMALL, split_k=split_k)
    calls = test_conv2d_int64.calls_on_meta(spec, config, residual=True)
    for call in calls[:-1]:
        assert_within_bounds([call], "out_ptr")
    assert_within_bounds(calls, "out_ptr")


@pytest.mark.sampled(6)
@pytest.mark.parametrize("split_k", [1, 3])
@pytest.mark.parametrize("spec", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_conv2d(spec: ConvSpec, split_k: int) -> None:
    check_conv2d(spec, split_k)


def check_large_weights(groups: int) -> None:
    """The last filters of weights past 2**31 elements: read where they lie."""
    k, c = groups * 2**20, groups * (2112 // groups + 176)
    spec = ConvSpec(1, c, 1, 1, k, 1, 1, groups=groups)
    (call,) = test_conv2d_int64.calls_on_meta(spec, test_conv2d_kernel.SMALL)
    x, weight = call.arguments["x_ptr"], call.arguments["weight_ptr"]
    assert weight.numel() > 2**31 and call.constants["INT64"]
    found = accesses(call, last_program(call))
    rows = np.arange(k - 16, k, dtype=np.int64)[:, None] * weight.shape[-1]
    wanted = (rows + np.arange(weight.shape[-1])).flatten()
    assert np.array_equal(touched(found, "load", "weight_ptr"), wanted)
    assert touched(found, "load", "x_ptr")[-1] == x.numel() - 1


@pytest.mark.parametrize("groups", [1, 4])
def test_large_weights(groups: int) -> None:
    check_large_weights(groups)


@pytest.mark.parametrize("name", ["several tiles, all partial", "whole tiles", "one pixel"])
def test_pointwise(name: str) -> None:
    spec = test_pointwise_kernel.SHAPES[name]
    calls = test_conv2d_int64.calls_on_meta(spec, test_pointwise_kernel.SMALL, residual=True)
    assert calls[0].name == "pointwise_kernel"
    assert_within_bounds(calls, "out_desc")


BLOCKS = {
    **{name: spec for name, spec in test_bottleneck_kernel.BLOCKS.items() if spec.expand_k < 1000},
    # Read 16 at a time up to the last element, where 33 channels are held.
    "shortcut on 72 channels": BottleneckSpec(
        test_bottleneck_kernel.PLAIN, 40, ConvSpec(2, 72, 5, 4, 40, 1, 1)
    ),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", [name for name, spec in BLOCKS.items() if spec.conv.groups == 1])
def test_bottleneck(name: str) -> None:
    spec = BLOCKS[name]
    outputs = ["out_ptr"] + ["next_out_ptr"] * (spec.next_k is not None)
    assert_within_bounds([test_bottleneck_kernel.meta_call(spec)], *outputs)


def check_bottleneck_rows_far_apart() -> None:
    """Three filter rows, of which the last lies 2**31 elements behind the first."""
    conv = ConvSpec(1, 16, 3, 2**26, 16, 3, 1)
    call = test_bottleneck_kernel.meta_call(BottleneckSpec(conv, 16))
    found = accesses(call, last_program(call))
    rows = np.arange(1, 4, dtype=np.int64)[:, None] * 2**30
    wanted = (rows - 16 * 16 + np.arange(16 * 16)).flatten()
    assert np.array_equal(touched(found, "load", "x_ptr"), wanted)


def test_bottleneck_rows_far_apart() -> None:
    check_bottleneck_rows_far_apart()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("uint8", [False, True])
@pytest.mark.parametrize("name", test_stem_kernel.STEMS)
def test_stem(name: str, uint8: bool) -> None:
    call = test_stem_kernel.meta_call(test_stem_kernel.STEMS[name], uint8)
    assert_within_bounds([call], "out_ptr")


def test_the_check_finds_what_it_is_there_for() -> None:
    x, out = meta(2, 16, 4, 4), meta(2, 16, 2, 2)
    (call,) = max_pool2d_calls(x, out, (2, 2), (2, 2), (0, 0), (1, 1), False, SMALL)
    with pytest.raises(AssertionError, match=r"load of x_ptr at \[.*it has 256 elements"):
        assert_within_bounds([replace(call, arguments={**call.arguments, "x_ptr": x[:1]})])
    with pytest.raises(AssertionError, match="out_ptr is not written once"):
        assert_within_bounds([replace(call, arguments={**call.arguments, "M": 7})], "out_ptr")
