"""Rules for the operators that move data and compute little: element-wise ones and poolings.

They have no tactics: their configurations depend on the shape alone. Importing this module imports
Triton.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from fastres.dtypes import FLOATING
from fastres.ir import ops
from fastres.ir.graph import arguments, constant
from fastres.ir.views import AddRelu, GlobalAvgPool, ScaleShift
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.launch.elementwise import add_relu_calls, scale_shift_calls
from fastres.kernels.launch.pooling import (
    avg_pool2d_calls,
    global_avg_pool_calls,
    max_pool2d_calls,
)
from fastres.runtime.triton.plan_builder import PlanBuilder, Rule

aten = torch.ops.aten


def add_relu(builder: PlanBuilder, node: fx.Node) -> bool:
    """``relu(x + y)``, into ``x`` or ``y`` if nobody reads it later."""
    x, y = AddRelu.of(node).args
    facts = [builder.facts[each] for each in (x, y, node)]
    if len({(fact.shape, fact.dtype) for fact in facts}) != 1 or facts[0].dtype not in FLOATING:
        return False
    first, second = builder.input(x), builder.input(y)
    out = builder.output(node)

    def calls(tensors: Mapping[str, Any]) -> list[KernelCall]:
        return add_relu_calls(tensors[first], tensors[second], tensors[out.name])

    step = builder.kernel_step(
        node, [first, second], [out], calls, overwrites=[first, second], tactic="one pass"
    )
    return builder.append(node, step)


def scale_shift(builder: PlanBuilder, node: fx.Node) -> bool:
    """``activation(x * scale + shift)`` per channel, into ``x`` if nobody reads it later."""
    view = ScaleShift.of(node)
    fact = builder.facts[view.x]
    factors = [constant(each) for each in (view.scale, view.shift)]
    if fact.dtype not in FLOATING or fact.dim() not in (2, 4):
        return False  # with other ranks, channels are not innermost in our layout
    if any(factor is None or factor.dtype not in FLOATING for factor in factors):
        return False
    image, out = builder.input(view.x), builder.output(node)
    multiplier, addend = builder.bias(view.scale), builder.bias(view.shift)
    assert multiplier is not None and addend is not None

    def calls(tensors: Mapping[str, Any]) -> list[KernelCall]:
        return scale_shift_calls(
            tensors[image],
            tensors[multiplier.name],
            tensors[addend.name],
            tensors[out.name],
            view.activation,
        )

    step = builder.kernel_step(
        node,
        [image],
        [out],
        calls,
        constants=(multiplier, addend),
        overwrites=[image],
        tactic="one pass",
    )
    return builder.append(node, step)


def max_pool2d(builder: PlanBuilder, node: fx.Node) -> bool:
    """Largest value under each window, of bytes as they are."""
    calls = max_pool2d_calls
    return _pool(builder, node, lambda x, out, *window: calls(x, out, *window), torch.uint8)


def avg_pool2d(builder: PlanBuilder, node: fx.Node) -> bool:
    """Mean under each window: ATen's operator, whose last arguments may be left out."""
    given = list(arguments(node)[1:])
    defaults = [None, [], [0, 0], False, True, None]
    window = [*given, *defaults[len(given) :]]
    for axis in (0, 1, 2):
        if len(window[axis]) == 1:
            window[axis] = [window[axis][0]] * 2
    return _pool(builder, node, lambda x, out, *_: avg_pool2d_calls(x, out, *window))


def _pool(builder: PlanBuilder, node: fx.Node, launch: Any, *others: torch.dtype) -> bool:
    """``others``: dtypes beside floats that the kernel takes."""
    x, *window = arguments(node)
    fact = builder.facts[x]
    if fact.dim() != 4 or fact.dtype not in (*FLOATING, *others):
        return False
    given, out = builder.input(x), builder.output(node)

    def calls(tensors: Mapping[str, Any]) -> list[KernelCall]:
        found: list[KernelCall] = launch(tensors[given], tensors[out.name], *window)
        return found

    return builder.append(node, builder.kernel_step(node, [given], [out], calls, tactic="one pass"))


def global_avg_pool(builder: PlanBuilder, node: fx.Node) -> bool:
    """Mean over height and width."""
    x = GlobalAvgPool.of(node).x
    fact = builder.facts[x]
    if fact.dim() != 4 or fact.dtype not in FLOATING or 0 in fact.shape[2:]:
        return False
    given, out = builder.input(x), builder.output(node)

    def calls(tensors: Mapping[str, Any]) -> list[KernelCall]:
        return global_avg_pool_calls(tensors[given], tensors[out.name])

    return builder.append(node, builder.kernel_step(node, [given], [out], calls, tactic="one pass"))


SIMPLE_RULES: Mapping[Any, Rule] = {
    ops.add_relu: add_relu,
    ops.scale_shift: scale_shift,
    ops.max_pool2d: max_pool2d,
    ops.global_avg_pool: global_avg_pool,
    aten.avg_pool2d.default: avg_pool2d,
}
"""Operator -> rule."""
