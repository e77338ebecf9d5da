"""Bias, addition and activation into one operator, and every reason to leave one of them out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.optimizing import nodes, operator_name, optimize
from tests.support.small import (
    assert_left,
    assert_refused,
    conv,
    counts,
    images,
    net,
    optimized,
    pair_net,
)

Join = Callable[..., Any]


def operators(fast: Any) -> list[str]:
    return [operator_name(n) for n in fast.graph_module.graph.nodes if n.op == "call_function"]


def joined(join: Join, **options: Any) -> Any:
    """Two convolutions of the input, joined by a function of both and the input."""
    model = net(
        lambda m, x: join(m.left(x), m.right(x), x),
        left=nn.Sequential(conv(), nn.BatchNorm2d(4)),
        right=nn.Sequential(conv(kernel=1, bias=False), nn.BatchNorm2d(4)),
    )
    return optimized(model, **options)


ACTIVATIONS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "relu": ("relu", torch.relu),
    "relu, in place": ("relu", lambda y: F.relu(y, inplace=True)),
    "relu6": ("relu6", F.relu6),
    "ReLU6, in place": ("relu6", nn.ReLU6(inplace=True)),
    "Hardtanh of 0 and 6": ("relu6", nn.Hardtanh(0.0, 6.0)),
    "clamp(min=0)": ("relu", lambda y: y.clamp(min=0)),
    "clamp_min(0)": ("relu", lambda y: y.clamp_min(0)),
    "silu": ("silu", F.silu),
    "hardswish": ("hardswish", F.hardswish),
}


@pytest.fixture(params=ACTIVATIONS)
def activation(request: pytest.FixtureRequest) -> tuple[str, Callable[[Tensor], Tensor]]:
    return ACTIVATIONS[request.param]


def test_activation_of_a_convolution(activation: tuple[str, Callable[[Tensor], Tensor]]) -> None:
    name, function = activation
    fast = optimized(net(lambda m, x: function(m.conv(x)), conv=conv()))
    assert operators(fast) == ["conv2d"]
    assert nodes(fast, "conv2d")[0].args[8:] == ("none", name)
    assert counts(fast, "activation") == (1, 1)
    assert fast.report.complete


def test_activation_before_the_addition(activation: tuple[str, Callable[[Tensor], Tensor]]) -> None:
    name, function = activation
    fast = optimized(net(lambda m, x: function(m.conv(x)) + x, conv=conv()))
    assert operators(fast) == ["conv2d"]
    assert nodes(fast, "conv2d")[0].args[8:] == (name, "none")


def test_activation_after_the_addition(activation: tuple[str, Callable[[Tensor], Tensor]]) -> None:
    name, function = activation
    fast = optimized(net(lambda m, x: function(m.conv(x) + x), conv=conv()))
    assert operators(fast) == ["conv2d"]
    assert nodes(fast, "conv2d")[0].args[8:] == ("none", name)


def test_activation_of_a_linear_layer_and_of_a_scale_and_shift() -> None:
    model = net(
        lambda m, x: F.silu(m.linear(F.relu(m.norm(torch.tanh(m.conv(x)))).mean((2, 3)))),
        conv=conv(),
        norm=nn.BatchNorm2d(4),
        linear=nn.Linear(4, 3),
    )
    fast = optimized(model)
    assert operators(fast) == ["conv2d", "tanh", "scale_shift", "global_avg_pool", "linear"]
    assert counts(fast, "activation") == (2, 2)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "function",
    [
        lambda y: y.clamp(min=0.1),
        lambda y: y.clamp(0, 6.5),
        lambda y: y.clamp(0, max=0.1),
        lambda y: torch.clamp(y, max=0.2),
        lambda y: torch.clamp(y, max=0.2, min=0),
        lambda y: y.clamp(max=0),
        lambda y: F.hardtanh(y, 0, 1),
        lambda y: F.leaky_relu(y, 0.1),
        lambda y: F.elu(y),
        lambda y: F.gelu(y),
        lambda y: F.relu(y, inplace=False) + torch.tensor(0.0),
    ],
    ids=[
        *("clamp above 0.1", "clamp to 6.5", "clamp to 0.1", "clamp below", "both by name"),
        *("clamp below 0", "hardtanh to 1", "leaky", "elu", "gelu", "plus a tensor of none"),
    ],
)
def test_what_looks_like_an_activation_stays(function: Callable[[Tensor], Tensor]) -> None:
    model = net(lambda m, x: function(m.conv(x)), conv=conv())
    assert len(operators(optimized(model))) > 1
    assert len(optimized(model, engine="onednn").report.left) == 1


def test_bfloat16_relu6_and_addition() -> None:
    x = images(2)
    model = net(lambda m, x: F.relu6(m.conv(x) + x), conv=conv())
    assert operators(optimized(model, x, precision="bf16")) == ["to", "conv2d", "to"]


def test_refused_a_second_activation() -> None:
    fast = optimized(net(lambda m, x: F.relu6(m.act(m.conv(x))), conv=conv(), act=nn.SiLU()))
    assert_refused(fast, "(the model itself)", "relu6", "^conv already applies silu$")
    assert nodes(fast, "relu6", "hardtanh")


def test_refused_where_the_output_is_read_without_it() -> None:
    def function(m: Any, x: Tensor) -> Any:
        y = m.conv(x)
        return m.act(y) * y

    fast = optimized(net(function, conv=conv(), act=nn.ReLU()))
    assert_refused(fast, "act", "relu", "^the output of conv is also read without it$")


def test_refused_behind_anything_else() -> None:
    fast = optimized(nn.Sequential(conv(), nn.AvgPool2d(2), nn.ReLU()).eval())
    reason = r"^it follows aten\.avg_pool2d\S*, which has no fused form$"
    assert_refused(fast, "2", "relu", reason)


def test_refused_on_the_input() -> None:
    fast = optimized(nn.Sequential(nn.ReLU(), conv()).eval())
    assert_refused(fast, "0", "relu", "^it follows .*, which has no fused form$")


def test_the_shortcuts_convolution_and_the_main_paths() -> None:
    fast = joined(lambda a, b, x: F.relu(a + b))
    assert operators(fast) == ["conv2d", "conv2d"]
    assert counts(fast, "addition") == (1, 1)


def test_the_convolution_without_an_activation_takes_the_addition() -> None:
    fast = joined(lambda a, b, x: F.relu(a) + b)
    first, second = nodes(fast, "conv2d")
    assert first.args[8:] == ("none", "relu")
    assert second.args[3] is first
    assert second.args[8:] == ("none", "none")


def test_the_main_path_takes_the_addition() -> None:
    # As in a ResNet: the shortcut's convolution reads what others read too.
    def function(m: Any, x: Tensor) -> Any:
        return F.relu(m.last(F.relu(m.first(x))) + m.shortcut(x))

    fast = optimized(net(function, first=conv(), last=conv(), shortcut=conv(kernel=1)))
    takers = [node for node in nodes(fast, "conv2d") if node.args[3] is not None]
    assert [node.meta["module"] for node in takers] == ["last"]


@pytest.mark.parametrize(
    "join",
    [
        lambda a, b, x: a + x,
        lambda a, b, x: x + a,
        lambda a, b, x: torch.add(a, x, alpha=1),
        lambda a, b, x: a.add_(x),
        lambda a, b, x: a.__iadd__(x),
    ],
    ids=["a + x", "x + a", "alpha of one", "add_", "+="],
)
def test_spellings_of_an_addition(join: Join) -> None:
    fast = optimized(net(lambda m, x: join(m.conv(x), None, x), conv=conv()))
    assert operators(fast) == ["conv2d"]
    assert counts(fast, "addition") == (1, 1)


def test_three_summands_use_both_convolutions() -> None:
    fast = joined(lambda a, b, x: F.relu(a + b + x))
    assert counts(fast, "addition")[1] == 2
    assert counts(fast, "convolution") == (2, 2)


def test_refused_where_neither_summand_is_a_convolution() -> None:
    fast = joined(lambda a, b, x: torch.tanh(a) + torch.tanh(b))
    reason = "^neither summand is a convolution$"
    assert_refused(fast, "(the model itself)", "residual addition", reason)


def test_refused_to_itself() -> None:
    fast = optimized(net(lambda m, x: (lambda y: y + y)(m.conv(x)), conv=conv()))
    reason = "^it adds the output of conv to itself$"
    assert_refused(fast, "(the model itself)", "residual addition", reason)


def test_refused_where_the_output_is_read_by_something_else() -> None:
    fast = optimized(net(lambda m, x: (lambda y: (y + x) * torch.tanh(y))(m.conv(x)), conv=conv()))
    reason = "^the output of conv is also read by something else$"
    assert_refused(fast, "(the model itself)", "residual addition", reason)


@pytest.mark.parametrize("alpha", [0.25, -1, 2])
def test_refused_with_a_factor(alpha: float) -> None:
    fast = optimized(net(lambda m, x: torch.add(x, m.conv(x), alpha=alpha), conv=conv()))
    reason = f"^it multiplies a summand by {alpha}$"
    assert_refused(fast, "(the model itself)", "residual addition", reason)


@pytest.mark.parametrize(
    "join",
    [
        lambda a, x: a + x[:, :1],
        lambda a, x: a + x.mean((2, 3), keepdim=True),
        lambda a, x: a + x[:, :, :1],
        lambda a, x: a + x[:1] * 2,
    ],
    ids=["one channel", "one pixel", "one row", "one image"],
)
def test_refused_where_a_summand_is_broadcast(join: Join) -> None:
    fast = optimized(net(lambda m, x: join(m.conv(x), x), conv=conv()))
    reason = "^its summands have different shapes or dtypes$"
    assert_refused(fast, "(the model itself)", "residual addition", reason)


def test_refused_where_the_convolution_is_broadcast() -> None:
    fast = optimized(net(lambda m, x: m.conv(x) + x, conv=conv(channels=1)))
    reason = "^its summands have different shapes or dtypes$"
    assert_refused(fast, "(the model itself)", "residual addition", reason)


def test_refused_with_another_dtype() -> None:
    x, other = images(2), images(2).double()
    model = pair_net(lambda m, x, other: m.conv(x) + other, x, other.float(), conv=conv())
    # In float64 both would be of one dtype: only eager can be compared with.
    fast = optimize(model, (x, other))
    torch.testing.assert_close(fast(x, other), model(x, other).detach(), rtol=1e-5, atol=1e-6)
    reason = "^its summands have different shapes or dtypes$"
    assert_refused(fast, "(the model itself)", "residual addition", reason)


def test_a_second_residual_is_refused() -> None:
    fast = optimized(net(lambda m, x: m.conv(x) + x + torch.tanh(x), conv=conv()))
    reason = "^conv already takes a residual$"
    assert_refused(fast, "(the model itself)", "residual addition", reason)


def test_an_addition_no_convolution_takes_is_one_operator_with_its_relu() -> None:
    fast = joined(lambda a, b, x: F.relu(torch.tanh(a) + torch.tanh(b)))
    assert len(nodes(fast, "add_relu")) == 1
    assert counts(fast, "addition") == (1, 1)
    assert counts(fast, "activation") == (1, 1)
    assert fast.report.refused == []


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "join",
    [
        lambda a, b, x: F.relu(torch.tanh(a) + x[:, :1]),
        lambda a, b, x: F.relu(torch.add(torch.tanh(a), torch.tanh(b), alpha=0.5)),
        lambda a, b, x: F.relu6(torch.tanh(a) + torch.tanh(b)),
        lambda a, b, x: F.relu(torch.tanh(a) + 0.5),
        lambda a, b, x: F.relu(torch.tanh(a).flatten(1) + x.flatten(1)),
    ],
    ids=["broadcast", "factor", "relu6", "number", "flattened"],
)
def test_other_sums_keep_their_activation(join: Join) -> None:
    fast = joined(join)
    assert not nodes(fast, "add_relu")
    assert nodes(fast, "relu", "relu6", "hardtanh")


def test_refused_where_the_sum_is_read_without_its_relu() -> None:
    fast = joined(lambda a, b, x: (lambda s: F.relu(s) * s)(torch.tanh(a) + torch.tanh(b)))
    assert not nodes(fast, "add_relu")
    reason = "^the sum before it is also read without it$"
    assert_refused(fast, "(the model itself)", "relu", reason)


def test_a_number_is_not_a_residual() -> None:
    fast = joined(lambda a, b, x: a * 2.0 + (b + 0.5), engine="onednn")
    assert counts(fast, "addition")[1] == 1
    assert_left(fast, "(the model itself)", "aten.mul.Tensor")


@pytest.mark.parametrize("axes", [(1,), (1, -1)], ids=str)
def test_flattened_global_pooling_is_one_operator(axes: tuple[int, ...]) -> None:
    pool = nn.AdaptiveAvgPool2d(1)
    fast = optimized(
        net(lambda m, x: torch.flatten(m.pool(m.conv(x)), *axes), conv=conv(), pool=pool)
    )
    assert operators(fast) == ["conv2d", "global_avg_pool"]
    assert nodes(fast, "global_avg_pool")[0].args[1] is False


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y.flatten(),
        lambda y: y.flatten(2),
        lambda y: y.flatten(0, 1),
        lambda y: (y.flatten(1), y),
    ],
    ids=["all", "from 2", "0 to 1", "with a second reader"],
)
def test_other_flattenings_of_a_pooling_stay(function: Join) -> None:
    model = net(lambda m, x: function(F.adaptive_avg_pool2d(m.conv(x), 1)), conv=conv())
    fast = optimized(model)
    assert nodes(fast, "flatten")
    assert nodes(fast, "global_avg_pool")[0].args[1] is True
    assert fast.report.complete
