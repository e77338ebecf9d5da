"""The pass that quantises a fused float32 graph: which operators, with which integers.

A convolution or classifier is quantised with its residual and activation, and so are the poolings
and additions between such; an operator's result is rounded once, to the scale that calibration
found for it. What stays wider reads ``dequantize`` and is read through ``quantize``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fastres.ir import ops
from fastres.ir.graph import (
    add_constant,
    arguments,
    call,
    constant,
    copy_meta,
    drop_unused_constants,
    label,
    module_of,
    value_of,
)
from fastres.ir.views import AddRelu, Conv2d, GlobalAvgPool, Linear
from fastres.kernels.quantized import output_unit
from fastres.quantization.calibration import Calibration, Quantized
from fastres.quantization.observers import Scale
from fastres.quantization.settings import Quantization
from fastres.quantization.weights import quantized_weights
from fastres.report import Report

aten = torch.ops.aten

LEAST_PER_GROUP = 4
"""Input channels of a group: with fewer, most of a product of four would be zeros."""

ACTIVATIONS = ("none", "relu", "relu6", "hardswish")
"""Those that quantised operators apply."""

LARGEST_SUM = 2**31 - 1


@dataclass(frozen=True)
class Wider:
    """An operator that is not quantised, and why (a sentence)."""

    module: str
    what: str
    reason: str


def refusal(node: fx.Node, settings: Quantization) -> str | None:
    """Why a convolution or classifier of a fused graph stays wider, or None where it does not."""
    if settings.keeps(module_of(node)):
        return "it was asked to stay wider"
    if node.target is ops.conv2d:
        conv = Conv2d.of(node)
        filters = conv.filters
        if filters is None or not conv.has_constants:
            return "its weight is computed from the input"
        if conv.groups > 1 and filters.shape[1] < LEAST_PER_GROUP:
            return f"{filters.shape[1]} channels in a group are too few for int8 kernels"
        names: tuple[str, ...] = conv.activations
        if conv.residual is not None and not _same_size(conv.residual, node):
            return "its residual is broadcast"
    else:
        linear = Linear.of(node)
        filters = linear.filters
        if filters is None or not linear.has_constants:
            return "its weight is computed from the input"
        names = (linear.activation,)
        value = value_of(linear.x)
        if isinstance(value, Tensor) and value.dim() != 2:
            return "its input is no matrix"
    others = [name for name in names if name not in ACTIVATIONS]
    if others:
        return f"int8 kernels do not apply {others[0]}"
    if filters.dtype != torch.float32:
        return f"it computes in {filters.dtype}"
    if filters[0].numel() * 255 * 127 * 2 > LARGEST_SUM:
        return "its sums could overflow 32 bits"
    if not bool(torch.isfinite(filters).all()):
        return "its weights are not finite"
    return None


def candidates(graph: fx.Graph, settings: Quantization) -> list[fx.Node]:
    """The convolutions and classifiers that are quantised."""
    return [
        node
        for node in graph.nodes
        if node.target in (ops.conv2d, ops.linear) and refusal(node, settings) is None
    ]


def observed(graph: fx.Graph, settings: Quantization) -> list[fx.Node]:
    """The values whose ranges the pass may ask for."""
    found: dict[fx.Node, None] = {}
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(value_of(node), Tensor):
            if node.target in (ops.conv2d, ops.linear) and refusal(node, settings) is not None:
                continue
            if node.target in (ops.conv2d, ops.linear, ops.add_relu, ops.global_avg_pool):
                found[node] = None
                for source in node.all_input_nodes:
                    if constant(source) is None and _is_float(source):
                        found[source] = None
    return list(found)


def quantize(
    module: fx.GraphModule, calibration: Calibration, settings: Quantization
) -> list[Wider]:
    """Quantise a fused float32 graph in place.

    Returns:
        The convolutions and classifiers that stay wider.
    """
    chosen = set(candidates(module.graph, settings))
    wider = [
        Wider(module_of(node), str(node.target), str(refusal(node, settings)))
        for node in module.graph.nodes
        if node.target in (ops.conv2d, ops.linear) and node not in chosen
    ]
    _Quantizer(module, calibration, settings, chosen).run()
    drop_unused_constants(module)
    module.graph.lint()
    module.recompile()
    return wider


def quantize_and_tell(module: fx.GraphModule, quantized: Quantized, report: Report) -> None:
    """:func:`quantize`, with what was done on the receipt."""
    settings, calibration = quantized.settings, quantized.calibration
    wider = quantize(module, calibration, settings)
    report.notes += [f"{each.module}: stays wider than int8: {each.reason}" for each in wider]
    report.notes.append(
        f"quantised with the ranges of {calibration.seen.images} images, chosen by "
        f"{settings.observer}"
    )
    report.precision = "int8"
    report.layers[:] = layers(module)


def layers(module: fx.GraphModule) -> list[tuple[str, str, str]]:
    """The receipt's rows: module, operator, and the dtype of its weights where it has some."""
    rows = []
    for node in module.graph.nodes:
        if node.target in ops.REFERENCE and node.target not in (ops.quantize, ops.dequantize):
            weights = [held for arg in arguments(node) if (held := constant(arg)) is not None]
            dtype = str(weights[0].dtype) if weights else ""
            rows.append((module_of(node), str(node.target), dtype))
    return rows


