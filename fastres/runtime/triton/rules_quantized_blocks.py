"""Rules for int8's blocks that :mod:`~fastres.runtime.triton.fuse_blocks` makes.

Importing this module imports Triton.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from fastres.ir import ops
from fastres.ir.graph import constant
from fastres.ir.views import QuantizedBottleneck, QuantizedStem
from fastres.kernels.launch.bottleneck import pack_bottleneck, pack_pointwise
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.launch.quantized_bottleneck import (
    PRECISION,
    BlockRescaling,
    Filters,
    quantized_bottleneck_calls,
)
from fastres.kernels.launch.quantized_conv2d import Rescaling, why_not_exact
from fastres.kernels.launch.quantized_stem import quantized_stem_calls
from fastres.kernels.launch.stem import pack_stem
from fastres.kernels.tuning import bottleneck as bottleneck_configs
from fastres.kernels.tuning import stem as stem_configs
from fastres.runtime.triton import configs_interpreted
from fastres.runtime.triton.describe import on_one_line
from fastres.runtime.triton.plan import Constant, KernelStep
from fastres.runtime.triton.plan_builder import PlanBuilder, Rule
from fastres.runtime.triton.rules_quantized import vectors
from fastres.runtime.triton.tactics import Layer, Tactics


class QuantizedBlockRules:
    """Their :attr:`table`, for one model on one GPU."""

    def __init__(self, tactics: Tactics) -> None:
        self.tactics = tactics
        self.table: Mapping[Any, Rule] = {
            ops.quantized_bottleneck: self.bottleneck,
            ops.quantized_conv2d_max_pool2d: self.stem,
        }

    def bottleneck(self, builder: PlanBuilder, node: fx.Node) -> bool:
        """The tail of a bottleneck; ``wide`` into the residual if allowed."""
        block, gpu = QuantizedBottleneck.of(node), self.tactics.gpu
        spec = block.spec(builder.facts)
        reason = bottleneck_configs.supports(spec)
        chosen = None
        if reason is None and not self.tactics.interpreted:
            chosen = bottleneck_configs.choose_bottleneck(spec, PRECISION, gpu)
            if chosen is None:
                reason = f"its tiles do not fit on {gpu.name}"
        if reason is not None:
            builder.remark(node, "quantised bottleneck", reason)
            return False
        has_shortcut = block.shortcut_weight is not None
        rescaling = BlockRescaling.of(block.scales, block.zero_points, has_shortcut)
        groups = block.groups

        def pointwise(weight: Any, scale: Any, bias: Any, unit: Rescaling) -> _Constants | None:
            if weight is None:
                return None
            packed = builder.weight(weight, "pointwise int8", pack_pointwise)
            return packed, *vectors(builder, weight, scale, bias, unit, "none", "relu")

        conv: _Constants = (
            builder.weight(
                block.weight,
                f"bottleneck, {groups} groups, int8",
                lambda w: pack_bottleneck(w, groups),
            ),
            *vectors(
                *(builder, block.weight, block.weight_scale, block.bias, rescaling.conv),
                *("none", "relu"),
            ),
        )
        products = [
            conv,
            pointwise(
                *(block.expand_weight, block.expand_weight_scale, block.expand_bias),
                rescaling.expand,
            ),
            pointwise(
                *(block.shortcut_weight, block.shortcut_weight_scale, block.shortcut_bias),
                rescaling.shortcut,
            ),
            pointwise(
                *(block.next_weight, block.next_weight_scale, block.next_bias),
                rescaling.following,
            ),
        ]
        image, identity = builder.input(block.x), builder.input(block.residual)
        outs = [builder.output(node, index) for index in range(1 if spec.next_k is None else 2)]

        def step(config: bottleneck_configs.BottleneckConfig) -> KernelStep:
            def calls(tensors: Mapping[str, Any]) -> list[KernelCall]:
                first, expand, shortcut, following = (
                    None if each is None else Filters(*(tensors[part.name] for part in each))
                    for each in products
                )
                assert first is not None and expand is not None
                return quantized_bottleneck_calls(
                    tensors[image],
                    first,
                    expand,
                    tensors[identity],
                    shortcut,
                    following,
                    tensors[outs[0].name],
                    tensors[outs[1].name] if len(outs) > 1 else None,
                    spec,
                    rescaling,
                    config,
                )

            return builder.kernel_step(
                node,
                [image, identity],
                outs,
                calls,
                constants=[part for each in products if each is not None for part in each],
                # A shortcut reads other pixels of the residual than its program writes.
                overwrites=[] if has_shortcut else [identity],
                tactic=on_one_line(config),
            )

        layer = Layer(
            key=f"quantized_bottleneck {on_one_line(spec)}",
            chosen=lambda: chosen,
            interpreted=configs_interpreted.bottleneck(spec, PRECISION),
            candidates=lambda: sorted(
                bottleneck_configs.candidates(spec, PRECISION, gpu),
                key=lambda config: (
                    bottleneck_configs.estimate_bottleneck(spec, config, PRECISION, gpu).seconds
                ),
            ),
            step=step,
            libraries={},  # torch has no kernel that rounds as the definition does
            values=builder.value,
        )
        return builder.append(node, self.tactics.decide(layer))

    def stem(self, builder: PlanBuilder, node: fx.Node) -> bool:
        """Convolution and max-pool."""
        view, gpu = QuantizedStem.of(node), self.tactics.gpu
        spec = view.spec(builder.facts)
        reason = stem_configs.supports(spec)
        chosen = None
        if reason is None and not self.tactics.interpreted:
            chosen = stem_configs.choose_stem(spec, PRECISION, gpu)
            if chosen is None:
                reason = f"its tiles do not fit on {gpu.name}"
        if not view.has_constants or constant(view.weight_scale) is None:
            reason = "its weight is computed from the input"
        reason = reason or why_not_exact(view.activation)
        if reason is not None:
            builder.remark(node, "quantised convolution and max-pool", reason)
            return False
        rescaling = Rescaling(view.x_scale, view.x_zero_point, view.scale, view.zero_point)
        form = f"stem of {on_one_line(spec)}, int8"
        packed = builder.weight(view.weight, form, lambda w: pack_stem(w, spec))
        bias, multiplier = vectors(
            *(builder, view.weight, view.weight_scale, view.bias, rescaling),
            *("none", view.activation),
        )
        image, out = builder.input(view.x), builder.output(node)

        def step(config: stem_configs.StemConfig) -> KernelStep:
            def calls(tensors: Mapping[str, Any]) -> list[KernelCall]:
                return quantized_stem_calls(
                    tensors[image],
                    tensors[packed.name],
                    tensors[bias.name],
                    tensors[multiplier.name],
                    tensors[out.name],
                    spec,
                    view.activation,
                    rescaling,
                    config,
                )

            return builder.kernel_step(
                node,
                [image],
                [out],
                calls,
                constants=(packed, bias, multiplier),
                tactic=on_one_line(config),
            )

        layer = Layer(
            key=f"quantized_stem {on_one_line(spec)} {view.activation}",
            chosen=lambda: chosen,
            interpreted=configs_interpreted.stem(spec),
            candidates=lambda: sorted(
                stem_configs.candidates(spec, PRECISION, gpu),
                key=lambda config: stem_configs.estimate_stem(spec, config, PRECISION, gpu).seconds,
            ),
            step=step,
            libraries={},  # torch has no kernel that rounds as the definition does
            values=builder.value,
        )
        return builder.append(node, self.tactics.decide(layer))


_Constants = tuple[Constant, Constant, Constant]
"""Weight, bias and multiplier of a convolution."""
