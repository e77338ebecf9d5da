"""The convolution kernels' answers, on shapes that tiles do not fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastres.errors import InputError
from fastres.kernels import reference
from fastres.kernels.activations import ACTIVATIONS
from fastres.kernels.launch.conv2d import conv2d, conv2d_calls, workspace_bytes
from fastres.kernels.packing import pack_conv2d
from fastres.kernels.spec import ConvSpec
from fastres.kernels.tuning.conv2d import Conv2dConfig, counters, used_splits
from tests.support.kernel_oracle import (
    channels_last_strides,
    fenced,
    guarded_output,
    judge,
    layouts,
    random_images,
    random_tensor,
    random_vector,
)

PRECISIONS = ("fp16", "bf16", "tf32", "fp32")
SMALL = Conv2dConfig(16, 16, 16)
"""Tiles so small that a few pixels and channels make several in each direction."""


def arguments(spec: ConvSpec, precision: str, device: str, residual: bool = True) -> list[Any]:
    """Random tensors: x, weight, bias, residual."""
    area = spec.r * spec.s * spec.c // spec.groups
    weight = random_tensor(
        *(spec.k, spec.c // spec.groups, spec.r, spec.s),
        precision=precision,
        device=device,
        scale=area**-0.5,
    )
    return [
        random_images(spec.n, spec.c, spec.h, spec.w, precision=precision, device=device),
        weight,
        random_vector(spec.k, device),
        random_images(spec.n, spec.k, spec.p, spec.q, precision=precision, device=device)
        if residual
        else None,
    ]


def attributes(spec: ConvSpec, pre_activation: str, activation: str) -> list[Any]:
    """What follows the tensors in the operator's arguments."""
    shape = [spec.stride, spec.padding, spec.dilation, spec.groups]
    return [*shape, pre_activation, activation]


def check(
    spec: ConvSpec,
    precision: str,
    device: str,
    config: Conv2dConfig | None = SMALL,
    pre_activation: str = "none",
    activation: str = "none",
    residual: bool = True,
) -> Tensor:
    """Run the kernel on random tensors and judge its answer."""
    tensors = arguments(spec, precision, device, residual)
    rest = attributes(spec, pre_activation, activation)
    got = conv2d(*tensors, *rest, config=config, precision=precision)
    assert got.stride() == channels_last_strides(got.shape)
    judge(got, reference.conv2d, (*tensors, *rest), precision)
    return got


