"""The pass that makes float16 of a fused float32 graph, but of what float16 cannot hold.

An operator stays in float32 where calibration saw its values or sums too near float16's end, where
its folded weights do not fit, or where it reads a value that float16 cannot hold. Beside it values
are cast, once each. float32 and not bfloat16: who asks for float16 asks for its 11 bits, of which
bfloat16 has 8, and a few layers cost little. On GPUs torch's flags say whether float32 products are
TF32, which has float16's bits and float32's range.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from fastres.errors import ModelError
from fastres.ir import ops
from fastres.ir.graph import (
    MOVES_DATA,
    add_constant,
    arguments,
    constant,
    copy_meta,
    drop_unused_constants,
    is_added_softmax,
    module_of,
)
from fastres.ir.precision import fits_float16, retype_node
from fastres.quantization.float16_ranges import MARGIN, Float16Ranges, Range
from fastres.quantization.quantize import layers
from fastres.report import Report

aten = torch.ops.aten


def narrow_and_tell(module: fx.GraphModule, ranges: Float16Ranges, report: Report) -> None:
    """:func:`narrow`, with what was done on the receipt."""
    wider = narrow(module, ranges)
    report.notes += [f"{name}: stays in float32: {reason}" for name, reason in wider.items()]
    report.notes.append(
        f"float16 by the ranges of {ranges.seen.images} images, with a factor of {MARGIN:g} to "
        f"spare: {len(wider) or 'no'} layer{'' if len(wider) == 1 else 's'} in float32"
    )
    report.precision = "float16"
    report.layers[:] = layers(module)


def narrow(module: fx.GraphModule, ranges: Float16Ranges) -> dict[str, str]:
    """Make a fused float32 graph float16 in place.

    Returns:
        The modules that stay in float32, in order, each with the reason (a sentence).

    Raises:
        ModelError: the graph has an operator that calibration did not see.
    """
    narrower = _Narrower(module, ranges)
    narrower.run()
    drop_unused_constants(module)
    module.graph.lint()
    module.recompile()
    return narrower.told


class _Narrower:
    """Builds the new graph node by node; each float32 value in float16, as it is, or both.

    Attributes:
        wide, half: what stands for a value that is float32 in the old graph.
        others: what stands for any other.
        narrowed: of these, operators with several results that compute in float16.
        beyond: the values that are read in float32 only.
        told: why a module stays in float32.
    """

    def __init__(self, module: fx.GraphModule, ranges: Float16Ranges) -> None:
        self.module, self.values = module, ranges.values
        self.graph = fx.Graph(owning_module=module)
        self.wide: dict[fx.Node, fx.Node] = {}
        self.half: dict[fx.Node, fx.Node] = {}
        self.others: dict[fx.Node, fx.Node] = {}
        self.narrowed: set[fx.Node] = set()
        self.beyond: set[fx.Node] = set()
        self.told: dict[str, str] = {}

    def run(self) -> None:
        """Replace the module's graph."""
        for node in self.module.graph.nodes:
            if node.op == "call_function":
                self._call(node)
                continue
            new = copy_meta(self.graph.node_copy(node, self._wide), node)
            held = constant(node)
            is_float32 = self._is_float32(node) if held is None else held.dtype == torch.float32
            (self.wide if is_float32 else self.others)[node] = new
            self._look_beyond(node)
            if node in self.beyond:
                self.told["the input"] = str(self._why_values(node))
        self.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
        self.module.graph = self.graph

    def _call(self, node: fx.Node) -> None:
        if node.target in ops.REFERENCE and node.name not in self.values:
            raise ModelError(
                f"{module_of(node)}: calibration has not seen its values, because other weights "
                "made another graph: optimise the model with these weights, with calibration=..."
            )
        self._look_beyond(node)
        wide = self._stays(node)
        # The arithmetic of a scale and shift is float32 whatever it reads.
        as_they_are = arguments(node)[1:3] if node.target is ops.scale_shift else ()

        def read(source: fx.Node) -> fx.Node:
            return self._wide(source) if wide or source in as_they_are else self._half(source)

        new = copy_meta(self.graph.node_copy(node, read), node)
        if is_added_softmax(node):  # probabilities are float32
            self.wide[node] = new
            self.beyond.add(node)
            return
        if not wide:
            retype_node(new, torch.float32, torch.float16)
        if self._is_float32(node):
            (self.wide if wide else self.half)[node] = new
            return
        self.others[node] = new
        if not wide:
            self.narrowed.add(node)

    def _stays(self, node: fx.Node) -> bool:
        """Whether an operator computes in float32; where it decides that itself, it is told."""
        if node.target is operator.getitem:
            return arguments(node)[0] not in self.narrowed
        read = [source for source in node.all_input_nodes if source in self.beyond]
        reasons = [f"it reads {_named(source)}" for source in read if not is_added_softmax(source)]
        reasons += [each for each in (self._why_values(node), self._why_constants(node)) if each]
        if reasons and node.target not in MOVES_DATA:
            self.told.setdefault(module_of(node), ", and ".join(reasons))
        return bool(read or reasons)

    def _is_float32(self, node: fx.Node) -> bool:
        return self.values.get(node.name) is not None

    def _ranges(self, node: fx.Node) -> list[Range]:
        """Of a value, or of all that an operator with several results gives."""
        nodes = [node, *(user for user in node.users if user.target is operator.getitem)]
        return [found for each in nodes if (found := self.values.get(each.name)) is not None]

    def _look_beyond(self, node: fx.Node) -> None:
        held = self.values.get(node.name)
        if held is not None and not held.is_held:
            self.beyond.add(node)

    def _why_values(self, node: fx.Node) -> str | None:
        return next((each.reason for each in self._ranges(node) if each.reason), None)

    def _why_constants(self, node: fx.Node) -> str | None:
        if node.target is ops.scale_shift:
            return None
        for source in node.all_input_nodes:
            held = constant(source)
            if held is not None and held.dtype == torch.float32 and not fits_float16(held):
                return (
                    f"float16 does not hold its folded weights or biases, of which the largest is "
                    f"{float(held.abs().max()):.4g}"
                )
        return None

    def _wide(self, source: fx.Node) -> fx.Node:
        """A value as the old graph has it."""
        if source in self.others:
            return self.others[source]
        if source not in self.wide:
            self.wide[source] = self._cast(self.half[source], source, torch.float32)
        return self.wide[source]

    def _half(self, source: fx.Node) -> fx.Node:
        """A value in float16 where it is float32 in the old graph."""
        if source in self.others:
            return self.others[source]
        if source not in self.half:
            held = constant(source)
            if held is None:
                self.half[source] = self._cast(self.wide[source], source, torch.float16)
            else:
                name, value = f"{source.target}_float16", held.to(torch.float16)
                self.half[source] = copy_meta(add_constant(self.graph, name, value), source)
        return self.half[source]

    def _cast(self, value: fx.Node, source: fx.Node, dtype: torch.dtype) -> fx.Node:
        return copy_meta(self.graph.call_function(aten.to.dtype, (value, dtype)), source)


def _named(source: fx.Node) -> str:
    return "the input" if source.op == "placeholder" else module_of(source)
