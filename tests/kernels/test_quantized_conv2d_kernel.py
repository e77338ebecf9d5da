"""The quantised convolution kernels give int8's integers, bit for bit, at awkward shapes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastres.errors import InputError, OptionError
from fastres.kernels import quantized
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.launch.quantized_conv2d import (
    Rescaling,
    quantized_conv2d,
    quantized_conv2d_calls,
    quantized_linear,
    quantized_linear_calls,
    workspace_bytes,
)
from fastres.kernels.packing import pack_conv2d, pack_quantized_bias, packed_shape
from fastres.kernels.spec import ConvSpec
from fastres.kernels.tuning.conv2d import Conv2dConfig, counters
from tests.kernels.test_conv2d_kernel import SHAPES, attributes
from tests.support.addresses import assert_within_bounds
from tests.support.far_memory import FarTensor, run_program
from tests.support.kernel_oracle import fenced, guarded_output, layouts

SMALL = Conv2dConfig(16, 16, 32)
EXACT = ("none", "relu", "relu6", "hardswish")


def launches(*arguments: Any) -> list[KernelCall]:
    """``quantized_conv2d_calls``, its arguments in several parts."""
    return quantized_conv2d_calls(*arguments)


def random_bytes(*shape: int, device: str = "cpu") -> Tensor:
    """uint8 of all values, the least and the largest among them."""
    drawn = torch.randint(0, 256, shape, dtype=torch.uint8)
    if drawn.numel() > 1:
        drawn.view(-1)[0], drawn.view(-1)[-1] = 0, 255
    return fenced(drawn.to(device))


def tensors_for(spec: ConvSpec, device: str, residual: bool = True) -> list[Any]:
    """Random tensors: x, weight, weight scale, bias, residual."""
    shape = (spec.k, spec.c // spec.groups, spec.r, spec.s)
    weight = torch.randint(-127, 128, shape, dtype=torch.int8)
    scale = (torch.rand(spec.k) + 0.1) * (weight[0].numel() ** -0.5)
    bias = torch.randint(-20000, 20000, (spec.k,), dtype=torch.int32)
    images = (spec.n, spec.k, spec.p, spec.q)
    return [
        random_bytes(spec.n, spec.c, spec.h, spec.w, device=device),
        *(each.to(device) for each in (weight, scale, bias)),
        random_bytes(*images, device=device) if residual else None,
    ]


# x's, residual's and result's scale and zero point
ZERO = (0.02, 0, 1.7, 0, 2.3, 0)
MIDDLE = (0.02, 131, 1.7, 5, 2.3, 120)
HIGHEST = (0.02, 255, 1.7, 255, 2.3, 255)


def check(
    spec: ConvSpec,
    device: str,
    config: Conv2dConfig | None = SMALL,
    activations: tuple[str, str] = ("none", "relu"),
    scales: tuple[Any, ...] = MIDDLE,
    residual: bool = True,
) -> Tensor:
    """Run the kernel on random tensors; every number has to be the definition's."""
    tensors = tensors_for(spec, device, residual)
    rest = (*attributes(spec, *activations), *scales)
    got = quantized_conv2d(*tensors, *rest, config=config)
    want = defined(quantized.quantized_conv2d, *tensors, *rest)
    assert torch.equal(got.cpu(), want)
    return want


def defined(function: Any, *arguments: Any) -> Tensor:
    """The definition's answer, on the CPU."""
    moved = (each.cpu() if isinstance(each, Tensor) else each for each in arguments)
    answer: Tensor = function(*moved)
    return answer


@pytest.mark.sampled(3)
@pytest.mark.parametrize("scales", [ZERO, MIDDLE, HIGHEST], ids=["0", "131", "255"])
@pytest.mark.parametrize("spec", SHAPES.values(), ids=SHAPES)
def test_answers(spec: ConvSpec, scales: tuple[Any, ...], device: str) -> None:
    config = replace(SMALL, block_n=64) if spec.k == 1000 else SMALL
    # Where 255 stands for zero, a ReLU would leave nothing else.
    activations = ("none", "none" if scales is HIGHEST else "relu")
    want = check(spec, device, config, activations, scales)
    assert want.numel() < 50 or len(want.unique()) > 20  # they say something


