"""A fused graph made ready for one set of input shapes.

Every engine produces the same thing: another plain ``fx.Graph``, whose calls are the engine's own
functions with everything but the activations bound, sizes as numbers, and each value dropped after
its last use. torch.fx compiles it to straight-line Python, so a call costs no interpretation.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from fastres.report import Remark


@dataclass
class Executable:
    """What an engine built.

    Attributes:
        module: the lowered graph; called with the flattened inputs, returns a tuple.
        engine: name of the engine that built it.
        peak_bytes: activations alive at once, in bytes, from the shapes.
        finite_only: the kernels turn NaN into numbers, so inputs must be looked at first.
        remarks: what this engine left to torch, and why.
        notes: sentences for the receipt.
    """

    module: fx.GraphModule
    engine: str
    peak_bytes: int
    finite_only: bool = False
    remarks: list[Remark] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __call__(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Run on the flattened inputs; no output shares memory with an input or another output."""
        result: Sequence[Any] = self.module.forward(*inputs)
        return result

    def timed(self, inputs: Sequence[Any]) -> list[tuple[str, str, int]]:
        """Run call by call: (module, operation, nanoseconds) per call, in order."""
        times: list[tuple[str, str, int]] = []
        values: dict[fx.Node, Any] = {}
        arguments = iter(inputs)
        dead = dead_after(self.module.graph)
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(arguments)
            elif node.op == "get_attr":
                values[node] = getattr(self.module, str(node.target))
            elif node.op == "call_function":
                args = fx.node.map_arg(node.args, values.__getitem__)
                started = time.perf_counter_ns()
                values[node] = node.target(*args, **node.kwargs)
                took = time.perf_counter_ns() - started
                del args
                times.append((str(node.meta.get("module", "")), str(node.meta["operation"]), took))
            for value in dead.get(node, ()):
                del values[value]
        return times


def dead_after(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """For each node, the values that nothing reads after it (itself, where nothing reads it)."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        last[node] = node
        for used in node.all_input_nodes:
            last[used] = node
    dead: dict[fx.Node, list[fx.Node]] = {}
    for value, node in last.items():
        if value.op != "output":
            dead.setdefault(node, []).append(value)
    return dead
