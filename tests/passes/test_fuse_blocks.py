"""Blocks into one kernel: what is fused, in which form, and every near miss with its sentence."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fastres
from fastres.ir.propagate import propagate
from fastres.kernels.spec import BottleneckSpec, ConvSpec, PoolLinearSpec, StemSpec
from fastres.runtime.triton import fuse_blocks
from tests.support.optimizing import operator_name, optimize
from tests.support.small import Net, conv


def always(spec: fuse_blocks.BlockSpec) -> None:
    return None


class Fused:
    """A network after the pass, and what the pass said."""

    def __init__(
        self, model: nn.Module, x: Tensor, worth: fuse_blocks.FusionPolicy = always
    ) -> None:
        self.model = model.eval()
        self.before = optimize(self.model, x, engine="eager").graph_module
        self.module = fuse_blocks.copy(self.before)
        self.asked: list[fuse_blocks.BlockSpec] = []

        def ask(spec: fuse_blocks.BlockSpec) -> str | None:
            self.asked.append(spec)
            return worth(spec)

        self.context = fuse_blocks.BlockContext(propagate(self.module, [x]), ask)
        fuse_blocks.run(self.module, self.context)
        self.check(x)

    def check(self, x: Tensor) -> None:
        """The graph computes what it did, and the one it was copied from is as it was."""
        with torch.no_grad():
            got, wanted = self.module(x)[0], self.before(x)[0]
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
        assert not any(name.startswith("bottleneck") for name in names(self.before))

    @property
    def operators(self) -> Counter[str]:
        return Counter(names(self.module)) - Counter({"getitem": 99})

    @property
    def reasons(self) -> list[str]:
        return [str(remark) for remark in self.context.refused]


def names(module: fx.GraphModule) -> list[str]:
    return [operator_name(n) for n in module.graph.nodes if n.op == "call_function"]


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1; named parts so that refusals can be told apart."""

    def __init__(
        self, channels: int, width: int, out: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.reduce = conv(channels, width, 1)
        self.middle = conv(width, width, 3, stride=stride, groups=groups)
        self.expand = conv(width, out, 1)
        project = stride != 1 or channels != out
        self.shortcut = conv(channels, out, 1, stride=stride) if project else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.middle(F.relu(self.reduce(x))))
        kept = x if self.shortcut is None else self.shortcut(x)
        return F.relu(self.expand(y) + kept)


def blocks() -> nn.Module:
    """Three blocks: with shortcut, plain, and with stride and shortcut."""
    return nn.Sequential(
        Bottleneck(8, 4, 16), Bottleneck(16, 4, 16), Bottleneck(16, 8, 32, stride=2)
    )


X = torch.Size((2, 8, 9, 7))


def images() -> Tensor:
    return torch.randn(X)


def test_three_blocks_take_four_launches() -> None:
    fused = Fused(blocks(), images())
    assert fused.operators == {"conv2d": 1, "bottleneck": 3}
    assert fused.reasons == []
    first, second, third = fused.asked
    assert first == BottleneckSpec(
        ConvSpec(2, 4, 9, 7, 4, 3, 3, padding=(1, 1, 1, 1)),
        expand_k=16,
        shortcut=ConvSpec(2, 8, 9, 7, 16, 1, 1),
        next_k=4,
    )
    assert isinstance(second, BottleneckSpec) and isinstance(third, BottleneckSpec)
    assert (second.shortcut, second.next_k) == (None, 8)
    assert third.shortcut == ConvSpec(2, 16, 9, 7, 32, 1, 1, stride=(2, 2))
    assert (third.conv.stride, third.next_k) == ((2, 2), None)


def test_nodes_keep_their_modules_and_what_is_known_about_them() -> None:
    fused = Fused(blocks(), images())
    facts = propagate(fused.module, [images()])
    found = {
        node.meta["module"]: tuple(facts[node].shape)
        for node in fused.module.graph.nodes
        if operator_name(node) == "getitem"
    }
    assert found == {
        "0.expand": (2, 16, 9, 7),
        "1.reduce": (2, 4, 9, 7),
        "1.expand": (2, 16, 9, 7),
        "2.reduce": (2, 8, 9, 7),
        "2.expand": (2, 32, 5, 4),
    }


def test_smaller_forms_are_tried_one_after_the_other() -> None:
    def no_next(spec: fuse_blocks.BlockSpec) -> str | None:
        return "too wide" if isinstance(spec, BottleneckSpec) and spec.next_k else None

    fused = Fused(blocks(), images(), no_next)
    assert fused.operators == {"conv2d": 3, "bottleneck": 3}
    assert fused.reasons == [
        "0.expand: next convolution in the bottleneck's kernel: too wide",
        "1.expand: next convolution in the bottleneck's kernel: too wide",
    ]

    def bare(spec: fuse_blocks.BlockSpec) -> str | None:
        assert isinstance(spec, BottleneckSpec)
        return "too much" if spec.next_k or spec.shortcut else None

    fused = Fused(blocks(), images(), bare)
    assert fused.operators == {"conv2d": 5, "bottleneck": 3}
    assert fused.reasons == [
        "0.expand: shortcut and next convolution in the bottleneck's kernel: too much",
        "1.expand: next convolution in the bottleneck's kernel: too much",
        "2.expand: shortcut in the bottleneck's kernel: too much",
    ]


