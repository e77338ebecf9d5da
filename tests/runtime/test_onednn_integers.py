"""int8 in oneDNN's kernels: the definition's integers bit for bit, by bytes and by float32."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, fx

import fastres
from fastres.ir import ops
from fastres.ir.graph import add_constant
from fastres.kernels.reference import conv2d
from fastres.runtime.eager import EagerEngine
from fastres.runtime.onednn import integers
from fastres.runtime.onednn.engine import OneDnnEngine
from fastres.system.target import cpu, onednn_multiplies_bytes
from tests.quantization.test_int8 import small
from tests.support.small import images


@pytest.fixture(params=["bytes", "float32"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By which kernels; the former only where the processor has exact ones."""
    if request.param == "bytes" and not onednn_multiplies_bytes():
        pytest.skip("this processor has no exact products of bytes")
    monkeypatch.setattr(integers, "onednn_multiplies_bytes", lambda: request.param == "bytes")
    return str(request.param)


@dataclass(frozen=True)
class Case:
    """A convolution of uint8.

    Attributes:
        x: N, C, H, W.
        filters: K, R, S.
        zero_point: of the input.
        magnitude: of the weights, at most; with ``extreme`` all of them, and all pixels 255 or 0.
        bias: magnitude, at most.
        out: the result's zero point; its scale is such that the results fill the bytes.
    """

    x: tuple[int, int, int, int]
    filters: tuple[int, int, int]
    zero_point: int = 3
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    magnitude: int = 127
    bias: int = 5000
    extreme: bool = False
    residual: bool = False
    activations: tuple[str, str] = ("none", "none")
    out: int = 7
    contiguous: bool = False


CASES = {
    "1x1": Case((2, 16, 5, 7), (8, 1, 1)),
    "one of everything": Case((1, 1, 1, 1), (1, 1, 1)),
    "odd": Case((3, 5, 9, 4), (7, 3, 3), 255, padding=(1, 1, 1, 1), residual=True),
    "stride": Case((2, 12, 9, 8), (20, 3, 3), 0, (2, 2), (1,) * 4, activations=("relu", "none")),
    "sides": Case((1, 8, 6, 5), (4, 3, 2), 77, padding=(0, 1, 2, 0), magnitude=2, bias=50,
                  activations=("none", "relu6")),
    "dilation": Case((1, 8, 9, 9), (4, 3, 3), 1, padding=(2, 2, 2, 2), dilation=(2, 2)),
    "groups": Case((2, 32, 5, 5), (48, 3, 3), 9, padding=(1, 1, 1, 1), groups=8, residual=True),
    "stem": Case((1, 3, 15, 15), (16, 7, 7), 114, (2, 2), (3,) * 4, activations=("none", "relu")),
    "NCHW": Case((2, 8, 5, 6), (8, 3, 3), contiguous=True, activations=("hardswish", "none")),
    "parts": Case((1, 600, 3, 3), (8, 3, 3), 0, padding=(1, 1, 1, 1), out=0),
    "parts of groups": Case((1, 1200, 3, 2), (6, 3, 2), 5, groups=2, out=9),
    "largest": Case((1, 512, 3, 3), (4, 3, 3), 0, extreme=True, out=0, bias=2**29),
    "least": Case((1, 512, 3, 3), (4, 3, 3), 255, extreme=True, out=255, bias=2**29),
    "large bias": Case((1, 8, 3, 3), (8, 3, 3), 4, bias=2**29, out=128),
}  # fmt: skip


