"""From operators to launches: which kernel computes what, with which weights and configuration.

Importing this module imports Triton.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fastres.dtypes import FLOATING
from fastres.ir import ops
from fastres.ir.views import Conv2d, Linear
from fastres.kernels import packing
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.launch.conv2d import conv2d_calls, workspace_bytes
from fastres.kernels.launch.linear import linear_calls
from fastres.kernels.tuning.boxes import to_try
from fastres.kernels.tuning.conv2d import Conv2dConfig, choose_conv2d, counters
from fastres.runtime.triton import configs_interpreted
from fastres.runtime.triton.arithmetic import Arithmetic
from fastres.runtime.triton.describe import on_one_line
from fastres.runtime.triton.fallback import conv2d as library_conv2d
from fastres.runtime.triton.fallback import fused_conv2d, supports_fused
from fastres.runtime.triton.plan import KernelStep
from fastres.runtime.triton.plan_builder import PlanBuilder, Rule
from fastres.runtime.triton.rules_blocks import BlockRules
from fastres.runtime.triton.rules_quantized import QuantizedRules
from fastres.runtime.triton.rules_quantized_blocks import QuantizedBlockRules
from fastres.runtime.triton.rules_simple import SIMPLE_RULES
from fastres.runtime.triton.tactics import Layer, Library, Tactics


class Rules:
    """The rules of one model on one GPU; :attr:`table` is what the builder takes."""

    def __init__(self, tactics: Tactics, arithmetic: Arithmetic) -> None:
        self.tactics = tactics
        self.arithmetic = arithmetic
        blocks = BlockRules(tactics, arithmetic)
        self.table: Mapping[Any, Rule] = {
            ops.conv2d: self.conv2d,
            ops.linear: self.linear,
            **SIMPLE_RULES,
            **blocks.table,
            **QuantizedRules(tactics).table,
            **QuantizedBlockRules(tactics).table,
        }

    def conv2d(self, builder: PlanBuilder, node: fx.Node) -> bool:
        """Convolution with bias, residual and activations; into the residual if allowed."""
        conv = Conv2d.of(node)
        reason = _why_not(builder, conv)
        if reason is not None:
            builder.remark(node, "convolution", reason)
            return False
        spec = conv.spec(builder.facts)
        precision = self.arithmetic.of_convolution(builder.facts[conv.weight].dtype)
        packed = builder.weight(
            conv.weight,
            f"packed {conv.groups} {precision}",
            lambda w: packing.pack_conv2d(w, conv.groups, precision),
        )
        shift = builder.bias(conv.bias)
        out = builder.output(node)
        image = builder.input(conv.x)
        addend = None if conv.residual is None else builder.input(conv.residual)

        def step(config: Conv2dConfig) -> KernelStep:
            scratch = builder.scratch(node, workspace_bytes(spec, config, precision))
            zeroed = builder.counters(node, counters(spec, config))

            def calls(tensors: Mapping[str, Any]) -> list[KernelCall]:
                return conv2d_calls(
                    tensors[image],
                    tensors[packed.name],
                    None if shift is None else tensors[shift.name],
                    None if addend is None else tensors[addend],
                    tensors[out.name],
                    spec,
                    conv.pre_activation,
                    conv.activation,
                    config,
                    precision,
                    tensors[scratch[0].name] if scratch else None,
                    tensors[zeroed[0].name] if zeroed else None,
                )

            return builder.kernel_step(
                node,
                [image, *([] if addend is None else [addend])],
                [out],
                calls,
                constants=(packed, shift),
                scratch=scratch,
                zeroed=zeroed,
                overwrites=[] if addend is None else [addend],
                tactic=on_one_line(config),
            )

        addition = "" if conv.residual is None else " + residual"
        epilogue = f"{conv.pre_activation} {conv.activation}{addition}"
        layer = Layer(
            key=f"conv2d {on_one_line(spec)} {precision} {epilogue}",
            chosen=lambda: choose_conv2d(spec, precision, self.tactics.gpu),
            interpreted=configs_interpreted.conv2d(spec),
            candidates=lambda: to_try(spec, precision, self.tactics.gpu),
            step=step,
            libraries=self._libraries(builder, conv),
            values=builder.value,
        )
        return builder.append(node, self.tactics.decide(layer))

    def linear(self, builder: PlanBuilder, node: fx.Node) -> bool:
        """``activation(x @ weight.T + bias)``; axes before the last are rows."""
        linear = Linear.of(node)
        filters, fact = linear.filters, builder.facts[linear.x]
        if filters is None or not linear.has_constants:
            builder.remark(node, "linear", "its weight is computed from the input")
            return False
        # Images are channels-last in memory; their last axis is the width.
        if filters.dtype not in FLOATING or fact.dtype != filters.dtype or fact.dim() == 4:
            return False
        spec = linear.spec(builder.facts)
        precision = self.arithmetic.of_product(filters.dtype)
        packed = builder.weight(
            linear.weight, f"rows {precision}", lambda w: packing.pack_linear(w, precision)
        )
        shift = builder.bias(linear.bias)
        out = builder.output(node)
        given = builder.input(linear.x)

        def step(config: Conv2dConfig) -> KernelStep:
            scratch = builder.scratch(node, workspace_bytes(spec, config, precision))
            zeroed = builder.counters(node, counters(spec, config))

            def calls(tensors: Mapping[str, Any]) -> list[KernelCall]:
                return linear_calls(
                    tensors[given].view(spec.n, spec.c),
                    tensors[packed.name],
                    None if shift is None else tensors[shift.name],
                    tensors[out.name].view(spec.n, spec.k),
                    linear.activation,
                    config,
                    precision,
                    tensors[scratch[0].name] if scratch else None,
                    tensors[zeroed[0].name] if zeroed else None,
                )

            return builder.kernel_step(
                node,
                [given],
                [out],
                calls,
                constants=(packed, shift),
                scratch=scratch,
                zeroed=zeroed,
                tactic=on_one_line(config),
            )

        layer = Layer(
            key=f"linear {spec.n} {spec.c} {spec.k} {precision} {linear.activation}",
            chosen=lambda: choose_conv2d(spec, precision, self.tactics.gpu),
            interpreted=configs_interpreted.conv2d(spec),
            candidates=lambda: to_try(spec, precision, self.tactics.gpu),
            step=step,
            libraries={"library": lambda: builder.torch_step(node, tactic="library")},
            values=builder.value,
        )
        return builder.append(node, self.tactics.decide(layer))

    def _libraries(self, builder: PlanBuilder, conv: Conv2d) -> dict[str, Library]:
        """The convolution by torch; fused only where it can be tried out."""
        node = conv.node
        rows = builder.weight(conv.weight, "channels-last", _channels_last)
        found: dict[str, Library] = {
            "library": lambda: builder.torch_step(
                node, library_conv2d, tactic="library", weight=rows
            )
        }
        if torch.version.cuda and supports_fused(conv.padding, *conv.activations):
            found["library, fused"] = lambda: builder.torch_step(
                node, fused_conv2d, tactic="library, fused", weight=rows
            )
        return found


def _why_not(builder: PlanBuilder, conv: Conv2d) -> str | None:
    filters, residual = conv.filters, conv.residual
    if filters is None or not conv.has_constants:
        return "its weight is computed from the input"
    if filters.dtype not in FLOATING:
        return f"the kernels have no {filters.dtype}"
    if residual is not None and builder.facts[residual].shape != builder.facts[conv.node].shape:
        return "its residual is broadcast at this size"
    given = {builder.facts[each].dtype for each in (conv.x, residual) if each is not None}
    if given != {filters.dtype}:
        return f"its tensors are {' and '.join(map(str, given))}, its weight is {filters.dtype}"
    return None


def _channels_last(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last)