class _Quantizer:
    """Builds the new graph node by node; each value as uint8, as it is, or both, as it is read."""

    def __init__(
        self,
        module: fx.GraphModule,
        calibration: Calibration,
        settings: Quantization,
        chosen: set[fx.Node],
    ) -> None:
        self.module, self.calibration, self.settings = module, calibration, settings
        self.chosen = chosen
        self.graph = fx.Graph(owning_module=module)
        self.plain: dict[fx.Node, fx.Node] = {}
        self.small: dict[fx.Node, tuple[fx.Node, Scale]] = {}

    def run(self) -> None:
        """Replace the module's graph."""
        for node in self.module.graph.nodes:
            rule = self._rule(node)
            if rule is not None:
                rule(node)
            elif node.target in (ops.conv2d, ops.linear) and self._kept_in(node) is not None:
                self._keep_in(node, self._kept_in(node))
            else:
                self.plain[node] = copy_meta(self.graph.node_copy(node, self._plain), node)
        self.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
        self.module.graph = self.graph

    def _rule(self, node: fx.Node) -> Callable[[fx.Node], None] | None:
        if node in self.chosen:
            return self._conv2d if node.target is ops.conv2d else self._linear
        if node.target is ops.add_relu:
            addition = AddRelu.of(node)
            some = addition.x in self.small or addition.y in self.small
            return self._add if some and _same_size(addition.x, addition.y) else None
        if node.target is ops.max_pool2d and arguments(node)[0] in self.small:
            return self._through
        if node.target is ops.global_avg_pool and arguments(node)[0] in self.small:
            return self._mean if self._is_read_quantized(node) else None
        if node.target is aten.flatten.using_ints and arguments(node)[0] in self.small:
            return self._through
        return None

    def _is_read_quantized(self, node: fx.Node) -> bool:
        """Whether a quantised operator reads a value, perhaps through a view."""
        return any(
            user in self.chosen
            or (user.target is aten.flatten.using_ints and self._is_read_quantized(user))
            for user in node.users
        )

    def _plain(self, node: fx.Node) -> fx.Node:
        """A value in the dtype that the float graph has."""
        if node not in self.plain:
            small, scale = self.small[node]
            args = (small, scale.scale, scale.zero_point)
            self.plain[node] = self._call(ops.dequantize, args, node, "float", like=node)
        return self.plain[node]

    def _small(self, node: fx.Node) -> tuple[fx.Node, Scale]:
        """A value as uint8."""
        if node not in self.small:
            scale = self.calibration.scales[node.name]
            args = (self._plain(node), scale.scale, scale.zero_point)
            self.small[node] = (self._call(ops.quantize, args, node, "uint8"), scale)
        return self.small[node]

    def _call(
        self, target: Any, args: tuple[Any, ...], node: fx.Node, suffix: str, like: Any = None
    ) -> fx.Node:
        name = f"{label(node)}_{suffix}" if suffix else label(node)
        new = call(self.graph, target, args, name)
        new.meta["module"] = node.meta.get("module", "")
        value = value_of(node)
        if isinstance(value, Tensor):
            new.meta["val"] = value if like is not None else value.to(torch.uint8)
        return new

    def _keep_small(self, node: fx.Node, target: Any, args: tuple[Any, ...], scale: Scale) -> None:
        self.small[node] = (self._call(target, args, node, ""), scale)

    def _constant(self, name: str, value: Tensor) -> fx.Node:
        return add_constant(self.graph, name, value.contiguous())

    # A ReLU is what the least uint8 does by itself where the zero point is 0, and a ReLU6 the
    # largest too where the range ends there.
    def _result(self, node: fx.Node, activation: str) -> tuple[Scale, str]:
        scale = self.calibration.scales[node.name]
        if activation == "relu" and scale.zero_point == 0:
            return scale, "none"
        if activation == "relu6" and scale.zero_point == 0:
            if scale.scale * 255 > 6.0:
                scale = Scale(float(np.float32(6.0 / 255)), 0)
            return scale, "none"
        return scale, activation

    def _conv2d(self, node: fx.Node) -> None:
        conv = Conv2d.of(node)
        x, x_scale = self._small(conv.x)
        residual, residual_scale = None, Scale(1.0, 0)
        if conv.residual is not None:
            residual, residual_scale = self._small(conv.residual)
        scale, activation = self._result(node, conv.activation)
        unit = output_unit((conv.pre_activation, activation), scale.scale)
        weight, weight_scale, bias = self._weights(node, conv, x_scale, unit)
        args = (
            x, weight, weight_scale, bias, residual, list(conv.stride), list(conv.padding),
            list(conv.dilation), conv.groups, conv.pre_activation, activation,
            x_scale.scale, x_scale.zero_point, residual_scale.scale, residual_scale.zero_point,
            scale.scale, scale.zero_point,
        )  # fmt: skip
        self._keep_small(node, ops.quantized_conv2d, args, scale)

    def _linear(self, node: fx.Node) -> None:
        linear = Linear.of(node)
        x, x_scale = self._small(linear.x)
        if self._is_read_quantized(node):
            scale, activation = self._result(node, linear.activation)
            unit = output_unit((activation,), scale.scale)
        else:
            scale, activation, unit = None, linear.activation, 1.0
        weight, weight_scale, bias = self._weights(node, linear, x_scale, unit)
        args = (
            x, weight, weight_scale, bias, activation, x_scale.scale, x_scale.zero_point,
            None if scale is None else scale.scale, 0 if scale is None else scale.zero_point,
        )  # fmt: skip
        if scale is None:
            self.plain[node] = copy_meta(self._call(ops.quantized_linear, args, node, ""), node)
        else:
            self._keep_small(node, ops.quantized_linear, args, scale)

    def _weights(
        self, node: fx.Node, weighted: Conv2d | Linear, x_scale: Scale, unit: float
    ) -> tuple[fx.Node, fx.Node, fx.Node]:
        filters = weighted.filters
        assert filters is not None
        bias = None if weighted.bias is None else constant(weighted.bias)
        mean = self.calibration.means.get(weighted.x.name)
        groups = weighted.groups if isinstance(weighted, Conv2d) else 1
        made = quantized_weights(
            filters, bias, x_scale.scale, mean if self.settings.bias_correction else None, groups
        )
        name = str(weighted.weight.target)
        return (
            self._constant(f"{name}_int8", made.weight),
            self._constant(f"{name}_scale", made.scale),
            self._constant(f"{name}_bias", made.bias),
        )

    def _add(self, node: fx.Node) -> None:
        addition = AddRelu.of(node)
        x, x_scale = self._small(addition.x)
        y, y_scale = self._small(addition.y)
        scale, activation = self._result(node, "relu")
        args = (
            x, y, activation, x_scale.scale, x_scale.zero_point, y_scale.scale, y_scale.zero_point,
            scale.scale, scale.zero_point,
        )  # fmt: skip
        self._keep_small(node, ops.quantized_add, args, scale)

    def _mean(self, node: fx.Node) -> None:
        pool = GlobalAvgPool.of(node)
        x, x_scale = self._small(pool.x)
        scale = self.calibration.scales[node.name]
        args = (
            x, pool.keepdim, x_scale.scale, x_scale.zero_point, scale.scale, scale.zero_point
        )  # fmt: skip
        self._keep_small(node, ops.quantized_global_avg_pool, args, scale)

    def _through(self, node: fx.Node) -> None:
        """What moves or compares values: the same operator on uint8, in the same scale."""
        first, *rest = arguments(node)
        x, scale = self._small(first)
        self._keep_small(node, node.target, (x, *rest), scale)

    def _kept_in(self, node: fx.Node) -> torch.dtype | None:
        """The dtype of 16 bits that a module was asked to keep."""
        names = [
            precision
            for name, precision in self.settings.keep.items()
            if module_of(node) == name or module_of(node).startswith(f"{name}.")
        ]
        return torch.bfloat16 if names[-1:] == ["bf16"] else None

    def _keep_in(self, node: fx.Node, dtype: torch.dtype | None) -> None:
        assert dtype is not None

        def cast(source: fx.Node) -> fx.Node:
            held = constant(source)
            if held is not None:
                return self._constant(f"{source.target}_{_short(dtype)}", held.to(dtype))
            new = self.graph.call_function(aten.to.dtype, (self._plain(source), dtype))
            new.meta["module"] = node.meta.get("module", "")
            return new

        kept = self.graph.node_copy(node, cast)
        kept.meta = dict(node.meta)
        back = self.graph.call_function(aten.to.dtype, (kept, torch.float32))
        self.plain[node] = copy_meta(back, node)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _is_float(node: fx.Node) -> bool:
    value = value_of(node)
    if value is None:  # a cast of the last pass
        return node.op == "call_function"
    return isinstance(value, Tensor) and value.is_floating_point()


def _same_size(one: fx.Node, other: fx.Node) -> bool:
    a, b = value_of(one), value_of(other)
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.dim() != b.dim():
        return False
    return all(str(x) == str(y) for x, y in zip(a.shape, b.shape, strict=True))
