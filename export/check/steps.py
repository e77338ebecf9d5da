"""How a quantised file compares with the int8 graph: step by step, from the file's own integers.

The definition rounds sums of whole numbers; a runtime that adds float32 numbers rounds one in ten
thousand of them the other way. Each such step is a right answer, and in a network with random
weights it grows from layer to layer until the answers have little in common. So every quantised
tensor is compared with what the int8 graph makes of the file's own integers in front of it: it may
differ by one step, in few places. What is not quantised is held to float64, from there on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fastres.accuracy.sample import on_device
from fastres.export.check.compare import Checked, compare, empty_result, judge
from fastres.export.check.reference import Reference, Values, copied
from fastres.export.check.runner import OutputsDiffer
from fastres.export.graph import Converted
from fastres.export.rules.units import unit_in_front, unit_of
from fastres.ir import ops
from fastres.ir.graph import arguments, is_call, module_of
from fastres.ir.views import QuantizedConv2d
from fastres.optimized import OptimizedModule

STEP = 1
"""By how many quantisation steps a value may differ."""

DIFFERING_SHARE = 0.05
"""The share of a tensor's values that may differ at all, beside a single one: a sum within its own
rounding error of a half may be rounded up or down."""

BFLOAT16_STEPS = 4
"""By how many steps what follows a layer kept in bfloat16 may differ in a runtime that rounds to it
where it likes: 2^-9 of the result are half a step, and as much of each input adds up to some."""


class _Stepwise(Values):
    """The int8 graph, in which the file's integers take the place of those that it has computed.

    Attributes:
        compared, differing: how many integers there were, and how many were not equal.
        most: by how many steps at most.
        first: a sentence on the first tensor that is not as it should be, "" where all are.
    """

    def __init__(
        self, fast: OptimizedModule, dtype: torch.dtype, keeps_bfloat16: bool, rounds_sums: bool
    ) -> None:
        super().__init__(fast, dtype)
        self._keeps_bfloat16, self._rounds_sums = keeps_bfloat16, rounds_sums
        self.seen: Mapping[str, tuple[str, Tensor]] = {}
        self.compared = self.differing = self.most = 0
        self.first = ""

    def run_node(self, n: fx.Node) -> Any:
        """One node's value, compared with the file's where there is one, which is taken then."""
        value = super().run_node(n)
        if n.op != "call_function":
            return value
        node = self._original.get(n.name, n.name)
        if node not in self.seen:
            return value
        name, actual = self.seen[node]
        if not self.first:
            what = self._difference(actual, value.cpu(), self._allowed(n))
            if what:
                where = f"{name!r} ({module_of(n)}, {n.target})"
                self.first = f"The first tensor that differs is {where}: {what}"
        return actual.to(value.device)

    def _allowed(self, node: fx.Node) -> int:
        """By how many steps a value may differ; if it is more than one, anywhere."""
        if not self._keeps_bfloat16 and _follows_bfloat16(node):
            return BFLOAT16_STEPS
        if self._rounds_sums and is_call(node, ops.quantized_conv2d):
            conv = QuantizedConv2d.of(node)
            unit = unit_in_front(conv)
            if unit is not None:  # half of its step, in steps of the result
                return STEP + math.ceil(unit[0] / 2 / conv.scale)
        return STEP

    def _difference(self, actual: Tensor, value: Tensor, allowed: int) -> str:
        """What is wrong with a tensor, or nothing."""
        if actual.shape != value.shape:
            return f"{list(actual.shape)}, expected {list(value.shape)}"
        steps = (actual.int() - value.int()).abs()
        differing = int((steps > 0).sum())
        self.compared += steps.numel()
        self.differing += differing
        self.most = max(self.most, int(steps.max()) if steps.numel() else 0)
        few = allowed > STEP or differing <= 1 + DIFFERING_SHARE * steps.numel()
        good = few and bool((steps <= allowed).all())
        if good:
            return ""
        return (
            f"by up to {int(steps.max())} quantisation steps from what the int8 model makes of the "
            f"same integers, in {differing} of {steps.numel()} places"
        )


def _follows_bfloat16(node: fx.Node) -> bool:
    """Whether a bfloat16 layer lies between a value and the integers in front of it."""
    return any(
        torch.bfloat16 in arguments(parent)
        or (unit_of(parent) is None and _follows_bfloat16(parent))
        for parent in node.all_input_nodes
    )


@dataclass
class Stepwise:
    """Compares runs of a file, or of another runtime's version of it, with the int8 graph.

    Attributes:
        names: of the quantised tensors, and of the outputs, which are to be looked at.
        keeps_bfloat16: whether the runtime rounds to bfloat16 where the file says so.
        outputs: errors of the outputs, and the first choices.
    """

    converted: Converted
    reference: Reference
    keeps_bfloat16: bool = True
    outputs: Checked = field(init=False)

    def __post_init__(self) -> None:
        fast, dtype = self.reference.fast, self.reference.dtype
        self.outputs = empty_result(self.converted, self.reference)
        self._integers = [(n, name) for n, name in self.converted.traced if unit_of(n) is not None]
        tensors = (*self._integers, *self.converted.outputs)
        self.names = list(dict.fromkeys(name for _, name in tensors))
        self._plain, self._exact = Values(fast, dtype), Values(fast, torch.float64)
        self._graph = _Stepwise(fast, dtype, self.keeps_bfloat16, self.converted.rounds_sums)

    def add(
        self,
        flat: Sequence[Any],
        seen: Mapping[str, Tensor],
        got: Sequence[Any],
        images: Mapping[str, Tensor],
        bound: float,
    ) -> None:
        """Compare one run.

        Args:
            flat: the arguments.
            seen: values of :attr:`names`, of a run that shows them.
            got: the outputs of a run that does not.
            images: resized images by their nodes' names, taken as they are.
            bound: of errors of what is not quantised.

        Raises:
            OutputsDiffer: something is not as the int8 graph has it.
        """
        self._graph.seen = {n.name: (name, seen[name]) for n, name in self._integers}
        self._graph.run_flat(flat, images)
        if self._graph.first:
            raise OutputsDiffer(self._graph.first)
        taken = {**images, **{node: value for node, (_, value) in self._graph.seen.items()}}
        plain, exact = (graph.run_flat(flat, taken) for graph in (self._plain, self._exact))
        judged = empty_result(self.converted, self.reference)
        judged.outputs = self.outputs.outputs
        shown = [seen[name] for _, name in self.converted.outputs]
        compare(judged, self.converted, shown, exact, plain)
        judge(judged, bound)
        self._count_first_choices(got, self._answers(flat, images))

    def _answers(self, flat: Sequence[Any], images: Mapping[str, Tensor]) -> list[Any]:
        """What the int8 model answers by itself: by its engine, unless images are given to it."""
        fast = self.reference.fast
        if images:
            return Values(fast, self.reference.dtype).run_flat(flat, images)
        inputs = on_device(copied(flat), fast.report.device)
        return on_device(list(fast.internals.runner(inputs)), "cpu")

    def _count_first_choices(self, got: Sequence[Any], wanted: Sequence[Any]) -> None:
        """From end to end: how often the file's first choice is the int8 model's."""
        counted = 1 if self.outputs.ranked else 0  # answers and their places, or answers
        index, _ = self.converted.outputs[counted]
        ours, answers = torch.from_numpy(np.asarray(got[counted])), wanted[index]
        if answers.dim() < 2 or not answers.numel():
            return
        if not self.outputs.ranked:
            ours, answers = (each.flatten(1).argmax(1, keepdim=True) for each in (ours, answers))
        self.outputs.images += len(answers)
        self.outputs.agreeing += int((ours[:, 0] == answers[:, 0]).sum())

    def __str__(self) -> str:
        graph = self._graph
        found = f"{graph.differing} of {graph.compared} integers differ"
        steps = "step" if graph.most == 1 else "steps"
        return f"{found}, by {graph.most} {steps} at most" if graph.differing else found
