"""Shapes by formula are those that torch gives, and what has no formula is left to torch."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fastres.errors import InputError
from fastres.ir import ops
from fastres.ir.propagate import propagate
from fastres.ir.shapes import _by_formula, _Unusual, shapes


def graph_of(target: Any, x: Tensor, *args: Any) -> fx.GraphModule:
    """One call of ``target`` on an input; tensors among the arguments become constants."""
    module = fx.GraphModule(nn.Module(), fx.Graph())
    image = module.graph.placeholder("x")
    given = []
    for index, value in enumerate(args):
        if isinstance(value, Tensor):
            module.register_buffer(f"c{index}", value)
            value = module.graph.create_node("get_attr", f"c{index}")
        given.append(value)
    module.graph.output((module.graph.call_function(target, (image, *given)),))
    module.recompile()
    return module


def random_call(draw: random.Random) -> tuple[Any, Tensor, tuple[Any, ...]]:
    n, c, h, w = (
        draw.randint(1, 3),
        draw.choice((1, 2, 4)),
        draw.randint(1, 9),
        draw.randint(1, 9),
    )
    x = torch.randn(n, c, h, w)

    def pair(low: int, high: int) -> list[int]:
        return [draw.randint(low, high), draw.randint(low, high)]

    kind = draw.choice(("conv", "pool", "mean", "linear", "scale", "flatten", "cast", "add"))
    if kind == "conv":
        groups = draw.choice([g for g in (1, 2, 4) if c % g == 0])
        k = groups * draw.randint(1, 3)
        weight = torch.randn(k, c // groups, *pair(1, 3))
        sides = pair(0, 2) + pair(0, 2)
        bias = draw.choice((None, torch.randn(k)))
        rest = (pair(1, 3), sides, pair(1, 2), groups, "none", "relu")
        return ops.conv2d, x, (weight, bias, None, *rest)
    if kind == "pool":
        sizes = (pair(1, 3), pair(1, 3), pair(0, 1), pair(1, 2))
        return ops.max_pool2d, x, (*sizes, draw.random() < 0.3)
    if kind == "mean":
        return ops.global_avg_pool, x, (draw.random() < 0.5,)
    if kind == "linear":
        return ops.linear, torch.randn(n, c), (torch.randn(5, c), torch.randn(5), "none")
    if kind == "scale":
        return ops.scale_shift, x, (torch.randn(c), torch.randn(c), "relu")
    if kind == "flatten":
        return torch.ops.aten.flatten.using_ints, x, (1,)
    if kind == "cast":
        return torch.ops.aten.to.dtype, x, (torch.bfloat16,)
    return ops.add_relu, x, (torch.randn(n, c, h, w),)


def test_random_calls_have_torchs_shapes() -> None:
    draw = random.Random(0)
    by_formula = 0
    for _ in range(300):
        target, x, args = random_call(draw)
        module = graph_of(target, x, *args)
        try:
            wanted = propagate(module, [x])
        except InputError:
            with pytest.raises(InputError):
                shapes(module, [x])
            with pytest.raises(_Unusual):
                _by_formula(module, [x])
            continue
        for node, fact in shapes(module, [x]).items():
            assert (fact.shape, fact.dtype) == (wanted[node].shape, wanted[node].dtype), target
        try:
            _by_formula(module, [x])
            by_formula += 1
        except _Unusual:
            continue
    assert by_formula > 200


GEOMETRY = ([1, 1], [0, 0, 0, 0], [1, 1], 1)


@pytest.mark.parametrize(
    ("target", "args"),
    [
        (torch.ops.aten.relu.default, ()),
        (ops.conv2d, (torch.zeros(4, 3, 1, 1), None, None, *GEOMETRY, "none", "none")),
        (ops.add_relu, (torch.zeros(1, 2, 1, 1),)),
        (ops.scale_shift, (torch.zeros(2), torch.zeros(3), "none")),
        (ops.global_avg_pool, (True,)),
    ],
)  # fmt: skip
def test_what_is_unusual_is_left_to_torch(target: Any, args: Any) -> None:
    x = torch.zeros((0, 2, 4, 4) if target is ops.conv2d else (1, 2, 4, 4))
    if target is ops.global_avg_pool:
        x = x.int()
    with pytest.raises(_Unusual):
        _by_formula(graph_of(target, x, *args), [x])