@pytest.mark.sampled(9)
@pytest.mark.parametrize("fused_sum", [False, True])
@pytest.mark.parametrize("spec", SHAPES.values(), ids=SHAPES)
def test_answers_with_split_sums(spec: ConvSpec, fused_sum: bool, device: str) -> None:
    config = replace(SMALL, split_k=3, fused_sum=fused_sum, block_n=64 if spec.k == 1000 else 16)
    check(spec, device, config, ("relu", "none"))


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "config",
    [
        Conv2dConfig(16, 32, 64),  # a step longer than the channels of a tap
        Conv2dConfig(32, 16, 32, group_m=1),
        Conv2dConfig(16, 16, 32, group_m=3, num_warps=8, num_stages=2),
        Conv2dConfig(64, 64, 32, split_k=2),
        Conv2dConfig(16, 16, 32, split_k=100, fused_sum=True),  # more than there are steps
        None,
    ],
    ids=str,
)
@pytest.mark.parametrize("groups", [1, 8])
def test_answers_of_other_configurations(
    config: Conv2dConfig | None, groups: int, device: str
) -> None:
    spec = ConvSpec(3, 32, 5, 4, 40, 3, 3, padding=(1, 1, 1, 1), groups=groups)
    check(spec, device, config)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("split_k", [1, 2])
@pytest.mark.parametrize("activation", EXACT)
@pytest.mark.parametrize("pre_activation", EXACT)
def test_activations(pre_activation: str, activation: str, split_k: int, device: str) -> None:
    spec = ConvSpec(1, 16, 3, 4, 20, 2, 2, padding=(0, 1, 1, 0))
    scales = (0.0015, 131, 0.02, 5, 0.041, 90)  # so that numbers lie between -6 and 6, and beyond
    config = replace(SMALL, split_k=split_k)
    want = check(spec, device, config, (pre_activation, activation), scales)
    assert len(want.unique()) > 20


@pytest.mark.parametrize("split_k", [1, 3])
def test_without_a_residual(split_k: int, device: str) -> None:
    spec = SHAPES["several tiles, all partial"]
    check(spec, device, replace(SMALL, split_k=split_k), residual=False)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("x_scale", [1e-30, 1e-7, 3e-5, 1.0, 1e12])
@pytest.mark.parametrize("scale", [1e-20, 0.1, 1e9])
def test_extreme_scales(x_scale: float, scale: float, device: str) -> None:
    """Far too small, so that all is 0, and far too large, so that all is cut off."""
    spec = ConvSpec(2, 16, 3, 5, 20, 1, 1)
    check(spec, device, scales=(x_scale, 9, scale * 1.5, 200, scale, 77))


@pytest.mark.parametrize("activation", ["none", "relu6"])
def test_ties_go_to_the_even_one(activation: str, device: str) -> None:
    """Sums of halves: every second number is a tie, and zero points change nothing about it."""
    spec = ConvSpec(1, 16, 4, 8, 16, 1, 1)
    x = random_bytes(1, 16, 4, 8, device=device)
    weight = torch.zeros(16, 16, 1, 1, dtype=torch.int8, device=device)
    weight[range(16), range(16)] = 1
    one = torch.ones(16, dtype=torch.float32, device=device)
    bias = torch.arange(-8, 8, dtype=torch.int32, device=device)
    for zero_point in (0, 1, 90, 91):
        scales = (0.5, 60, 1.0, 0, 1.0, zero_point)
        rest = (*attributes(spec, "none", activation), *scales)
        got = quantized_conv2d(x, weight, one, bias, None, *rest, config=SMALL)
        want = defined(quantized.quantized_conv2d, x, weight, one, bias, None, *rest)
        assert torch.equal(got.cpu(), want)


