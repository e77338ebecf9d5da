"""Number by number: functions, sums, products, scales, all as the library's one operation ``map``.

What several of them are together is :mod:`fastres.runtime.native.fuse_maps`'s to find.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fastres.ir import ops
from fastres.ir.graph import arguments, constant
from fastres.ir.views import AddRelu, ScaleShift
from fastres.runtime.native.functions import FUNCTIONS, NONE, Function, function_of, slopes_of
from fastres.runtime.native.operations import Named
from fastres.runtime.native.subgraph_builder import Facts, Rule, SubgraphBuilder, is_batch, sizes

aten = torch.ops.aten

FLOATS = (torch.float32, torch.bfloat16)


@dataclass
class _Map:
    """The arguments of a map, as nodes: see ``FR_MAP`` in ``kernels/cpu/native.h``."""

    x: fx.Node
    scale: Named | None = None
    shift: Named | None = None
    factor: fx.Node | None = None
    residual: fx.Node | None = None
    residual_multiplier: float = 1.0
    after: Function = NONE
    slopes: Named | None = None

    @property
    def operands(self) -> list[fx.Node]:
        """The activations that it reads."""
        return [node for node in (self.x, self.factor, self.residual) if node is not None]


@dataclass
class _Reader:
    """Reads one node's arguments; what it cannot read it says in ``problem``."""

    node: fx.Node
    facts: Facts
    problem: str = field(default="", init=False)

    def map(self) -> _Map | None:
        """The node as a map, or None."""
        node = self.node
        if node.target is ops.scale_shift:
            view = ScaleShift.of(node)
            scale, shift = self._constant(view.scale), self._constant(view.shift)
            if scale is None or shift is None:
                return None
            return _Map(view.x, scale, shift, after=Function(view.activation))
        if node.target is ops.add_relu:
            addition = AddRelu.of(node)
            return _Map(addition.x, residual=addition.y, after=Function("relu"))
        if node.target in FUNCTIONS:
            return self._function()
        return self._arithmetic()

    def _function(self) -> _Map | None:
        function = function_of(self.node)
        if function is None:
            self._fail("the native engine has no such function")
            return None
        found = _Map(arguments(self.node)[0], after=function)
        if function.name == "prelu":
            slopes = slopes_of(self.node)
            found.slopes = None if slopes is None else self._constant(self.node.args[1], True)
            if found.slopes is None:
                self._fail("its slopes are computed from the input")
                return None
        return found

    def _arithmetic(self) -> _Map | None:
        one, other, *more = arguments(self.node)
        sign = -1.0 if self.node.target in _SUBTRACTIONS else 1.0
        alpha = self.node.kwargs.get("alpha", more[0] if more else 1)
        if self.node.kwargs.keys() - {"alpha"} or not isinstance(alpha, (int, float)):
            self._fail("the native engine has no such form of it")
            return None
        sign *= alpha
        if self.node.target is aten.rsub.Scalar:  # other - alpha * one
            scale, shift = self._constant(-alpha), self._constant(other)
            return None if scale is None or shift is None else _Map(one, scale=scale, shift=shift)
        if self._is_activation(one) and self._is_activation(other):
            if self.node.target in _PRODUCTS:
                return _Map(one, factor=other)
            if self.node.target in _SUMS:
                return _Map(one, residual=other, residual_multiplier=sign)
            self._fail("the native engine divides by constants only")
            return None
        if self._is_activation(one):
            number = self._constant(other)
            if number is None:
                return None
            name, value = number
            if self.node.target in _PRODUCTS:
                return _Map(one, scale=number)
            if self.node.target in _QUOTIENTS:
                return _Map(one, scale=(f"1 / {name}", 1.0 / value.double()))
            return _Map(one, shift=number if sign == 1.0 else (f"{sign} * {name}", sign * value))
        if self._is_activation(other) and self.node.target in (*_PRODUCTS, *_SUMS):
            number = self._constant(one)
            if number is None:
                return None
            if self.node.target in _PRODUCTS:
                return _Map(other, scale=number)
            if sign == 1.0:
                return _Map(other, shift=number)
            scale = self._constant(sign)
            return _Map(other, scale=scale, shift=number)
        self._fail("the native engine has no such form of it")
        return None

    def _is_activation(self, argument: Any) -> bool:
        return isinstance(argument, fx.Node) and constant(argument) is None

    def _constant(self, argument: Any, is_list: bool = False) -> Named | None:
        """A number, or a constant of one number or one for each channel, as [C].

        Args:
            is_list: it is [C] whatever the dimensions of the result.
        """
        channels = sizes(self.facts[self.node])[0]
        if isinstance(argument, (int, float)):
            value = torch.full((channels,), argument, dtype=torch.float64, device="cpu")
            return f"number {argument!r} for {channels}", value
        tensor = constant(argument)
        if tensor is not None and tensor.is_floating_point():
            shape = tuple(tensor.shape)
            if not is_list and self.node.target is not ops.scale_shift:
                shape = (1,) * (self.facts[self.node].dim() - len(shape)) + shape
                across = (*shape[:1], *shape[2:]) if len(shape) in (2, 4) else shape
                if any(size != 1 for size in across):
                    self._fail("its constant has a number for each pixel")
                    return None
            if tensor.numel() in (1, channels):
                flat = tensor.detach().reshape(-1).expand(channels)
                return f"{argument.target} for {channels}", flat
        self._fail("an argument is neither an activation nor a constant for each channel")
        return None

    def _fail(self, problem: str) -> None:
        self.problem = problem


_SUMS = (aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar, aten.rsub.Scalar)
_SUBTRACTIONS = (aten.sub.Tensor, aten.sub.Scalar)
_PRODUCTS = (aten.mul.Tensor, aten.mul.Scalar)
_QUOTIENTS = (aten.div.Tensor, aten.div.Scalar)


def _refusal(node: fx.Node, facts: Facts) -> str | None:
    fact = facts[node]
    if not is_batch(fact) or fact.dtype not in FLOATS:
        return "its result is no batch of images or vectors"
    reader = _Reader(node, facts)
    found = reader.map()
    if found is None:
        return reader.problem
    for operand in found.operands:
        given = facts[operand]
        if not isinstance(given, Tensor) or not is_batch(given) or given.dtype != fact.dtype:
            return "an argument is no batch of images or vectors of the same dtype"
        if given.dim() != fact.dim() or given.shape[0] != fact.shape[0]:
            return "an argument stands for all images"
        if sizes(given) != sizes(fact) and fact.dim() == 3:
            return "an argument is broadcast"
    return None


def _lower(builder: SubgraphBuilder, node: fx.Node) -> None:
    found = _Reader(node, builder.facts).map()
    assert found is not None
    builder.append(
        "map",
        node,
        found.x,
        scale=found.scale,
        shift=found.shift,
        factor=found.factor,
        residual=found.residual,
        residual_multiplier=found.residual_multiplier,
        after=found.after,
        slopes=found.slopes,
    )


_RULE = Rule(_refusal, _lower)

MAPS: tuple[Any, ...] = (
    ops.scale_shift,
    ops.add_relu,
    *FUNCTIONS,
    *_SUMS,
    *_PRODUCTS,
    *_QUOTIENTS,
)
"""The operators that are maps; what they read may be broadcast."""

RULES: dict[Any, Rule] = dict.fromkeys(MAPS, _RULE)
