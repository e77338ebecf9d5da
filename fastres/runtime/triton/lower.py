"""The plan of a graph for inputs of some shapes, which needs no GPU: block fusing, then planning.

What plans are counted, read and inspected by; the engine binds them to memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fastres.ir import ops
from fastres.ir.graph import arguments, constant, is_call
from fastres.ir.propagate import propagate
from fastres.kernels.launch.call import KernelCall
from fastres.report import Remark
from fastres.runtime.triton import fill_channels, fuse_blocks
from fastres.runtime.triton.arithmetic import Arithmetic
from fastres.runtime.triton.fusion_policy import by_model, filling_pays, if_supported, pays_wherever
from fastres.runtime.triton.plan import KernelStep, Plan
from fastres.runtime.triton.plan_builder import PlanBuilder
from fastres.runtime.triton.tactics import Tactics


@dataclass
class Planned:
    """A plan, with the graph that it is for.

    Attributes:
        module: the block-fused graph; owns the plan's constants.
        plan: the plan.
        unfused: blocks that were not fused, and why.
    """

    module: fx.GraphModule
    plan: Plan
    unfused: list[Remark]

    def calls(self) -> dict[int, list[KernelCall]]:
        """The launches of each step, built on tensors without memory: to be counted and read."""
        nowhere = torch.empty(0, dtype=torch.uint8, device="meta")
        tensors: dict[str, Any] = {
            name: value.within(nowhere, 0) for name, value in self.plan.values.items()
        }
        found: dict[int, list[KernelCall]] = {}
        for number, step in enumerate(self.plan.steps):
            for weight in step.constants:
                sources = (getattr(self.module, name).to("meta") for name in weight.sources)
                tensors[weight.name] = weight.make(*sources)
            if isinstance(step, KernelStep) and tensors.keys() >= set(step.reads):
                found[number] = step.calls(tensors)
        return found


def plan_for(
    module: fx.GraphModule,
    inputs: Sequence[Any],
    tactics: Tactics,
    numbers: Arithmetic,
    policy: fuse_blocks.FusionPolicy | None = None,
) -> Planned:
    """The plan of a fused graph for inputs of these shapes; reads no data and needs no GPU.

    Args:
        policy: decides which blocks become one kernel; by default the cost model, and under the
            interpreter all do that can.

    Raises:
        InputError: an operator cannot take these sizes.
    """
    from fastres.runtime.triton.rules import Rules

    copied = fuse_blocks.copy(module)
    precision = numbers.of_convolution(main_dtype(module))
    first = "int8" if _is_quantized(module) else precision
    filling = pays_wherever if tactics.interpreted else filling_pays(first, tactics.gpu)
    facts = propagate(copied, inputs)
    if fill_channels.run(copied, facts, filling):
        facts = propagate(copied, inputs)
    if policy is None and tactics.interpreted:
        policy = if_supported
    elif policy is None:
        policy = by_model(precision, tactics.gpu)
    context = fuse_blocks.BlockContext(facts, policy)
    fuse_blocks.run(copied, context)
    builder = PlanBuilder(copied, propagate(copied, inputs))
    if tactics.tuner is None:
        plan = builder.run(Rules(tactics, numbers).table)
    else:
        layers = sum(is_call(node, *_TUNED) for node in copied.graph.nodes)
        with tactics.tuner.shown(copied, layers):
            plan = builder.run(Rules(tactics, numbers).table)
    return Planned(copied, plan, context.refused)


_TUNED = (
    *(ops.conv2d, ops.linear, ops.bottleneck, ops.conv2d_max_pool2d, ops.pool_linear),
    *(ops.quantized_conv2d, ops.quantized_bottleneck, ops.quantized_conv2d_max_pool2d),
    ops.quantized_linear,
)


def main_dtype(module: fx.GraphModule) -> torch.dtype:
    """Dtype of the weight of the first convolution of floats."""
    for node in module.graph.find_nodes(op="call_function", target=ops.conv2d):
        weight = constant(arguments(node)[1])
        if weight is not None:
            return weight.dtype
    return torch.float32


def _is_quantized(module: fx.GraphModule) -> bool:
    """Whether the first convolution is one of integers."""
    convolutions = (n for n in module.graph.nodes if is_call(n, ops.conv2d, ops.quantized_conv2d))
    first = next(convolutions, None)
    return first is not None and first.target is ops.quantized_conv2d