def test_the_largest_sums_that_quantisation_allows(device: str) -> None:
    """Just below 2^30: saturating instructions and a bias modulo 2^32 show where sums wrap."""
    spec = ConvSpec(1, 33000, 1, 1, 16, 1, 1)
    config = Conv2dConfig(16, 16, 512)
    one = torch.full((16,), 1e-6, device=device)
    for pixel, zero_point, sign in ((255, 0, 1), (255, 0, -1), (0, 255, 1), (0, 255, -1)):
        x = torch.full((1, 33000, 1, 1), pixel, dtype=torch.uint8, device=device)
        weight = torch.full((16, 33000, 1, 1), 127 * sign, dtype=torch.int8, device=device)
        bias = torch.arange(16, dtype=torch.int32, device=device) * sign * 1000
        rest = (*attributes(spec, "none", "none"), 1.0, zero_point, 1.0, 0, 10.0, 128)
        got = quantized_conv2d(x, weight, one, bias, None, *rest, config=config)
        want = defined(quantized.quantized_conv2d, x, weight, one, bias, None, *rest)
        assert torch.equal(got.cpu(), want)


def test_sums_that_float32_would_round(device: str) -> None:
    """They rise beyond 2^28 by odd steps and come back to less than 2^12, to the last unit."""
    half = 16500
    spec = ConvSpec(1, 2 * half, 1, 1, 16, 1, 1)
    rising = torch.randint(100, 128, (half,), dtype=torch.int8, device=device)
    weight = torch.cat([rising, -rising]).repeat(16, 1)
    weight[:, half] += torch.arange(16, dtype=torch.int8, device=device)
    pixels = torch.randint(200, 256, (half,), dtype=torch.uint8, device=device)
    x, weight = torch.cat([pixels, pixels])[None, :, None, None], weight[:, :, None, None]
    one = torch.ones(16, dtype=torch.float32, device=device)
    bias = torch.arange(16, dtype=torch.int32, device=device)
    rest = (*attributes(spec, "none", "none"), 1.0, 0, 1.0, 0, 16.0, 0)
    got = quantized_conv2d(x, weight, one, bias, None, *rest, config=Conv2dConfig(16, 16, 512))
    assert torch.equal(
        got.cpu(), defined(quantized.quantized_conv2d, x, weight, one, bias, None, *rest)
    )


def test_a_bias_wraps_around_where_the_sums_do_not(device: str) -> None:
    spec = ConvSpec(1, 16, 1, 2, 16, 1, 1)
    x = torch.tensor([0, 255], dtype=torch.uint8, device=device).expand(1, 16, 1, 2)
    weight = torch.full((16, 16, 1, 1), 127, dtype=torch.int8, device=device)
    bias = torch.full((16,), 2**31 - 1, dtype=torch.int32, device=device)
    packed = pack_quantized_bias(bias, weight, 0)
    assert (packed < 0).all()  # 128 * 127 * 16 more than int32 holds
    rest = (*attributes(spec, "none", "none"), 1.0, 255, 1.0, 0, 1.0, 0)
    one = torch.full((16,), 2.0**-24, device=device)
    got = quantized_conv2d(x, weight, one, bias, None, *rest, config=SMALL)
    want = defined(quantized.quantized_conv2d, x, weight, one, bias, None, *rest)
    assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize("split_k", [1, 3])
