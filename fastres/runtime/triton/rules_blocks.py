"""Rules for the operators that :mod:`~fastres.runtime.triton.fuse_blocks` makes of several layers.

Importing this module imports Triton.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from fastres.dtypes import FLOATING
from fastres.ir import ops
from fastres.ir.views import Bottleneck, PoolLinear, Stem
from fastres.kernels.launch.bottleneck import (
    bottleneck_calls,
    pack_bottleneck,
    pack_pointwise,
)
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.launch.pool_linear import pool_linear_calls
from fastres.kernels.launch.stem import pack_stem, stem_calls
from fastres.kernels.packing import pack_linear
from fastres.kernels.tuning import bottleneck as bottleneck_configs
from fastres.kernels.tuning import stem as stem_configs
from fastres.kernels.tuning.pooling import (
    PoolLinearConfig,
    choose_pool_linear,
    pool_linear_candidates,
)
from fastres.runtime.triton import configs_interpreted
from fastres.runtime.triton.arithmetic import Arithmetic
from fastres.runtime.triton.describe import on_one_line
from fastres.runtime.triton.plan import Constant, KernelStep
from fastres.runtime.triton.plan_builder import PlanBuilder, Rule
from fastres.runtime.triton.tactics import Layer, Tactics


class BlockRules:
    """Their :attr:`table`, for one model on one GPU."""

    def __init__(self, tactics: Tactics, arithmetic: Arithmetic) -> None:
        self.tactics = tactics
        self.arithmetic = arithmetic
        self.table: Mapping[Any, Rule] = {
            ops.bottleneck: self.bottleneck,
            ops.conv2d_max_pool2d: self.stem,
            ops.pool_linear: self.pool_linear,
        }

    def bottleneck(self, builder: PlanBuilder, node: fx.Node) -> bool:
        """The tail of a bottleneck; ``wide`` into the residual if allowed."""
        block = Bottleneck.of(node)
        shortcut, following, groups = block.shortcut_weight, block.next_weight, block.groups
        facts = builder.facts
        spec = block.spec(facts)
        precision = self.arithmetic.of_convolution(facts[block.weight].dtype)
        tensors_read = (block.x, block.residual, block.weight, block.expand_weight)
        dtypes = {
            facts[each].dtype for each in (*tensors_read, shortcut, following) if each is not None
        }
        reason = bottleneck_configs.supports(spec)
        chosen = None
        if reason is None and not self.tactics.interpreted:
            chosen = bottleneck_configs.choose_bottleneck(spec, precision, self.tactics.gpu)
            if chosen is None:
                reason = f"its tiles do not fit on {self.tactics.gpu.name}"
        if len(dtypes) > 1 or facts[block.x].dtype not in FLOATING:
            reason = f"the kernels do not take {' and '.join(sorted(map(str, dtypes)))}"
        if reason is not None:
            builder.remark(node, "bottleneck", reason)
            return False
        form = f"bottleneck, {groups} groups, {precision}"
        packed = builder.weight(block.weight, form, lambda w: pack_bottleneck(w, groups, precision))

        def pointwise(filters: fx.Node) -> Constant:
            return builder.weight(
                filters, f"pointwise {precision}", lambda w: pack_pointwise(w, precision)
            )

        wide = pointwise(block.expand_weight)
        shortcut_weight = None if shortcut is None else pointwise(shortcut)
        head = None if following is None else pointwise(following)
        biases = [builder.bias(each) for each in (block.bias, block.expand_bias, block.next_bias)]
        image, identity = builder.input(block.x), builder.input(block.residual)
        outs = [builder.output(node, 0)]
        if following is not None:
            outs.append(builder.output(node, 1))

        def step(config: bottleneck_configs.BottleneckConfig) -> KernelStep:
            def calls(tensors: Mapping[str, Any]) -> list[KernelCall]:
                first, second, third = (_read(tensors, each) for each in biases)
                return bottleneck_calls(
                    tensors[image],
                    tensors[packed.name],
                    first,
                    _read(tensors, wide),
                    second,
                    tensors[identity],
                    _read(tensors, shortcut_weight),
                    _read(tensors, head),
                    third,
                    tensors[outs[0].name],
                    tensors[outs[1].name] if len(outs) > 1 else None,
                    spec,
                    config,
                    precision,
                )

            return builder.kernel_step(
                node,
                [image, identity],
                outs,
                calls,
                constants=(packed, wide, shortcut_weight, head, *biases),
                # A shortcut reads other pixels of the residual than its program writes.
                overwrites=[identity] if shortcut is None else [],
                tactic=on_one_line(config),
            )

        gpu = self.tactics.gpu
        layer = Layer(
            key=f"bottleneck {on_one_line(spec)} {precision}",
            chosen=lambda: chosen,
            interpreted=configs_interpreted.bottleneck(spec),
            candidates=lambda: sorted(
                bottleneck_configs.candidates(spec, precision, gpu),
                key=lambda config: (
                    bottleneck_configs.estimate_bottleneck(spec, config, precision, gpu).seconds
                ),
            ),
            step=step,
            libraries={},
            values=builder.value,
        )
        return builder.append(node, self.tactics.decide(layer))

    def stem(self, builder: PlanBuilder, node: fx.Node) -> bool:
        """Convolution and max-pool; of pixels as they come, their normalisation too."""
        view = Stem.of(node)
        fact, filters, uint8 = builder.facts[view.x], view.filters, view.takes_bytes
        assert filters is not None
        spec = view.spec(builder.facts)
        precision = self.arithmetic.of_convolution(filters.dtype)
        gpu = self.tactics.gpu
        reason = stem_configs.supports(spec)
        chosen = None
        if reason is None and not self.tactics.interpreted:
            chosen = stem_configs.choose_stem(spec, precision, gpu)
            if chosen is None:
                reason = f"its tiles do not fit on {gpu.name}"
        expected = torch.uint8 if uint8 else filters.dtype
        if filters.dtype not in FLOATING or fact.dtype != expected:
            reason = f"the kernels do not take {fact.dtype} with weights of {filters.dtype}"
        if reason is not None:
            builder.remark(node, "convolution and max-pool", reason)
            return False
        form = f"stem of {on_one_line(spec)}, {precision}"
        packed = builder.weight(view.weight, form, lambda w: pack_stem(w, spec, precision))
        vectors = [builder.bias(each) for each in (view.bias, view.scale, view.shift)]
        image = builder.pixels(view.x) if uint8 else builder.input(view.x)
        out = builder.output(node)

        def step(config: stem_configs.StemConfig) -> KernelStep:
            def calls(tensors: Mapping[str, Any]) -> list[KernelCall]:
                addend, *normalisation = (_read(tensors, each) for each in vectors)
                return stem_calls(
                    tensors[image],
                    tensors[packed.name],
                    addend,
                    tensors[out.name],
                    spec,
                    view.activation,
                    config,
                    precision,
                    *normalisation,
                )

            return builder.kernel_step(
                node,
                [image],
                [out],
                calls,
                constants=(packed, *vectors),
                tactic=on_one_line(config),
            )

        layer = Layer(
            key=f"stem {on_one_line(spec)} {precision} {view.activation}",
            chosen=lambda: chosen,
            candidates=lambda: sorted(
                stem_configs.candidates(spec, precision, gpu),
                key=lambda config: stem_configs.estimate_stem(spec, config, precision, gpu).seconds,
            ),
            interpreted=configs_interpreted.stem(spec),
            step=step,
            libraries={},
            values=builder.value,
        )
        return builder.append(node, self.tactics.decide(layer))

    def pool_linear(self, builder: PlanBuilder, node: fx.Node) -> bool:
        """The classifier on mean channels."""
        view = PoolLinear.of(node)
        fact, filters = builder.facts[view.x], view.filters
        if filters is None or fact.dtype not in FLOATING or filters.dtype != fact.dtype:
            return False
        spec = view.spec(builder.facts)
        rows = builder.weight(view.weight, "rows", pack_linear)
        shift = builder.bias(view.bias)
        image, out = builder.input(view.x), builder.output(node)

        def step(config: PoolLinearConfig) -> KernelStep:
            def calls(tensors: Mapping[str, Any]) -> list[KernelCall]:
                return pool_linear_calls(
                    tensors[image],
                    tensors[rows.name],
                    _read(tensors, shift),
                    tensors[out.name],
                    view.activation,
                    config,
                )

            return builder.kernel_step(
                node, [image], [out], calls, constants=(rows, shift), tactic=on_one_line(config)
            )

        layer = Layer(
            key=f"pool_linear {on_one_line(spec)} {fact.dtype} {view.activation}",
            chosen=lambda: choose_pool_linear(spec, self.tactics.gpu),
            interpreted=configs_interpreted.pool_linear(spec),
            candidates=lambda: pool_linear_candidates(spec, self.tactics.gpu),
            step=step,
            libraries={},
            values=builder.value,
        )
        return builder.append(node, self.tactics.decide(layer))


def _read(tensors: Mapping[str, Any], weight: Constant | None) -> Any:
    return None if weight is None else tensors[weight.name]