SHAPES = {
    "several tiles, all partial": ConvSpec(2, 40, 5, 7, 20, 3, 3, padding=(1, 1, 1, 1)),
    "whole tiles": ConvSpec(2, 32, 4, 4, 32, 3, 3, padding=(1, 1, 1, 1)),
    "one pixel": ConvSpec(1, 16, 1, 1, 5, 1, 1),
    "one pixel under 3x3": ConvSpec(1, 16, 1, 1, 16, 3, 3, padding=(1, 1, 1, 1)),
    "one channel": ConvSpec(2, 1, 6, 5, 3, 3, 3, padding=(1, 1, 1, 1)),
    "one filter": ConvSpec(2, 8, 3, 5, 1, 3, 3, padding=(1, 1, 1, 1)),
    "three channels, 7x7, stride 2": ConvSpec(1, 3, 11, 9, 8, 7, 7, (2, 2), (3, 3, 3, 3)),
    "pointwise": ConvSpec(3, 24, 3, 5, 17, 1, 1),
    "pointwise, stride 2": ConvSpec(2, 32, 5, 7, 24, 1, 1, (2, 2)),
    "stride larger than filter": ConvSpec(2, 16, 9, 8, 8, 2, 1, (4, 3)),
    "padding of four sizes": ConvSpec(1, 16, 4, 5, 8, 3, 3, padding=(0, 2, 3, 1)),
    "padding below and right only": ConvSpec(2, 16, 4, 6, 8, 3, 3, (2, 2), (0, 0, 1, 1)),
    "padding wider than the filter": ConvSpec(1, 16, 2, 2, 8, 2, 2, padding=(3, 4, 2, 3)),
    "dilation": ConvSpec(1, 16, 7, 8, 8, 3, 2, padding=(2, 1, 2, 3), dilation=(2, 3)),
    "dilation and stride": ConvSpec(2, 16, 7, 8, 8, 3, 3, (2, 1), (2, 3, 2, 3), (2, 3)),
    "even filter": ConvSpec(1, 16, 5, 4, 8, 4, 2, padding=(1, 0, 2, 1)),
    "flat filter longer than bit masks": ConvSpec(1, 2, 3, 20, 3, 1, 17, padding=(0, 8, 0, 8)),
    "tall filter longer than bit masks": ConvSpec(1, 2, 18, 2, 3, 16, 1, padding=(7, 0, 8, 0)),
    "filter as long as bit masks": ConvSpec(1, 2, 5, 16, 3, 2, 15, padding=(1, 7, 0, 7)),
    "ResNeXt 32x4d": ConvSpec(1, 128, 3, 3, 128, 3, 3, (2, 2), (1, 1, 1, 1), groups=32),
    "depthwise": ConvSpec(1, 40, 4, 3, 40, 3, 3, padding=(1, 1, 1, 1), groups=40),
    "odd groups": ConvSpec(2, 15, 4, 3, 25, 3, 3, padding=(1, 1, 1, 1), groups=5),
    "groups wider than a tile": ConvSpec(1, 72, 3, 3, 36, 1, 1, groups=2),
    "1000 classes": ConvSpec(3, 48, 1, 1, 1000, 1, 1),
}


