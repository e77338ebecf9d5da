"""Rules for int8's operators: the kernels whose integers are those of the definition.

What no kernel takes runs by the definition in torch, and the receipt says so. Importing this module
imports Triton.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fastres.dtypes import FLOATING
from fastres.ir import ops
from fastres.ir.graph import constant
from fastres.ir.views import (
    Dequantize,
    Quantize,
    QuantizedAdd,
    QuantizedConv2d,
    QuantizedGlobalAvgPool,
    QuantizedLinear,
)
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.launch.quantized_conv2d import (
    Rescaling,
    quantized_conv2d_calls,
    quantized_linear_calls,
    why_not_exact,
    workspace_bytes,
)
from fastres.kernels.launch.quantized_simple import (
    dequantize_calls,
    quantize_calls,
    quantized_add_calls,
    quantized_global_avg_pool_calls,
)
from fastres.kernels.packing import pack_conv2d, pack_linear, pack_quantized_bias
from fastres.kernels.spec import ConvSpec
from fastres.kernels.tuning.conv2d import (
    Conv2dConfig,
    choose_conv2d,
    counters,
    tuned_candidates,
)
from fastres.runtime.triton import configs_interpreted
from fastres.runtime.triton.describe import on_one_line
from fastres.runtime.triton.plan import Constant, KernelStep
from fastres.runtime.triton.plan_builder import PlanBuilder, Rule
from fastres.runtime.triton.tactics import Layer, Tactics

Launch = Callable[[Mapping[str, Any], Conv2dConfig, "Tensor | None", "Tensor | None"], Any]
"""Launches of a convolution for tensors by name, a configuration, workspace and counters."""


class QuantizedRules:
    """Their :attr:`table`, for one model on one GPU."""

    def __init__(self, tactics: Tactics) -> None:
        self.tactics = tactics
        self.table: Mapping[Any, Rule] = {
            ops.quantized_conv2d: self.conv2d,
            ops.quantized_linear: self.linear,
            ops.quantize: quantize,
            ops.dequantize: dequantize,
            ops.quantized_add: add,
            ops.quantized_global_avg_pool: global_avg_pool,
        }

    def conv2d(self, builder: PlanBuilder, node: fx.Node) -> bool:
        """Convolution with bias, residual and activations; into the residual if allowed."""
        conv = QuantizedConv2d.of(node)
        residual = conv.residual
        reason = why_not_exact(*conv.activations)
        if not conv.has_constants or constant(conv.weight_scale) is None:
            reason = "its weight is computed from the input"
        elif residual is not None and builder.facts[residual].shape != builder.facts[node].shape:
            reason = "its residual is broadcast at this size"
        if reason is not None:
            builder.remark(node, "quantised convolution", reason)
            return False
        spec = conv.spec(builder.facts)
        rescaling = Rescaling(
            conv.x_scale,
            conv.x_zero_point,
            conv.scale,
            conv.zero_point,
            conv.residual_scale,
            conv.residual_zero_point,
        )
        packed = builder.weight(
            conv.weight, f"packed {conv.groups} int8", lambda w: pack_conv2d(w, conv.groups)
        )
        bias, multiplier = vectors(
            builder, conv.weight, conv.weight_scale, conv.bias, rescaling, *conv.activations
        )
        image, out = builder.input(conv.x), builder.output(node)
        addend = None if residual is None else builder.input(residual)

        def calls(tensors: Any, config: Any, partial: Any, counting: Any) -> list[KernelCall]:
            return quantized_conv2d_calls(
                tensors[image],
                tensors[packed.name],
                tensors[bias.name],
                tensors[multiplier.name],
                None if addend is None else tensors[addend],
                tensors[out.name],
                spec,
                *conv.activations,
                rescaling,
                config,
                partial,
                counting,
            )

        addition = "" if residual is None else " + residual"
        key = f"quantized_conv2d {on_one_line(spec)} {' '.join(conv.activations)}{addition}"
        overwritten = [] if addend is None else [addend]
        reads, constants = [image, *overwritten], (packed, bias, multiplier)
        return self._decide(builder, node, spec, key, reads, constants, calls, overwritten)

    def linear(self, builder: PlanBuilder, node: fx.Node) -> bool:
        """``activation(x @ weight.T + bias)``, of uint8 or float32."""
        linear = QuantizedLinear.of(node)
        reason = why_not_exact(linear.activation)
        if not linear.has_constants or constant(linear.weight_scale) is None:
            reason = "its weight is computed from the input"
        elif builder.facts[linear.x].dim() != 2:
            reason = "its input is no matrix"
        if reason is not None:
            builder.remark(node, "quantised linear", reason)
            return False
        spec = linear.spec(builder.facts)
        rescaling = Rescaling(linear.x_scale, linear.x_zero_point, linear.scale, linear.zero_point)
        packed = builder.weight(linear.weight, "rows int8", pack_linear)
        bias, multiplier = vectors(
            builder, linear.weight, linear.weight_scale, linear.bias, rescaling, linear.activation
        )
        given, out = builder.input(linear.x), builder.output(node)

        def calls(tensors: Any, config: Any, partial: Any, counting: Any) -> list[KernelCall]:
            return quantized_linear_calls(
                tensors[given],
                tensors[packed.name],
                tensors[bias.name],
                tensors[multiplier.name],
                tensors[out.name],
                linear.activation,
                rescaling,
                config,
                partial,
                counting,
            )

        kind = "float32" if linear.scale is None else "uint8"
        key = f"quantized_linear {spec.n} {spec.c} {spec.k} {linear.activation} {kind}"
        constants = (packed, bias, multiplier)
        return self._decide(builder, node, spec, key, [given], constants, calls, [])

    def _decide(
        self,
        builder: PlanBuilder,
        node: fx.Node,
        spec: ConvSpec,
        key: str,
        reads: list[str],
        constants: tuple[Constant, ...],
        launch: Launch,
        overwrites: list[str],
    ) -> bool:
        """Append the step of the configuration that is chosen, measured or interpreted."""
        out = builder.output(node)

        def step(config: Conv2dConfig) -> KernelStep:
            scratch = builder.scratch(node, workspace_bytes(spec, config), torch.int32)
            zeroed = builder.counters(node, counters(spec, config))

            def calls(tensors: Mapping[str, Any]) -> list[KernelCall]:
                found: list[KernelCall] = launch(
                    tensors,
                    config,
                    tensors[scratch[0].name] if scratch else None,
                    tensors[zeroed[0].name] if zeroed else None,
                )
                return found

            return builder.kernel_step(
                node,
                reads,
                [out],
                calls,
                constants=constants,
                scratch=scratch,
                zeroed=zeroed,
                overwrites=overwrites,
                tactic=on_one_line(config),
            )

        layer = Layer(
            key=key,
            chosen=lambda: choose_conv2d(spec, "int8", self.tactics.gpu),
            interpreted=configs_interpreted.conv2d(spec, "int8"),
            candidates=lambda: tuned_candidates(spec, "int8", self.tactics.gpu),
            step=step,
            libraries={},  # torch has no kernel that rounds as the definition does
            values=builder.value,
        )
        return builder.append(node, self.tactics.decide(layer))


def vectors(
    builder: PlanBuilder,
    weight: fx.Node,
    weight_scale: fx.Node,
    bias: fx.Node,
    rescaling: Rescaling,
    *activations: str,
) -> tuple[Constant, Constant]:
    """Bias and multiplier of each filter, as kernels read them."""
    zero_point, unit = rescaling.x_zero_point, rescaling.unit(*activations)
    shifted = builder.weights(
        (bias, weight),
        f"bias for zero point {zero_point}",
        lambda bias, weight: pack_quantized_bias(bias, weight, zero_point),
    )
    multiplier = builder.weight(
        weight_scale,
        f"multipliers {rescaling.x_scale!r} {unit!r}",
        lambda scale: rescaling.multipliers(scale, *activations),
    )
    return shifted, multiplier


def quantize(builder: PlanBuilder, node: fx.Node) -> bool:
    """Floats into uint8."""
    view = Quantize.of(node)
    if builder.facts[view.x].dtype not in FLOATING:
        builder.remark(node, "quantize", f"the kernels have no {builder.facts[view.x].dtype}")
        return False
    given, out = builder.input(view.x), builder.output(node)

    def calls(tensors: Mapping[str, Any]) -> list[KernelCall]:
        return quantize_calls(tensors[given], tensors[out.name], view.scale, view.zero_point)

    return _one_pass(builder, node, [given], calls)


def dequantize(builder: PlanBuilder, node: fx.Node) -> bool:
    """uint8 into float32."""
    view = Dequantize.of(node)
    given, out = builder.input(view.q), builder.output(node)

    def calls(tensors: Mapping[str, Any]) -> list[KernelCall]:
        return dequantize_calls(tensors[given], tensors[out.name], view.scale, view.zero_point)

    return _one_pass(builder, node, [given], calls)


def add(builder: PlanBuilder, node: fx.Node) -> bool:
    """``activation(x + y)`` of uint8, into ``x`` or ``y`` if nobody reads it later."""
    view = QuantizedAdd.of(node)
    reason = why_not_exact(view.activation)
    if builder.facts[view.x].shape != builder.facts[view.y].shape:
        reason = "its summands have different shapes"
    if reason is not None:
        builder.remark(node, "quantised addition", reason)
        return False
    first, second, out = builder.input(view.x), builder.input(view.y), builder.output(node)

    def calls(tensors: Mapping[str, Any]) -> list[KernelCall]:
        return quantized_add_calls(
            tensors[first],
            tensors[second],
            tensors[out.name],
            view.activation,
            view.x_scale,
            view.x_zero_point,
            view.y_scale,
            view.y_zero_point,
            view.scale,
            view.zero_point,
        )

    return _one_pass(builder, node, [first, second], calls, [first, second])


def global_avg_pool(builder: PlanBuilder, node: fx.Node) -> bool:
    """Mean over height and width of uint8."""
    view = QuantizedGlobalAvgPool.of(node)
    given, out = builder.input(view.x), builder.output(node)

    def calls(tensors: Mapping[str, Any]) -> list[KernelCall]:
        return quantized_global_avg_pool_calls(
            tensors[given],
            tensors[out.name],
            view.x_scale,
            view.x_zero_point,
            view.scale,
            view.zero_point,
        )

    return _one_pass(builder, node, [given], calls)


def _one_pass(
    builder: PlanBuilder,
    node: fx.Node,
    reads: list[str],
    calls: Callable[[Mapping[str, Any]], list[KernelCall]],
    overwrites: list[str] | None = None,
) -> bool:
    out = builder.output(node)
    return builder.append(
        node,
        builder.kernel_step(
            node, reads, [out], calls, overwrites=overwrites or [], tactic="one pass"
        ),
    )
