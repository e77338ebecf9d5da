"""What the convolution's launches refuse, and what they say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastres.errors import InputError, OptionError
from fastres.kernels.launch.conv2d import (
    channels_last,
    conv2d,
    conv2d_calls,
    precision_of,
    reaches_padding,
    workspace_bytes,
)
from fastres.kernels.spec import ConvSpec
from fastres.kernels.tuning.conv2d import Conv2dConfig

SPEC = ConvSpec(2, 32, 4, 5, 8, 3, 3, padding=(1, 1, 1, 1))
CONFIG = Conv2dConfig(16, 16, 16)
SPLIT = Conv2dConfig(16, 16, 16, split_k=4)


def images(*shape: int, **options: Any) -> torch.Tensor:
    return channels_last(torch.zeros(shape, **options))


def valid() -> dict[str, Any]:
    return {
        "x": images(2, 32, 4, 5),
        "packed": torch.zeros(8, 288),
        "bias": torch.zeros(8),
        "residual": images(2, 8, 4, 5),
        "out": images(2, 8, 4, 5),
        "spec": SPEC,
        "pre_activation": "none",
        "activation": "relu",
        "config": CONFIG,
        "precision": "fp32",
    }


def test_what_is_right_is_taken() -> None:
    assert len(conv2d_calls(**valid())) == 1
    meta: dict[str, Any] = {
        k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in valid().items()
    }
    assert conv2d_calls(**meta)[0].constants == conv2d_calls(**valid())[0].constants


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"x": images(2, 16, 4, 5)}, r"x is \[2, 16, 4, 5\] .*: expected \[2, 32, 4, 5\]"),
        ({"x": images(2, 32, 4, 5).half()}, r"x is .* torch.float16 .*: expected .*float32"),
        ({"x": torch.zeros(2, 32, 4, 5)}, r"x .* strides \(640, 20, 5, 1\): expected dense chan"),
        ({"packed": torch.zeros(8, 32, 3, 3)}, r"packed weight is .*: expected \[8, 288\]"),
        ({"packed": torch.zeros(288, 8).t()}, r"packed weight .*strides \(1, 8\): expected"),
        ({"bias": torch.zeros(8).half()}, r"bias is .*float16 .*: expected \[8\] of torch.float32"),
        ({"residual": images(2, 8, 4, 4)}, r"residual is .*: expected \[2, 8, 4, 5\]"),
        ({"out": torch.zeros(2, 8, 4, 5)}, r"out .*strides"),
        ({"out": images(2, 8, 4, 5, device="meta")}, r"out is on meta: expected cpu"),
        ({"precision": "fp16"}, r"x is .*float32 .*: expected .*float16"),
    ],
)
def test_wrong_tensors(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        conv2d_calls(**{**valid(), **wrong})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"precision": "fp64"}, r"precision='fp64': expected one of fp32, tf32, bf16, fp16"),
        ({"activation": "gelu"}, r"activation 'gelu': expected one of none, relu"),
        ({"pre_activation": "gelu"}, r"activation 'gelu'"),
    ],
)
def test_wrong_options(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        conv2d_calls(**{**valid(), **wrong})


@pytest.mark.parametrize(
    "workspace",
    [
        None,
        torch.zeros(4 * 320 - 1),
        torch.zeros(4, 320),
        torch.zeros(4 * 320, dtype=torch.float16),
        torch.zeros(8 * 320)[::2],
        torch.zeros(4 * 320, device="meta"),
    ],
    ids=["none", "too short", "two axes", "dtype", "strided", "device"],
)
def test_wrong_workspaces(workspace: torch.Tensor | None) -> None:
    assert workspace_bytes(SPEC, SPLIT, "fp32") == 4 * 320 * 4
    with pytest.raises(InputError, match=r"workspace .*(\[1280\]|expected cpu)"):
        conv2d_calls(**{**valid(), "config": SPLIT}, workspace=workspace)


def test_workspaces_are_needed_for_split_sums_alone() -> None:
    assert workspace_bytes(SPEC, CONFIG, "fp32") == 0
    assert workspace_bytes(ConvSpec(1, 8, 4, 4, 8, 1, 1), SPLIT, "fp32") == 0  # one step only
    with pytest.raises(OptionError, match="precision"):
        workspace_bytes(SPEC, CONFIG, "int8")


def test_what_the_function_refuses() -> None:
    x, weight = torch.zeros(1, 8, 2, 2), torch.zeros(4, 8, 3, 3)
    plain: list[Any] = [(1, 1), (0, 0, 0, 0), (1, 1), 1, "none", "none"]
    with pytest.raises(InputError, match=r"2x2 pixels: too small for a 3x3 filter"):
        conv2d(x, weight, None, None, *plain)
    with pytest.raises(InputError, match=r"x with 3 axes and weight with 4: expected four"):
        conv2d(x[0], weight, None, None, *plain)
    with pytest.raises(InputError, match=r"on 8 channels: expected 8 / groups channels"):
        conv2d(x, torch.zeros(4, 5, 1, 1), None, None, *plain)
    with pytest.raises(InputError, match=r"x of torch.float64: expected float16"):
        conv2d(x.double(), torch.zeros(4, 8, 1, 1).double(), None, None, *plain)


def test_precisions_of_dtypes() -> None:
    dtypes = (torch.float16, torch.bfloat16, torch.float32)
    assert [precision_of(dtype) for dtype in dtypes] == ["fp16", "bf16", "fp32"]


@pytest.mark.parametrize(
    ("spec", "reaches"),
    [
        (ConvSpec(1, 1, 4, 4, 1, 3, 3), False),
        (ConvSpec(1, 1, 4, 4, 1, 3, 3, padding=(1, 0, 0, 0)), True),
        (ConvSpec(1, 1, 4, 4, 1, 3, 3, padding=(0, 1, 0, 0)), True),
        (ConvSpec(1, 1, 4, 4, 1, 3, 3, padding=(0, 0, 1, 0)), True),
        (ConvSpec(1, 1, 4, 4, 1, 3, 3, padding=(0, 0, 0, 1)), True),
        (ConvSpec(1, 1, 5, 5, 1, 3, 3, (2, 2), (0, 0, 1, 1)), False),  # no window gets there
        (ConvSpec(1, 1, 4, 4, 1, 3, 3, (2, 2), (0, 0, 1, 1)), True),
        (ConvSpec(1, 1, 5, 5, 1, 2, 2, padding=(0, 0, 1, 0), dilation=(2, 2)), True),
    ],
    ids=str,
)
def test_windows_that_reach_into_the_padding(spec: ConvSpec, reaches: bool) -> None:
    assert reaches_padding(spec) is reaches
