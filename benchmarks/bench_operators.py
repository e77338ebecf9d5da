"""Every distinct convolution of the reference models, as torch runs it and as fastres does.

``pytest benchmarks/bench_operators.py -k resnet50`` for one model's; ``--benchmark-json PATH`` for
a record. Each is convolution, bias and ReLU, on 224x224 images' feature maps at batch 1, and is
compared with float64 before it is timed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

import fastres
from benchmarks import shapes
from benchmarks.shapes import ConvShape
from fastres.system import target

_ERRORS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def problems() -> list[object]:
    """Each distinct shape once, under the names of the models that have it."""
    by_model = {name: shapes.of_model(name) for name in shapes.MODELS}
    return [
        pytest.param(shape, id=f"{shape}-{'-'.join(n for n in by_model if shape in by_model[n])}")
        for shape in shapes.distinct()
    ]


def layer(shape: ConvShape) -> nn.Sequential:
    """The convolution with bias and ReLU, weights of He's scale."""
    convolution = nn.Conv2d(
        shape.channels,
        shape.filters,
        shape.kernel,
        stride=shape.stride,
        padding=shape.padding,
        groups=shape.groups,
    )
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    return nn.Sequential(convolution, nn.ReLU()).eval()


def eager(model: nn.Sequential, images: Tensor) -> Callable[[], Tensor]:
    """torch as it comes."""
    return lambda: model(images)


def channels_last(model: nn.Sequential, images: Tensor) -> Callable[[], Tensor]:
    """torch in channels-last order, the input already so."""
    model = model.to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    return lambda: model(images)


def optimised(model: nn.Sequential, images: Tensor) -> Callable[[], Tensor]:
    """fastres's executable, the input already in its order."""
    fast = fastres.optimize(model, images)
    images = images.contiguous(memory_format=torch.channels_last)
    executable = fast.internals.runner.executable([images])
    return lambda: executable([images])[0]


WAYS = {"eager": eager, "channels_last": channels_last, "fastres": optimised}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", problems())
def test_convolution(
    benchmark: BenchmarkFixture, shape: ConvShape, way: str, dtype: torch.dtype
) -> None:
    if not target.onednn_supports(dtype):
        pytest.skip(f"oneDNN has no {dtype} on this processor")
    benchmark.group = f"{shape} {dtype}"
    benchmark.extra_info["multiply_adds"] = shape.multiply_adds
    torch.manual_seed(0)
    model = layer(shape).to(dtype)
    images = torch.randn((1, shape.channels, shape.height, shape.width), dtype=dtype, device="cpu")
    call = WAYS[way](model, images)
    with torch.inference_mode():
        exact = copy.deepcopy(model).double()(images.double())
        error = (call().double() - exact).norm() / exact.norm()
        assert error < _ERRORS[dtype]
        benchmark(call)