def graph_of(case: Case) -> tuple[fx.GraphModule, list[Tensor]]:
    """A graph of this one operator, and its inputs."""
    n, c, h, w = case.x
    k, r, s = case.filters
    x = torch.randint(0, 256, (n, c, h, w), dtype=torch.uint8)
    shape = (k, c // case.groups, r, s)
    weight = torch.randint(-case.magnitude, case.magnitude + 1, shape, dtype=torch.int8)
    bias = torch.randint(-case.bias, case.bias + 1, (k,), dtype=torch.int32)
    if case.extreme:
        x.fill_(0 if case.zero_point == 255 else 255)
        weight.fill_(127)
        bias.fill_(case.bias - 1).mul_(-1 if case.zero_point == 255 else 1)
    if not case.contiguous:
        x = x.contiguous(memory_format=torch.channels_last)
    geometry = (list(case.stride), list(case.padding), list(case.dilation), case.groups)
    scales = torch.rand(k) * 0.01 + 0.001
    centred = x.double() - case.zero_point
    sums = conv2d(centred, weight.double(), bias.double(), None, *geometry, "none", "none")
    largest = float((sums * 0.7 * scales.double().view(-1, 1, 1)).abs().max())
    if "relu6" in case.activations:
        largest = 6.0
    inputs = [x]
    if case.residual:
        inputs.append(torch.randint(0, 256, sums.shape, dtype=torch.uint8))
    module = fx.GraphModule(torch.nn.Module(), graph := fx.Graph())
    graph.owning_module = module
    nodes = [graph.placeholder(f"x{number}") for number in range(len(inputs))]
    held = [
        add_constant(graph, name, value)
        for name, value in (("weight", weight), ("scale", scales), ("bias", bias))
    ]
    args = (
        nodes[0], *held, nodes[1] if case.residual else None, *geometry, *case.activations,
        0.7, case.zero_point, 0.3, 11, max(largest / 200, 0.01), case.out,
    )  # fmt: skip
    graph.output((graph.call_function(ops.quantized_conv2d, args),))
    module.recompile()
    return module, inputs


def both(module: fx.GraphModule, inputs: Sequence[Any]) -> tuple[Tensor, Tensor]:
    (ours,) = OneDnnEngine().build(module, inputs)(inputs)
    (expected,) = EagerEngine().build(module, inputs)(inputs)
    return ours, expected


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", CASES)
def test_a_convolution_gives_the_definitions_integers(name: str, kind: str) -> None:
    module, inputs = graph_of(CASES[name])
    before = [value.clone() for value in inputs]
    ours, expected = both(module, inputs)
    assert ours.dtype == torch.uint8
    assert torch.equal(ours, expected)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
    if name not in ("one of everything", "largest", "least"):
        assert len(expected.unique()) > 4, "not all cut off"
    calls = OneDnnEngine().build(module, inputs).code
    assert (calls.count("of_bytes"), calls.count("of_floats"))[kind == "float32"] >= 1
    assert ("added_up" in calls) == (name in ("parts", "parts of groups", "largest", "least"))
    assert calls.count("_rest = self.") == (name == "large bias")


@pytest.mark.sampled(32)
@pytest.mark.parametrize("seed", range(64))
def test_random_convolutions(seed: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    r, s, groups = draw(1, 3), draw(1, 3), draw(1, 3)
    case = Case(
        (draw(1, 3), groups * draw(1, 40), draw(r, 9), draw(s, 9)),
        (groups * draw(1, 20), r, s),
        draw(0, 255),
        (draw(1, 2), draw(1, 2)),
        (draw(0, 2), draw(0, 2), draw(0, 2), draw(0, 2)),
        groups=groups,
        bias=10 ** draw(0, 8),
        residual=draw(0, 1) == 1,
        activations=(("none", "relu")[draw(0, 1)], ("none", "relu", "hardswish")[draw(0, 2)]),
        out=draw(0, 255),
        contiguous=draw(0, 1) == 1,
    )
    ours, expected = both(*graph_of(case))
    assert torch.equal(ours, expected)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("scale", [None, 300.0])
@pytest.mark.parametrize("channels", [5, 2000])
def test_a_classifier_gives_the_definitions_numbers(
    scale: float | None, channels: int, kind: str
) -> None:
    module = fx.GraphModule(torch.nn.Module(), graph := fx.Graph())
    graph.owning_module = module
    x = graph.placeholder("x")
    weight = torch.randint(-127, 128, (9, channels), dtype=torch.int8)
    bias = torch.randint(-9000, 9000, (9,), dtype=torch.int32)
    named = (("weight", weight), ("scale", torch.rand(9)), ("bias", bias))
    held = [add_constant(graph, name, value) for name, value in named]
    args = (x, *held, "relu", 0.7, 20, scale, 4)
    graph.output((graph.call_function(ops.quantized_linear, args),))
    module.recompile()
    inputs = [torch.randint(0, 256, (6, channels), dtype=torch.uint8)]
    ours, expected = both(module, inputs)
    assert ours.dtype == expected.dtype == (torch.float32 if scale is None else torch.uint8)
    assert torch.equal(ours, expected)


def test_parts_stay_below_what_float32_counts() -> None:
    weight = torch.randint(-127, 128, (5, 900, 3, 3), dtype=torch.int8)
    weight[2] = 127
    parts = integers.channel_parts(weight, 255)
    assert parts is not None
    assert [first for first, _ in parts] == [0, *(behind for _, behind in parts[:-1])]
    assert parts[-1][1] == 900
    for first, behind in parts:
        reach = weight[:, first:behind].abs().sum(dim=(1, 2, 3), dtype=torch.int64) * 255
        assert int(reach.max()) < integers.EXACT
        if behind < 900:
            more = weight[:, first : behind + 1].abs().sum(dim=(1, 2, 3), dtype=torch.int64)
            assert int(more.max()) * 255 >= integers.EXACT
    assert integers.channel_parts(weight[:, :1], 255) == [(0, 1)]


def test_a_channel_that_is_too_much_alone_is_left_to_torch(kind: str) -> None:
    case = Case((1, 1, 25, 25), (4, 23, 23), 0, extreme=True, out=0)
    module, inputs = graph_of(case)
    executable = OneDnnEngine().build(module, inputs)
    assert torch.equal(executable(inputs)[0], EagerEngine().build(module, inputs)(inputs)[0])
    (remark,) = executable.remarks
    assert (remark.what, remark.reason) == (
        "int8 product",
        "sums of one channel alone are not exact in float32",
    )


@pytest.mark.sampled(2)
def test_a_network(kind: str) -> None:
    model, x = small(), images(5)
    fast = fastres.optimize(model, x[:1], precision="int8", calibration=[x], engine="onednn")
    assert torch.equal(fast(x), fast.by_definition(x))
    assert fast(x[:0]).shape == (0, 5)
    assert "float64" not in fast.program(x)
    assert fast.program(x).count("of_bytes" if kind == "bytes" else "of_floats") == 4


@pytest.mark.campaign
@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_kernels_that_overflow_are_found_out(isa: str) -> None:
    """oneDNN without VNNI, as on older processors."""
    if "avx2" not in cpu().isa:
        pytest.skip("no such processor")
    code = (
        "from fastres.system.target import onednn_multiplies_bytes; "
        "print(onednn_multiplies_bytes())"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