def test_what_does_not_pay_stays_as_it_is() -> None:
    fused = Fused(blocks(), images(), lambda spec: "modelled as slower")
    assert fused.operators == {"conv2d": 11}
    assert fused.reasons == [f"{i}.expand: bottleneck: modelled as slower" for i in range(3)]


@pytest.mark.parametrize("biases", [(True, True), (True, False), (False, True), (False, False)])
def test_biases_of_expansion_and_shortcut_become_one(biases: tuple[bool, bool]) -> None:
    block = Bottleneck(8, 4, 16)
    assert block.shortcut is not None
    for part, has in zip((block.expand, block.shortcut), biases, strict=True):
        if not has:
            part.bias = None
    fused = Fused(block, images())
    (node,) = (n for n in fused.module.graph.nodes if operator_name(n) == "bottleneck")
    assert (node.args[4] is not None) == any(biases)


def test_a_shortcut_read_by_others_stays_outside() -> None:
    def function(m: Any, x: Tensor) -> Tensor:
        kept = m.block.shortcut(x)
        y = F.relu(m.block.middle(F.relu(m.block.reduce(x))))
        return F.relu(m.block.expand(y) + kept) + torch.tanh(kept)

    fused = Fused(Net(function, block=Bottleneck(8, 4, 16)), images())
    assert fused.operators["conv2d"] == 2
    (spec,) = fused.asked
    assert isinstance(spec, BottleneckSpec) and spec.shortcut is None


def test_the_wide_tensor_may_have_other_readers() -> None:
    def function(m: Any, x: Tensor) -> Tensor:
        wide = m.block(x)
        return F.relu(m.next(wide)) * torch.sigmoid(m.other(wide))

    parts = {"block": Bottleneck(8, 4, 16), "next": conv(16, 4, 1), "other": conv(16, 4, 1)}
    fused = Fused(Net(function, **parts), images())
    assert fused.operators == {"conv2d": 2, "bottleneck": 1, "sigmoid": 1, "mul": 1}


def test_shared_filters_of_the_next_convolution_stay_before_their_readers() -> None:
    def function(m: Any, x: Tensor) -> Tensor:
        early = F.relu(m.shared(x))
        return F.relu(m.shared(m.block(x))) + early

    fused = Fused(Net(function, block=Bottleneck(8, 4, 8), shared=conv(8, 4, 1)), images())
    assert fused.operators["bottleneck"] == 1