def test_nothing_is_written_around_the_output(split_k: int, device: str) -> None:
    spec = ConvSpec(2, 40, 3, 5, 37, 3, 3, padding=(1, 1, 1, 1))
    config = replace(SMALL, split_k=split_k)
    x, weight, weight_scale, bias, residual = tensors_for(spec, device)
    rescaling = Rescaling(0.02, 131, 2.3, 120, 1.7, 5)
    rest = attributes(spec, "none", "relu")
    size = workspace_bytes(spec, config) // 4
    with (
        guarded_output(2, 37, 3, 5, dtype=torch.uint8, device=device) as out,
        guarded_output(size, dtype=torch.int32, device=device) as partial,
    ):
        for call in launches(
            *(x, fenced(pack_conv2d(weight)), fenced(pack_quantized_bias(bias, weight, 131))),
            *(fenced(rescaling.multipliers(weight_scale, "none", "relu")), residual, out, spec),
            *("none", "relu", rescaling, config, partial),
        ):
            call.run()
    tensors = (x, weight, weight_scale, bias, residual)
    want = defined(quantized.quantized_conv2d, *tensors, *rest, 0.02, 131, 1.7, 5, 2.3, 120)
    assert torch.equal(out.cpu(), want)


def test_into_the_residual_itself_and_counters_zero_again(device: str) -> None:
    spec = SHAPES["several tiles, all partial"]
    config = replace(SMALL, split_k=3, fused_sum=True)
    x, weight, weight_scale, bias, residual = tensors_for(spec, device)
    rescaling = Rescaling(0.02, 131, 2.3, 120, 1.7, 5)
    out = fenced(residual)
    count = counters(spec, config)
    counting = torch.zeros(count, dtype=torch.int32, device=device)
    partial = torch.empty(workspace_bytes(spec, config) // 4, dtype=torch.int32, device=device)
    packed = (pack_conv2d(weight), pack_quantized_bias(bias, weight, 131))
    multiplier = rescaling.multipliers(weight_scale, "none", "relu")
    scales = (0.02, 131, 1.7, 5, 2.3, 120)
    for _ in range(2):
        tensors = (x, weight, weight_scale, bias, out.clone())
        rest = attributes(spec, "none", "relu")
        want = defined(quantized.quantized_conv2d, *tensors, *rest, *scales)
        (call,) = launches(
            *(x, *packed, multiplier, out, out, spec, "none", "relu", rescaling, config),
            *(partial, counting),
        )
        call.run()
        assert not counting.any()
        assert torch.equal(out.cpu(), want)


def test_empty_batch_and_other_layouts(device: str) -> None:
    assert check(ConvSpec(0, 16, 3, 3, 8, 3, 3), device).shape == (0, 8, 1, 1)
    spec = ConvSpec(2, 20, 3, 5, 17, 3, 3, padding=(1, 1, 1, 1))
    x, *rest = tensors_for(spec, device)
    rest += [*attributes(spec, "none", "relu"), *MIDDLE]
    want = defined(quantized.quantized_conv2d, x, *rest)
    for name, image in layouts(x).items():
        got = quantized_conv2d(image, *rest, config=SMALL)
        assert torch.equal(got.cpu(), want), name


@pytest.mark.sampled(3)
@pytest.mark.parametrize("scale", [None, 2.3])
@pytest.mark.parametrize("activation", EXACT)
@pytest.mark.parametrize("rows", [0, 1, 19])
def test_linear(rows: int, activation: str, scale: float | None, device: str) -> None:
    x = random_bytes(rows, 48, device=device)
    weight = torch.randint(-127, 128, (37, 48), dtype=torch.int8, device=device)
    weight_scale = torch.rand(37, device=device) * 0.001
    bias = torch.randint(-20000, 20000, (37,), dtype=torch.int32, device=device)
    rest = (activation, 0.02, 77, scale, 0 if scale is None else 66)
    for config in (SMALL, None, replace(SMALL, split_k=2)):
        got = quantized_linear(x, weight, weight_scale, bias, *rest, config=config)
        want = defined(quantized.quantized_linear, x, weight, weight_scale, bias, *rest)
        assert got.dtype == want.dtype
        assert torch.equal(got.cpu(), want)


@pytest.mark.campaign
@settings(max_examples=150)
@given(data=st.data())
def test_any_convolution(data: st.DataObject, device: str) -> None:
    groups = data.draw(st.sampled_from([1, 1, 2, 4, 5]))
    small = st.integers(1, 3)
    spec = ConvSpec(
        n=data.draw(st.integers(0, 2)),
        c=groups * data.draw(st.integers(1, 12)),
        h=data.draw(st.integers(3, 8)),
        w=data.draw(st.integers(3, 8)),
        k=groups * data.draw(st.integers(1, 12)),
        r=data.draw(small),
        s=data.draw(small),
        stride=(data.draw(small), data.draw(small)),
        padding=data.draw(st.tuples(*[st.integers(0, 3)] * 4)),
        dilation=(data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))),
        groups=groups,
    )
    if spec.p < 1 or spec.q < 1:
        return
    config = Conv2dConfig(
        data.draw(st.sampled_from([16, 32])),
        data.draw(st.sampled_from([16, 32])),
        data.draw(st.sampled_from([32, 64])),
        split_k=data.draw(st.integers(1, 4)),
        group_m=data.draw(small),
    )
    config = replace(config, fused_sum=config.split_k > 1 and data.draw(st.booleans()))
    byte, scale = st.integers(0, 255), st.floats(1e-4, 10.0)
    scales = tuple(data.draw(each) for each in (scale, byte) * 3)
    activations = (data.draw(st.sampled_from(EXACT)), data.draw(st.sampled_from(EXACT)))
    check(spec, device, config, activations, scales, data.draw(st.booleans()))


