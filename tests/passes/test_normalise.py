"""ATen's many spellings become one operator each; what is something else keeps its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastres
from fastres.errors import FastresWarning, InputError
from tests.support.optimizing import nodes, operator_name, optimize
from tests.support.oracle import run_in
from tests.support.small import (
    Net,
    assert_left,
    assert_refused,
    assert_right,
    conv,
    counts,
    images,
    measured,
    net,
    optimized,
    pair_net,
)

Function = Callable[..., Any]


def operators(fast: Any) -> list[str]:
    return [operator_name(n) for n in fast.graph_module.graph.nodes if n.op == "call_function"]


def after_conv(function: Function) -> nn.Module:
    return net(lambda m, x: function(m.conv(x)), conv=conv())


@pytest.mark.parametrize(
    ("options", "padding"),
    [
        ({"padding": 0}, [0, 0, 0, 0]),
        ({"padding": (2, 1)}, [2, 1, 2, 1]),
        ({"padding": "valid"}, [0, 0, 0, 0]),
        ({"padding": "same"}, [1, 1, 1, 1]),
        ({"padding": "same", "dilation": (2, 1)}, [2, 1, 2, 1]),
        ({"padding": "same", "kernel": 2}, [0, 0, 1, 1]),
        ({"padding": "same", "kernel": 4, "dilation": 1}, [1, 1, 2, 2]),
        ({"stride": (2, 3), "dilation": 2, "groups": 4}, [1, 1, 1, 1]),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
def test_convolutions(options: dict[str, Any], padding: list[int]) -> None:
    fast = optimized(nn.Sequential(conv(**options)).eval())
    (node,) = nodes(fast, "conv2d")
    assert node.args[5] == padding
    assert operators(fast) == ["conv2d"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x, c: F.conv2d(x, c.weight),
        lambda x, c: F.conv2d(x, c.weight, c.bias, 2, 1),
        lambda x, c: F.conv2d(x, c.weight, padding="same"),
        lambda x, c: torch.conv2d(x, c.weight, c.bias, [1, 2], [1, 1]),
        lambda x, c: torch.convolution(
            x, c.weight, c.bias, [1, 1], [1, 1], [1, 1], False, [0, 0], 1
        ),
    ],
    ids=["weight only", "positional", "same", "torch.conv2d", "torch.convolution"],
)
def test_functional_convolutions(function: Function) -> None:
    fast = optimized(net(lambda m, x: function(x, m.conv), conv=conv()))
    assert operators(fast) == ["conv2d"]
    assert counts(fast, "convolution") == (1, 1)


@pytest.mark.parametrize(
    ("layer", "operator"),
    [
        (nn.ConvTranspose2d(4, 4, 3), "conv_transpose2d"),
        (nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 4, 3)), "conv1d"),
        (nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Conv3d(2, 2, (1, 3, 3))), "conv3d"),
    ],
    ids=["transposed", "one-dimensional", "three-dimensional"],
)
def test_other_convolutions_stay(layer: nn.Module, operator: str) -> None:
    fast = optimized(nn.Sequential(conv(), layer).eval(), engine="onednn")
    (node,) = [n for n in nodes(fast, operator, "convolution") if "fastres" not in str(n.target)]
    assert counts(fast, "convolution") == (1, 1)
    name = node.meta["module"]
    assert name.startswith("1")
    assert_left(fast, name, str(node.target))


def test_an_image_without_a_batch_stays() -> None:
    model = net(lambda m, x: m.conv(x) + m.conv(x[0]), conv=conv())
    fast = optimized(model)
    assert counts(fast, "convolution") == (1, 1)
    assert_left(fast, "conv", "aten.conv2d.default")


@pytest.mark.parametrize(
    ("window", "wanted"),
    [
        ({"kernel_size": 2}, ([2, 2], [2, 2], [0, 0], [1, 1], False)),
        ({"kernel_size": 3, "stride": 2, "padding": 1}, ([3, 3], [2, 2], [1, 1], [1, 1], False)),
        ({"kernel_size": (2, 3), "stride": (1, 2)}, ([2, 3], [1, 2], [0, 0], [1, 1], False)),
        ({"kernel_size": 2, "dilation": 2}, ([2, 2], [2, 2], [0, 0], [2, 2], False)),
        ({"kernel_size": 3, "ceil_mode": True}, ([3, 3], [3, 3], [0, 0], [1, 1], True)),
    ],
    ids=str,
)
def test_max_pooling(window: dict[str, Any], wanted: tuple[Any, ...]) -> None:
    fast = optimized(nn.Sequential(conv(), nn.MaxPool2d(**window)).eval())
    assert operators(fast) == ["conv2d", "max_pool2d"]
    assert nodes(fast, "max_pool2d")[0].args[1:] == wanted


def test_max_pooling_with_indices() -> None:
    pool = nn.MaxPool2d(2, return_indices=True)
    unused = optimized(net(lambda m, x: m.pool(m.conv(x))[0], conv=conv(), pool=pool))
    assert [n for n in operators(unused) if n != "getitem"] == ["conv2d", "max_pool2d"]
    used = optimized(net(lambda m, x: m.pool(m.conv(x)), conv=conv(), pool=pool))
    assert_left(used, "pool", "aten.max_pool2d_with_indices.default")


@pytest.mark.parametrize(
    ("function", "keepdim"),
    [
        (lambda y: F.adaptive_avg_pool2d(y, 1), True),
        (lambda y: F.adaptive_avg_pool2d(y, (1, 1)), True),
        (lambda y: y.mean((2, 3)), False),
        (lambda y: y.mean([-1, -2]), False),
        (lambda y: y.mean((3, 2), keepdim=True), True),
        (lambda y: torch.mean(y, dim=[2, 3], keepdim=True), True),
        (lambda y: F.avg_pool2d(y, y.shape[2:]), True),
        (lambda y: F.avg_pool2d(y, kernel_size=y.size()[2:]), True),
        (lambda y: F.avg_pool2d(input=y, kernel_size=(y.shape[2], y.shape[3])), True),
        (lambda y: F.avg_pool2d(y, y.shape[2:], stride=1), True),
        (lambda y: F.avg_pool2d(y, y.shape[2:], count_include_pad=False), True),
    ],
    ids=[
        *("adaptive 1", "adaptive (1, 1)", "mean", "mean of last", "mean keepdim", "torch.mean"),
        *("f.shape[2:]", "f.size()[2:]", "each side", "stride", "without padding pixels"),
    ],
)
def test_global_average_pooling(function: Function, keepdim: bool) -> None:
    fast = optimized(after_conv(function))
    assert operators(fast) == ["conv2d", "global_avg_pool"]
    assert nodes(fast, "global_avg_pool")[0].args[1] is keepdim
    assert fast.report.complete


@pytest.mark.parametrize(
    "function",
    [
        lambda y: F.adaptive_avg_pool2d(y, 2),
        lambda y: F.adaptive_avg_pool2d(y, (1, 2)),
        lambda y: F.adaptive_avg_pool2d(y, (None, 1)),
        lambda y: F.adaptive_max_pool2d(y, 1),
        lambda y: y.mean((1, 2)),
        lambda y: y.mean(3),
        lambda y: y.mean(),
        lambda y: y.sum((2, 3)),
        lambda y: y.flatten(2).mean((1, 2)),
        lambda y: F.avg_pool2d(y, 3),
        lambda y: F.avg_pool2d(y, (8, 8)),
        lambda y: F.avg_pool2d(y, y.shape[2:], padding=2),
        lambda y: F.avg_pool2d(y, (y.shape[2], 2)),
        lambda y: F.avg_pool2d(y, (y.shape[3], y.shape[2] // 2)),
        lambda y: F.avg_pool2d(y, y.shape[2:], divisor_override=5),
        lambda y: F.avg_pool2d(y.flatten(1, 2), (2, 2)),
    ],
    ids=[
        *("adaptive 2", "adaptive (1, 2)", "rows", "adaptive max", "mean of channels", "mean of 3"),
        *("mean of all", "sum", "mean of three", "3x3", "8x8", "padded", "one side"),
        *("other side", "divisor", "without a batch"),
    ],
)
def test_other_poolings_stay(function: Function) -> None:
    x = images(2)
    model = after_conv(function)
    fast = optimized(model, x, engine="onednn")
    assert not nodes(fast, "global_avg_pool"), fast.graph_module.code
    assert len(fast.report.left) == 1


@pytest.mark.parametrize("kernel", [7, (7, 7)], ids=str)
def test_a_window_as_large_as_the_example_is_no_global_pooling(kernel: Any) -> None:
    model = after_conv(lambda y: F.avg_pool2d(y, kernel))
    fast = optimize(model, images(2, height=7, width=7))
    for size in ((7, 7), (14, 14), (14, 7), (9, 15)):
        x = images(2, height=size[0], width=size[1])
        assert fast(x).shape == (2, 4, size[0] // 7, size[1] // 7)
        assert_right(model, fast, x)


def test_a_mean_in_another_dtype_stays() -> None:
    model = after_conv(lambda y: y.mean((2, 3), dtype=torch.float64))
    fast = optimize(model, images(2))
    x = images(3)
    assert not nodes(fast, "global_avg_pool")
    assert fast(x).dtype == torch.float64
    torch.testing.assert_close(fast(x), run_in(model, torch.float64, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers(bias: bool) -> None:
    layers = (conv(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3, bias=bias))
    fast = optimized(nn.Sequential(*layers).eval())
    assert operators(fast) == ["conv2d", "global_avg_pool", "linear"]
    assert fast.report.complete


FLATTENINGS: dict[str, Function] = {
    "flatten": lambda y: torch.flatten(y, 1),
    "nn.Flatten": nn.Flatten(),
    "view(size(0), -1)": lambda y: y.view(y.size(0), -1),
    "view(-1, 4)": lambda y: y.view(-1, 4),
    "reshape(shape[0], 4)": lambda y: y.reshape(y.shape[0], 4),
    "squeeze of both": lambda y: y.squeeze(-1).squeeze(-1),
    "view(shape[:2])": lambda y: y.view(y.shape[:2]),
    "squeeze of two": lambda y: y.squeeze((2, 3)),
    "select": lambda y: y[:, :, 0, 0],
    "mean": lambda y: y.mean((2, 3)),
}


@pytest.mark.parametrize("name", FLATTENINGS)
def test_heads(name: str) -> None:
    model = net(
        lambda m, x: m.linear(FLATTENINGS[name](F.adaptive_avg_pool2d(m.conv(x), 1))),
        conv=conv(),
        linear=nn.Linear(4, 3),
    )
    fast = optimized(model)
    assert fast.report.complete
    assert_right(model, fast, images(3).contiguous(memory_format=torch.channels_last))
    assert fast(images(0)).shape == (0, 3)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "function",
    [
        lambda y: y.view(y.shape[0], 2, 2, *y.shape[2:]).sum(1),
        lambda y: y.view(y.shape[0], -1)[:, 5:9],
        lambda y: y.reshape(-1)[:7],
        lambda y: y.view(-1, y.shape[3]).relu(),
        lambda y: y.permute(0, 2, 3, 1).reshape(y.shape[0], -1),
        lambda y: y.view(y.shape[0], 2, 2, -1).transpose(1, 2).flatten(1, 2),
    ],
    ids=["groups", "all pixels", "everything", "rows", "last channel", "channel shuffle"],
)
def test_other_views_are_of_the_models_order_of_pixels(function: Function) -> None:
    assert optimized(after_conv(function))


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_batch_fixed_by_len_is_that_of_the_example(batch: int) -> None:
    model = after_conv(lambda y: y.view(len(y), -1))  # len() makes it a plain number
    x = images(batch)
    fast = optimize(model, x)
    assert_right(model, fast, x)
    with pytest.raises(InputError, match=rf"\[7, 4, 9, 8\].* dimension 0 must be {batch}"):
        fast(images(7))


def test_batch_norm_in_every_form_of_capture() -> None:
    # A write through a view makes capture decompose the graph, BatchNorm included.
    def function(m: Any, x: Tensor) -> Any:
        y = m.norm(m.conv(x))
        y[:, :2].mul_(2.0)
        return y

    fast = optimized(net(function, conv=conv(), norm=nn.BatchNorm2d(4)))
    assert counts(fast, "batch_norm") == (1, 1)
    assert counts(fast, "convolution") == (1, 1)


@pytest.mark.parametrize("options", [{"track_running_stats": False}, {"affine": False}], ids=str)
def test_refused_with_the_statistics_of_the_batch(options: dict[str, bool]) -> None:
    norm = nn.BatchNorm2d(4, **options)
    norm.running_mean = norm.running_var = None
    fast = optimized(nn.Sequential(conv(), norm, nn.ReLU()).eval())
    assert counts(fast, "batch_norm") == (0, 1)
    reason = "statistics of the batch, also in eval mode .*nothing constant to fold$"
    assert_refused(fast, "1", "BatchNorm", reason)


def test_refused_in_every_form_of_capture() -> None:
    def function(m: Any, x: Tensor) -> Any:
        y = m.norm(m.conv(x))
        y[:, :2].mul_(2.0)
        return y

    norm = nn.BatchNorm2d(4, track_running_stats=False)
    fast = optimized(net(function, conv=conv(), norm=norm))
    assert counts(fast, "batch_norm") == (0, 1)
    assert_refused(fast, "norm", "BatchNorm", "statistics of the batch, also in eval mode")


def test_refused_with_parameters_from_the_input() -> None:
    x, gain = images(2), torch.randn(4)
    model = pair_net(
        lambda m, x, gain: F.batch_norm(m.conv(x), m.mean, m.mean + 1, gain, None),
        x,
        gain,
        conv=conv(),
        mean=torch.rand(4),
    )
    fast = optimized(model, x, gain)
    assert counts(fast, "batch_norm") == (0, 1)
    reason = "^its parameters are computed from the input$"
    assert_refused(fast, "(the model itself)", "BatchNorm", reason)


def test_other_norms_stay() -> None:
    layers = (conv(), nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(8), nn.BatchNorm2d(4))
    model = measured(nn.Sequential(*layers))
    fast = optimized(model, images(2), engine="onednn")
    assert counts(fast, "batch_norm")[1] >= 1
    assert {"1", "2", "3"} <= {remark.module for remark in fast.report.left + fast.report.refused}


def test_strided_views_as_inputs_of_a_convolution() -> None:
    def function(m: Any, x: Tensor) -> Any:
        return m.conv(x[:, :, ::2, 1::2]) + m.conv(x.transpose(2, 3))[:, :, :1, :1]

    fast = optimized(Net(function, conv=conv()).eval())
    assert counts(fast, "convolution") == (2, 2)


def test_the_receipt_lists_what_is_left_once_and_warns() -> None:
    model = net(lambda m, x: F.softplus(F.softplus(m.conv(x))), conv=conv())
    with pytest.warns(FastresWarning, match=r"aten\.softplus\.default: no operator of fastres"):
        fast = fastres.optimize(model, images(2))
    assert [str(remark) for remark in fast.report.left] == [
        "(the model itself): aten.softplus.default: no operator of fastres covers it"
    ]


def added_to_a_slice(m: Any, x: Tensor) -> Any:
    out = torch.cat([m.conv(x), m.conv(x.relu())], 1)[:, :6, :, :]
    out += m.wide(x)
    return m.end(out)


def test_what_is_written_to_a_slice() -> None:
    """GhostNet's residual addition, in place on a slice of a concatenation."""
    parts = {"conv": conv(), "wide": conv(4, 6), "end": conv(6, 5)}
    assert "slice_scatter" not in operators(optimized(net(added_to_a_slice, **parts)))


def test_a_slice_that_is_written_and_another_that_is_read() -> None:
    def function(m: Any, x: Tensor) -> Any:
        y = m.conv(x) * 1.0
        y[:, 1:3] += m.narrow(x)
        return m.end(y) + y[:, :2].sum(1, keepdim=True) + y[:, 1:3].mean(1, keepdim=True)

    fast = optimized(net(function, conv=conv(), narrow=conv(4, 2), end=conv()))
    assert "slice_scatter" in operators(fast)