NEAR_MISSES: dict[str, tuple[Callable[[Any, Tensor], Tensor], dict[str, nn.Module], str]] = {
    "no ReLU between": (
        lambda m, x: F.relu(m.expand(m.middle(x)) + x),
        {"middle": conv(8, 4), "expand": conv(4, 8, 1)},
        "middle is no plain convolution with ReLU",
    ),
    "another activation between": (
        lambda m, x: F.relu(m.expand(F.silu(m.middle(x))) + x),
        {"middle": conv(8, 4), "expand": conv(4, 8, 1)},
        "middle is no plain convolution with ReLU",
    ),
    "no ReLU at the end": (
        lambda m, x: m.expand(F.relu(m.middle(x))) + x,
        {"middle": conv(8, 4), "expand": conv(4, 8, 1)},
        "it does not end in an addition and a ReLU",
    ),
    "ReLU before the addition": (
        lambda m, x: F.relu(F.relu(m.expand(F.relu(m.middle(x)))) + x),
        {"middle": conv(8, 4), "expand": conv(4, 8, 1)},
        "it does not end in an addition and a ReLU",
    ),
    "1x1 twice": (
        lambda m, x: F.relu(m.expand(F.relu(m.middle(x))) + x),
        {"middle": conv(8, 4, 1), "expand": conv(4, 8, 1)},
        "middle has 1x1 filters too",
    ),
    "stride in the expansion": (
        lambda m, x: F.relu(m.expand(F.relu(m.middle(x))) + m.shrink(x)),
        {
            "middle": conv(8, 4),
            "expand": conv(4, 8, 1, stride=2),
            "shrink": nn.AvgPool2d(2, ceil_mode=True),
        },
        "it has stride (2, 2)",
    ),
    "narrow read twice": (
        lambda m, x: (lambda y: F.relu(m.expand(y) + x) + torch.tanh(y).mean(1, keepdim=True))(
            F.relu(m.middle(x))
        ),
        {"middle": conv(8, 4), "expand": conv(4, 8, 1)},
        "the output of middle is also read by something else",
    ),
    "adds what it convolves": (
        lambda m, x: (lambda y: F.relu(m.expand(y) + y))(F.relu(m.middle(x))),
        {"middle": conv(8, 8), "expand": conv(8, 8, 1)},
        "it adds the output of middle, which it convolves",
    ),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_of_a_bottleneck(name: str) -> None:
    function, parts, reason = NEAR_MISSES[name]
    fused = Fused(Net(function, **parts), images())
    assert fused.operators["bottleneck"] == 0
    assert f"expand: bottleneck: {reason}" in fused.reasons


def test_a_3x3_behind_a_3x3_is_no_bottleneck() -> None:
    net = Net(
        lambda m, x: F.relu(m.second(F.relu(m.first(x))) + x), first=conv(8, 8), second=conv(8, 8)
    )
    fused = Fused(net, images())
    assert fused.operators == {"conv2d": 2}
    assert (fused.asked, fused.reasons) == ([], [])


def test_the_next_convolution_needs_relu_and_stride_one() -> None:
    for part, after in ((conv(16, 4, 1), F.silu), (conv(16, 4, 1, stride=2), F.relu)):
        net = Net(
            lambda m, x, f=after: f(m.next(m.block(x))), block=Bottleneck(8, 4, 16), next=part
        )
        (spec,) = Fused(net, images()).asked
        assert isinstance(spec, BottleneckSpec) and spec.next_k is None


def stem(pool: nn.Module, activation: Any = F.relu, **options: Any) -> nn.Module:
    first = conv(8, 4, **{"kernel": 5, "stride": 2, **options})
    return Net(lambda m, x: m.pool(activation(m.first(x))), first=first, pool=pool)


def test_convolution_and_pooling_become_one() -> None:
    for activation in (F.relu, F.hardswish, lambda y: y):
        fused = Fused(stem(nn.MaxPool2d(3, 2, 1), activation), images())
        assert fused.operators == {"conv2d_max_pool2d": 1}
        (spec,) = fused.asked
        assert isinstance(spec, StemSpec)
        assert (spec.pool_kernel, spec.pool_stride, spec.pool_padding) == ((3, 3), (2, 2), (1, 1))
        (node,) = (n for n in fused.module.graph.nodes if operator_name(n) == "conv2d_max_pool2d")
        assert node.meta["module"] == "first"
        assert tuple(propagate(fused.module, [images()])[node].shape[2:]) == (spec.p, spec.q)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: stem(nn.MaxPool2d(2, ceil_mode=True)), "it has dilation or rounds up"),
        (lambda: stem(nn.MaxPool2d(2, dilation=2)), "it has dilation or rounds up"),
        (lambda: stem(nn.MaxPool2d(2), groups=4), "first has groups or dilation"),
        (lambda: stem(nn.MaxPool2d(2), dilation=2), "first has groups or dilation"),
        (
            lambda: Net(lambda m, x: F.max_pool2d(F.relu(m.first(x) + x), 2), first=conv(8, 8)),
            "first adds a residual",
        ),
        (
            lambda: Net(
                lambda m, x: (lambda y: F.max_pool2d(y, 2).mean((2, 3)) + y.mean((2, 3)))(
                    F.relu(m.first(x))
                ),
                first=conv(8, 8),
            ),
            "the output of first is also read without it",
        ),
    ],
    ids=["ceil", "dilated pooling", "groups", "dilation", "residual", "read twice"],
)
def test_near_misses_of_a_stem(model: Callable[[], nn.Module], reason: str) -> None:
    fused = Fused(model(), torch.randn(2, 8, 15, 13))
    assert fused.operators["conv2d_max_pool2d"] == 0
    assert any(
        re.search(f"max-pool: not in the convolution's kernel: {reason}", given)
        for given in fused.reasons
    ), fused.reasons


def test_pooling_and_classifier_become_one() -> None:
    parts = (conv(8, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    fused = Fused(nn.Sequential(*parts), images())
    assert fused.operators == {"conv2d": 1, "pool_linear": 1}
    assert fused.asked == [PoolLinearSpec(2, 16, 9, 7, 5)]
    fused = Fused(nn.Sequential(*parts), images(), lambda spec: "slower")
    assert fused.operators == {"conv2d": 1, "global_avg_pool": 1, "linear": 1}
    assert fused.reasons == ["3: linear: not in the pooling's kernel: slower"]


def test_a_pooled_vector_read_twice_is_pooled_once() -> None:
    net = Net(
        lambda m, x: (lambda y: m.a(y) + torch.tanh(m.b(y)))(F.relu(m.first(x)).mean((2, 3))),
        first=conv(8, 8),
        a=nn.Linear(8, 5),
        b=nn.Linear(8, 5),
    )
    fused = Fused(net, images())
    assert fused.operators["pool_linear"] == 0
    assert sum("is also read by others" in reason for reason in fused.reasons) == 2


@pytest.mark.campaign
def test_resnet50_is_nineteen_launches_when_everything_fuses() -> None:
    fused = Fused(fastres.models.resnet50(), torch.randn(1, 3, 32, 32))
    assert fused.operators == {
        "conv2d_max_pool2d": 1,
        "conv2d": 1,
        "bottleneck": 16,
        "pool_linear": 1,
    }
    assert fused.reasons == []