@pytest.mark.sampled(9)
@pytest.mark.parametrize("spec", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_answers(spec: ConvSpec, precision: str, device: str) -> None:
    config = replace(SMALL, block_n=64) if spec.k == 1000 else SMALL
    check(spec, precision, device, config, activation="relu")


@pytest.mark.sampled(9)
@pytest.mark.parametrize("spec", SHAPES.values(), ids=SHAPES)
def test_answers_with_split_sums(spec: ConvSpec, device: str) -> None:
    config = replace(SMALL, split_k=3, block_n=64 if spec.k == 1000 else 16)
    check(spec, "fp16", device, config, activation="relu")


@pytest.mark.sampled(9)
@pytest.mark.parametrize("spec", SHAPES.values(), ids=SHAPES)
def test_sums_added_in_the_same_launch_are_bitwise_those_of_two(
    spec: ConvSpec, device: str
) -> None:
    tensors = arguments(spec, "fp16", device)
    rest = attributes(spec, "relu", "none")
    config = replace(SMALL, split_k=3, block_n=64 if spec.k == 1000 else 16)
    one = conv2d(*tensors, *rest, config=replace(config, fused_sum=True))
    two = conv2d(*tensors, *rest, config=config)
    assert torch.equal(one, two)
    judge(one, reference.conv2d, (*tensors, *rest), "fp16")


@pytest.mark.sampled(7)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_counters_of_splits_are_zero_again_and_checked(precision: str, device: str) -> None:
    spec = SHAPES["several tiles, all partial"]
    config = replace(SMALL, split_k=4, fused_sum=True)
    x, weight, bias, residual = arguments(spec, precision, device)
    packed = pack_conv2d(weight, spec.groups, precision)
    out = torch.empty_like(residual)
    size, count = workspace_bytes(spec, config, precision) // 4, counters(spec, config)
    partial = torch.full((size,), torch.nan, dtype=torch.float32, device=device)
    counting = torch.zeros(count + 1, dtype=torch.int32, device=device)

    def calls(counted: Tensor | None) -> Any:
        return conv2d_calls(
            *(x, packed, bias, residual, out, spec, "none", "relu", config, precision),
            *(partial, counted),
        )

    for _ in range(2):
        out.fill_(torch.nan)
        (call,) = calls(counting)
        call.run()
        assert not counting.any()
        rest = attributes(spec, "none", "relu")
        judge(out, reference.conv2d, (x, weight, bias, residual, *rest), precision)
    for wrong in (None, counting[: count - 1], counting.to(torch.int64), counting[None]):
        with pytest.raises(InputError, match="counters"):
            calls(wrong)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_answers_of_the_configuration_that_is_chosen(precision: str, device: str) -> None:
    check(SHAPES["several tiles, all partial"], precision, device, config=None)


@pytest.mark.sampled(9)
@pytest.mark.parametrize(
    "config",
    [
        Conv2dConfig(16, 32, 64),  # a step longer than the channels of a tap
        Conv2dConfig(32, 16, 32, group_m=1),
        Conv2dConfig(16, 16, 16, group_m=2),
        Conv2dConfig(16, 16, 16, group_m=3, num_warps=8, num_stages=2),
        Conv2dConfig(64, 64, 16, split_k=2),
        Conv2dConfig(16, 16, 32, split_k=100),  # more than there are steps
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "spec",
    [
        ConvSpec(3, 32, 5, 4, 40, 3, 3, padding=(1, 1, 1, 1)),
        ConvSpec(2, 64, 4, 4, 64, 3, 3, padding=(1, 1, 1, 1), groups=16),
    ],
    ids=["dense", "grouped"],
)
def test_answers_of_other_configurations(config: Conv2dConfig, spec: ConvSpec, device: str) -> None:
    check(spec, "fp16", device, config, activation="relu")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("split_k", [1, 2])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pre_activation", ACTIVATIONS)
def test_activations(pre_activation: str, activation: str, split_k: int, device: str) -> None:
    spec = ConvSpec(1, 16, 3, 4, 20, 2, 2, padding=(0, 1, 1, 0))
    config = replace(SMALL, split_k=split_k)
    tensors = arguments(spec, "fp32", device)
    tensors[2] *= 6.0  # so that relu6 and hardswish reach their upper ends
    rest = attributes(spec, pre_activation, activation)
    judge(conv2d(*tensors, *rest, config=config), reference.conv2d, (*tensors, *rest), "fp32")


@pytest.mark.sampled(7)
@pytest.mark.parametrize("split_k", [1, 2])
@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_optional_tensors(has_bias: bool, has_residual: bool, split_k: int, device: str) -> None:
    spec = SHAPES["several tiles, all partial"]
    x, weight, bias, residual = arguments(spec, "fp16", device)
    tensors: list[Any] = [
        *(x, weight),
        bias if has_bias else None,
        residual if has_residual else None,
    ]
    rest = attributes(spec, "relu", "none")
    got = conv2d(*tensors, *rest, config=replace(SMALL, split_k=split_k))
    judge(got, reference.conv2d, (*tensors, *rest), "fp16")


@pytest.mark.sampled(9)
@pytest.mark.parametrize("split_k", [1, 3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_go_where_torch_lets_them(
    value: float, activation: str, split_k: int, device: str
) -> None:
    spec = ConvSpec(2, 16, 5, 4, 20, 3, 3, padding=(1, 1, 1, 1))
    x, weight, bias, residual = arguments(spec, "fp32", device)
    x[1, 3, 0, 2] = value
    bias[7] = value
    residual[0, 18, 4, 3] = value
    rest = attributes(spec, activation, activation)
    got = conv2d(x, weight, bias, residual, *rest, config=replace(SMALL, split_k=split_k))
    assert value == value or got.isnan().any()
    judge(got, reference.conv2d, (x, weight, bias, residual, *rest), "fp32")


@pytest.mark.sampled(9)
@pytest.mark.parametrize("split_k", [1, 3])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_stay_in_their_group(value: float, split_k: int, device: str) -> None:
    """A super-group multiplies its other groups' pixels by zero, and that can make NaN."""
    spec = ConvSpec(2, 24, 5, 4, 20, 3, 3, padding=(1, 1, 1, 1), groups=4)
    x, weight, bias, residual = arguments(spec, "fp32", device)
    x[1, 3, 0, 2] = value
    x[0, 17, 3, 3] = value
    rest = attributes(spec, "none", "relu")
    got = conv2d(x, weight, bias, residual, *rest, config=replace(SMALL, split_k=split_k))
    judge(got, reference.conv2d, (x, weight, bias, residual, *rest), "fp32")


def test_nan_of_one_filter_stays_in_it(device: str) -> None:
    spec = ConvSpec(1, 24, 3, 3, 20, 3, 3, padding=(1, 1, 1, 1))
    tensors = arguments(spec, "fp16", device)
    tensors[1][19, 23, 2, 2] = float("nan")
    rest = attributes(spec, "none", "relu")
    got = conv2d(*tensors, *rest, config=SMALL)
    assert got[:, :19].isfinite().all()
    assert got[:, 19, :2, :2].isnan().all()


@pytest.mark.parametrize("descriptors", [False, True])
def test_tf32_rounds_to_the_nearest(descriptors: bool, device: str) -> None:
    """Tensor cores cut off what does not fit, which would make all pixels and weights smaller."""
    if descriptors and device == "cuda" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("this GPU does not copy by tensor descriptor")
    x = torch.ones(1, 16, 4, 4, device=device)
    x[:, :, 1] += 0.9 * 2**-10
    x[:, :, 2] += 0.4 * 2**-10
    x[:, :, 3] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    weight = torch.full((16, 16, 1, 1), -1 - 0.9 * 2**-10, device=device)
    rest = attributes(ConvSpec(1, 16, 4, 4, 16, 1, 1), "none", "none")
    got = conv2d(
        *(x, weight, None, None, *rest),
        config=replace(SMALL, descriptors=descriptors),
        precision="tf32",
    )
    next_number = 1 + 2.0**-10
    expected = torch.tensor([1.0, next_number, 1.0], device=device) * next_number * -16
    assert torch.allclose(got[0, 0, :3], expected[:, None], rtol=1e-6, atol=0.0)
    assert got[0, :, 3].isnan().all()


@pytest.mark.parametrize("split_k", [2, 5])
def test_split_sums_are_the_same_in_every_run(split_k: int, device: str) -> None:
    """Bit for bit, and those of adding the splits in their order."""
    spec = ConvSpec(2, 48, 4, 5, 20, 3, 3, padding=(1, 1, 1, 1))
    config = replace(SMALL, split_k=split_k)
    x, weight, bias, residual = arguments(spec, "fp16", device)
    packed = pack_conv2d(weight)
    answers = []
    for _ in range(2):
        workspace = torch.empty(workspace_bytes(spec, config, "fp16") // 4, device=device)
        out = fenced(torch.zeros_like(residual))
        calls = conv2d_calls(
            x, packed, bias, residual, out, spec, "none", "relu", config, "fp16", workspace
        )
        assert len(calls) == 2
        for call in calls:
            call.run()
        answers.append(out)
    assert torch.equal(*answers)
    partial = workspace.view(used_splits(spec, config), spec.n, spec.p, spec.q, spec.k)
    assert len(partial) == split_k
    total = partial[0]
    for one in partial[1:]:
        total = total + one
    total = total.permute(0, 3, 1, 2) + bias[:, None, None] + residual.float()
    assert torch.equal(answers[0], total.relu().half())


@pytest.mark.sampled(3)
@pytest.mark.parametrize("split_k", [1, 4])
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_nothing_is_written_around_the_output(split_k: int, precision: str, device: str) -> None:
    spec = ConvSpec(2, 40, 3, 5, 37, 3, 3, padding=(1, 1, 1, 1))
    config = replace(SMALL, split_k=split_k)
    tensors = arguments(spec, precision, device)
    x, weight, bias, residual = tensors
    rest = attributes(spec, "none", "relu")
    size = workspace_bytes(spec, config, precision) // 4
    with (
        guarded_output(2, 37, 3, 5, precision=precision, device=device) as out,
        guarded_output(size, device=device) as workspace,
    ):
        for call in conv2d_calls(
            *(x, fenced(pack_conv2d(weight)), bias, residual, out, spec),
            *("none", "relu", config, precision, workspace),
        ):
            call.run()
    assert not workspace.isnan().any()
    judge(out, reference.conv2d, (*tensors, *rest), precision)


@pytest.mark.parametrize("split_k", [1, 2])
def test_the_residual_may_be_the_output(split_k: int, device: str) -> None:
    spec = SHAPES["several tiles, all partial"]
    config = replace(SMALL, split_k=split_k)
    x, weight, bias, residual = arguments(spec, "fp16", device)
    rest = attributes(spec, "none", "relu")
    out = residual.clone(memory_format=torch.preserve_format)
    workspace = torch.empty(workspace_bytes(spec, config, "fp16") // 4, device=device)
    for call in conv2d_calls(
        *(x, pack_conv2d(weight), bias, out, out, spec),
        *("none", "relu", config, "fp16", workspace),
    ):
        call.run()
    judge(out, reference.conv2d, (x, weight, bias, residual, *rest), "fp16")


def test_tensors_of_any_strides(device: str) -> None:
    spec = ConvSpec(2, 16, 3, 4, 20, 3, 3, padding=(1, 1, 1, 1))
    x, weight, bias, residual = arguments(spec, "fp16", device)
    rest = attributes(spec, "none", "relu")
    expected = conv2d(x, weight, bias, residual, *rest, config=SMALL)
    for name, image in layouts(x).items():
        for weights in layouts(weight).values():
            other = layouts(residual)[name]
            got = conv2d(image, weights, bias, other, *rest, config=SMALL)
            assert torch.equal(got, expected), name


@pytest.mark.parametrize("split_k", [1, 2])
def test_an_empty_batch(split_k: int, device: str) -> None:
    spec = ConvSpec(0, 16, 3, 4, 20, 3, 3, padding=(1, 1, 1, 1))
    x = torch.empty(0, 16, 3, 4, device=device)
    weight = torch.randn(20, 16, 3, 3, device=device)
    rest = attributes(spec, "none", "relu")
    got = conv2d(x, weight, None, None, *rest, config=replace(SMALL, split_k=split_k))
    assert got.shape == (0, 20, 3, 4)
    assert conv2d(x, weight, None, None, *rest).shape == (0, 20, 3, 4)


@st.composite
def specs(draw: st.DrawFn) -> ConvSpec:
    """Convolutions of a few pixels with at least one window."""

    def few(least: int, most: int) -> int:
        return draw(st.integers(least, most))

    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 8]))
    r, s = few(1, 4), few(1, 4)
    dilation = few(1, 3), few(1, 3)
    padding = few(0, 3), few(0, 3), few(0, 3), few(0, 3)
    least_h = max(1, dilation[0] * (r - 1) + 1 - padding[0] - padding[2])
    least_w = max(1, dilation[1] * (s - 1) + 1 - padding[1] - padding[3])
    return ConvSpec(
        n=few(1, 2),
        c=groups * few(1, 20),
        h=few(least_h, least_h + 3),
        w=few(least_w, least_w + 3),
        k=groups * few(1, 20),
        r=r,
        s=s,
        stride=(few(1, 5), few(1, 5)),
        padding=padding,
        dilation=dilation,
        groups=groups,
    )


@pytest.mark.campaign
@given(
    spec=specs(),
    precision=st.sampled_from(PRECISIONS),
    config=st.sampled_from(
        [SMALL, replace(SMALL, split_k=2), Conv2dConfig(32, 32, 32), Conv2dConfig(16, 32, 16)]
    ),
    pre_activation=st.sampled_from(["none", "relu"]),
    activation=st.sampled_from(["none", "relu"]),
    residual=st.booleans(),
)
@settings(max_examples=40)
def test_any_convolution(
    device: str,
    spec: ConvSpec,
    precision: str,
    config: Conv2dConfig,
    pre_activation: str,
    activation: str,
    residual: bool,
) -> None:
    check(spec, precision, device, config, pre_activation, activation, residual)