def test_what_is_refused(device: str) -> None:
    spec = ConvSpec(1, 16, 3, 3, 16, 1, 1)
    x, weight, weight_scale, bias, residual = tensors_for(spec, device)
    rescaling = Rescaling(0.02, 131, 2.3, 120)
    given: dict[str, Any] = {
        "x": x,
        "packed": pack_conv2d(weight),
        "bias": bias,
        "multiplier": rescaling.multipliers(weight_scale, "none", "none"),
        "residual": residual,
        "out": torch.empty_like(residual),
        "spec": spec,
        "pre_activation": "none",
        "activation": "none",
        "rescaling": rescaling,
        "config": SMALL,
    }
    assert len(quantized_conv2d_calls(**given)) == 1
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"x": x.float()}, InputError, "x is .*expected .*uint8"),
        ({"packed": given["packed"].float()}, InputError, "packed weight is .*expected .*int8"),
        ({"bias": bias.float()}, InputError, "bias is .*int32"),
        ({"multiplier": bias}, InputError, "multiplier is .*float32"),
        ({"residual": residual.float()}, InputError, "residual is .*uint8"),
        ({"out": residual.float()}, InputError, "out is .*uint8"),
        ({"activation": "silu"}, OptionError, "an exponential.*expected one of none, relu, relu6"),
        ({"activation": "tanh"}, OptionError, "activation 'tanh'"),
        ({"config": Conv2dConfig(16, 16, 16)}, OptionError, "block_k=32 bytes"),
    ]
    for changed, error, message in wrong:
        with pytest.raises(error, match=message):
            quantized_conv2d_calls(**{**given, **changed})
    with pytest.raises(OptionError, match="x_zero_point=256: expected 0 to 255"):
        Rescaling(0.02, 256, 2.3, 120)
    with pytest.raises(InputError, match="expected two axes"):
        quantized_linear_calls(x, weight, bias, bias, x, "none", rescaling, SMALL)
    with pytest.raises(InputError, match="expected \\[rows, inputs\\]"):
        quantized_linear(x, weight, weight_scale, bias, "none", 1.0, 0, None, 0)


@pytest.mark.parametrize(
    "config", [replace(SMALL, split_k=2), replace(SMALL, split_k=2, fused_sum=True)]
)
def test_missing_memory_for_split_sums_is_refused(config: Conv2dConfig, device: str) -> None:
    spec = ConvSpec(1, 64, 3, 3, 16, 1, 1)
    x, weight, weight_scale, bias, residual = tensors_for(spec, device)
    rescaling = Rescaling(0.02, 131, 2.3, 120)
    multiplier = rescaling.multipliers(weight_scale, "none", "none")
    given = (x, pack_conv2d(weight), bias, multiplier, None, torch.empty_like(residual), spec)
    rest = ("none", "none", rescaling, config)
    with pytest.raises(InputError, match=r"workspace is None.*int32 \["):
        quantized_conv2d_calls(*given, *rest)
    partial = torch.empty(workspace_bytes(spec, config) // 4, dtype=torch.int32, device=device)
    if config.fused_sum:
        with pytest.raises(InputError, match="counters is None"):
            quantized_conv2d_calls(*given, *rest, partial)


def far_call(spec: ConvSpec, config: Conv2dConfig = SMALL) -> list[KernelCall]:
    """Launches on tensors without memory."""
    images, filters, k = meta(spec.n, spec.c, spec.h, spec.w), spec.k, (spec.k,)
    packed = packed_shape(spec.c, filters, spec.r, spec.s, spec.groups)
    out = meta(spec.n, filters, spec.p, spec.q)
    return quantized_conv2d_calls(
        images,
        torch.empty(packed, dtype=torch.int8, device="meta"),
        torch.empty(k, dtype=torch.int32, device="meta"),
        torch.empty(k, dtype=torch.float32, device="meta"),
        out,
        out,
        spec,
        "none",
        "none",
        Rescaling(1.0, 3, 1.0, 7, 1.0, 5),
        config,
        torch.empty(workspace_bytes(spec, config) // 4, dtype=torch.int32, device="meta"),
    )


def meta(n: int, c: int, h: int, w: int) -> Tensor:
    return torch.empty((n, h, w, c), dtype=torch.uint8, device="meta").permute(0, 3, 1, 2)


@pytest.mark.parametrize("wide", [True, False])
def test_reading_and_writing_past_two_to_the_31(
    wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last tile, a partial one, of x, residual and out; with 32 bits it is not right."""
    rows = 2**27 + 3
    (call,) = far_call(ConvSpec(1, 16, 1, rows, 16, 1, 1))
    assert call.constants["INT64"] is True
    x, residual, out = (FarTensor(torch.uint8) for _ in range(3))
    pixels, added = (torch.randint(0, 256, (3, 16), dtype=torch.uint8) for _ in range(2))
    weight = torch.randint(-2, 3, (16, 16), dtype=torch.int8)
    x.at((rows - 3) * 16, 48).copy_(pixels.flatten())
    residual.at((rows - 3) * 16, 48).copy_(added.flatten())
    bias, scale = torch.arange(16, dtype=torch.int32), torch.full((16,), 0.125)
    run_program(
        monkeypatch,
        call,
        (call.grid[0] - 1, 0, 0),
        x_ptr=x.start,
        weight_ptr=weight,
        bias_ptr=pack_quantized_bias(bias, weight, 3),
        multiplier_ptr=scale,
        residual_ptr=residual.start,
        out_ptr=out.start,
        INT64=wide,
    )
    want = defined(
        quantized.quantized_conv2d,
        *(pixels[:, :, None, None], weight[:, :, None, None], scale, bias),
        *(added[:, :, None, None], (1, 1), (0, 0, 0, 0), (1, 1), 1, "none", "none"),
        *(1.0, 3, 1.0, 5, 1.0, 7),
    )
    got = out.at((rows - 3) * 16, 48).view(3, 16)
    assert torch.equal(got, want[:, :, 0, 0]) is wide
    assert out.at(rows * 16, 256).count_nonzero() == 0


@pytest.mark.sampled(3)
@pytest.mark.parametrize("config", [SMALL, replace(SMALL, split_k=2)], ids=["one", "split"])
@pytest.mark.parametrize(
    "spec",
    [
        ConvSpec(2, 40, 3, 5, 20, 3, 3, (1, 2), (1, 0, 2, 1)),
        ConvSpec(1, 64, 3, 3, 64, 3, 3, padding=(1, 1, 1, 1), groups=16),
        ConvSpec(1, 2, 3, 20, 3, 1, 17, padding=(0, 8, 0, 8)),
    ],
    ids=["dense", "grouped", "long"],
)
def test_wide_offsets_give_the_same_bits(spec: ConvSpec, config: Conv2dConfig, device: str) -> None:
    x, weight, scale, bias, residual = tensors_for(spec, device)
    rescaling = Rescaling(0.02, 131, 2.3, 120, 1.7, 5)
    outs = []
    for wide in (False, True):
        out = torch.empty_like(residual)
        partial = torch.empty(workspace_bytes(spec, config) // 4, dtype=torch.int32, device=device)
        for call in launches(
            *(x, pack_conv2d(weight, spec.groups), pack_quantized_bias(bias, weight, 131)),
            *(rescaling.multipliers(scale, "none", "relu"), residual, out, spec),
            *("none", "relu", rescaling, config, partial),
        ):
            assert call.constants["INT64"] is False
            replace(call, constants={**call.constants, "INT64": wide}).run()
        outs.append(out)
    assert torch.equal(*outs)


@pytest.mark.parametrize("split_k", [1, 2])
@pytest.mark.parametrize("name", ["several tiles, all partial", "padding of four sizes"])
def test_no_address_outside(name: str, split_k: int) -> None:
    calls = far_call(SHAPES[name], replace(SMALL, split_k=split_k))
    for call in calls[:-1]:
        assert_within_bounds([call], "partial_ptr")
    assert_within_bounds(calls, "out_ptr")


POINTWISE = {
    "several tiles, all partial": ConvSpec(2, 80, 3, 7, 48, 1, 1),
    "whole tiles": ConvSpec(2, 64, 4, 4, 32, 1, 1),
    "one pixel": ConvSpec(1, 16, 1, 1, 16, 1, 1),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("scales", [ZERO, MIDDLE, HIGHEST], ids=["0", "131", "255"])
@pytest.mark.parametrize("name", POINTWISE)
def test_pointwise_by_descriptor(
    name: str, scales: tuple[Any, ...], residual: bool, device: str
) -> None:
    check_pointwise(name, scales, residual, device)


def check_pointwise(name: str, scales: tuple[Any, ...], residual: bool, device: str) -> None:
    """Into guarded memory, by one launch of the kernel for descriptors."""
    if device == "cuda" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("this GPU does not copy by tensor descriptor")
    spec = POINTWISE[name]
    x, weight, weight_scale, bias, addend = tensors_for(spec, device, residual)
    rescaling = Rescaling(*scales[:2], *scales[4:], *scales[2:4])
    activations = ("relu6", "hardswish") if name == "whole tiles" else ("none", "relu")
    images = (spec.n, spec.k, spec.p, spec.q)
    with guarded_output(*images, dtype=torch.uint8, device=device) as out:
        (call,) = launches(
            *(x, fenced(pack_conv2d(weight)), pack_quantized_bias(bias, weight, scales[1])),
            *(rescaling.multipliers(weight_scale, *activations), addend, out, spec),
            *(*activations, rescaling, replace(SMALL, descriptors=True)),
        )
        assert call.name == "quantized_pointwise_kernel"
        call.run()
    rest = (*attributes(spec, *activations), *scales)
    want = defined(quantized.quantized_conv2d, x, weight, weight_scale, bias, addend, *rest)
    assert torch.equal(out.cpu(), want)


def test_by_pointers_where_descriptors_cannot_be(device: str) -> None:
    config = replace(SMALL, descriptors=True)
    for spec, reason in (
        (ConvSpec(1, 24, 3, 3, 16, 1, 1), "rows of C=24 not a multiple of 16 bytes"),
        (ConvSpec(1, 16, 3, 3, 16, 3, 3), "not pointwise"),
    ):
        (call,) = far_call(spec, config)
        assert call.name == f"quantized_conv2d_kernel (by pointers: {reason})"
        check(spec, device, config)
