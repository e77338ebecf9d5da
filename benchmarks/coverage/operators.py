"""What of an optimised model runs natively; what is left to torch and oneDNN, why, and its time."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fastres.ir.shapes import shapes
from fastres.optimized import OptimizedModule
from fastres.runtime.executable import Executable, Step
from fastres.runtime.native.lower import refusal
from fastres.runtime.native.partition import Partition, partition, rewrite
from fastres.runtime.native.subgraph import NativeSubgraph

ROUNDS = 10
"""Calls that are timed step by step; of each step the shortest time counts.

Shares are asked for here, not the time of a call that ever was, and a neighbour that takes the
processor for a moment would be in the share of whatever step was running.
"""

ALONE = "the engine has it, but no convolution beside it to make a subgraph of"


@dataclass(frozen=True)
class Left:
    """One kind of operator outside the native subgraphs, for one reason.

    Attributes:
        operator: as the fused graph names it.
        reason: why it is not native, a sentence.
        runs_in: "torch" or "oneDNN".
        count: nodes of the fused graph.
        share: of the time of a call, 0 to 1; what nodes of one module and operator take is with the
            first one's reason.
        example: the arguments of the first one: shapes, and what is no tensor.
    """

    operator: str
    reason: str
    runs_in: str
    count: int
    share: float
    example: str


@dataclass(frozen=True)
class Parts:
    """A call's parts.

    Attributes:
        operators: of the fused graph.
        native_operators: those of them that are in native subgraphs, casts at the edges included.
        subgraphs: how many of these a call runs.
        native_share: of the time of a call, 0 to 1.
        edge_share: of the time of a call, what brings inputs and results into their layouts.
        call_ns: nanoseconds, the steps' shortest added up.
        left: what is outside, the longest first.
    """

    operators: int
    native_operators: int
    subgraphs: int
    native_share: float
    edge_share: float
    call_ns: int
    left: tuple[Left, ...]


def parts_of(fast: OptimizedModule, inputs: Sequence[Tensor]) -> Parts:
    """Run an optimised model step by step, and say what each step belongs to."""
    runner = fast.internals.runner
    executable = runner.finite_executable(inputs)
    assert isinstance(executable, Executable)
    module = fast.graph_module
    facts = shapes(module, inputs)
    every = [node for node in module.graph.nodes if _is_operator(node, facts)]
    if executable.engine == "native":
        reasons = _reasons(module, facts, every)
    else:
        why = "; ".join(fast.passed_over) or "it was asked for by name"
        if executable.engine != fast.engine:
            why = "the native library met a number that is not finite, or huge"
        reasons = dict.fromkeys(every, f"the engine is {executable.engine}: {why}")
    with torch.inference_mode(), runner.limit():
        runs = [executable.timed_steps(inputs) for _ in range(ROUNDS)]
    times = [min(same, key=operator.itemgetter(1)) for same in zip(*runs, strict=True)]
    total = sum(took for _, took in times)
    native = [took for step, took in times if isinstance(step.function, NativeSubgraph)]
    left = _left(reasons, times, facts)
    left_share = sum(each.share for each in left)
    native_share = sum(native) / total
    return Parts(
        operators=len(every),
        native_operators=len(every) - len(reasons),
        subgraphs=len(native),
        native_share=native_share,
        edge_share=max(0.0, 1 - native_share - left_share),
        call_ns=total,
        left=left,
    )


def _is_operator(node: fx.Node, facts: Mapping[fx.Node, Any]) -> bool:
    """Whether a node computes a tensor; what takes one of several results does not."""
    if node.op != "call_function" or node.target is operator.getitem:
        return False
    fact = facts[node]
    results = fact if isinstance(fact, (tuple, list)) else (fact,)
    return any(isinstance(result, Tensor) for result in results)


def _reasons(
    module: fx.GraphModule, facts: Mapping[fx.Node, Any], every: Sequence[fx.Node]
) -> dict[fx.Node, str]:
    """Why each operator is outside that is still there when the subgraphs are single calls."""
    parts: Partition = partition(module.graph, facts)
    outer = rewrite(module, parts.subgraphs, facts, lambda lowered, sources: _native_subgraph)
    remaining = {node.name for node in outer.graph.nodes}
    inside = {node for subgraph in parts.subgraphs for node in subgraph}
    return {
        node: refusal(node, facts) or ALONE
        for node in every
        if node not in inside and node.name in remaining
    }


def _native_subgraph() -> None:
    """Stands for a subgraph in a graph that is only looked at."""


_Key = tuple[str, str]


def _left(
    reasons: Mapping[fx.Node, str],
    times: Sequence[tuple[Step, int]],
    facts: Mapping[fx.Node, Any],
) -> tuple[Left, ...]:
    total = sum(took for _, took in times)
    steps: dict[_Key, list[tuple[Step, int]]] = {}
    for step, took in times:
        if not isinstance(step.function, NativeSubgraph):
            steps.setdefault((step.module, step.operation), []).append((step, took))
    kinds: dict[tuple[str, str, str], list[fx.Node]] = {}
    spent: dict[tuple[str, str, str], int] = {}
    for node, reason in reasons.items():
        # Several nodes of a module may be one operator: the first takes the steps of all.
        found = steps.pop((str(node.meta.get("module", "")), _name(node)), [])
        runs_in = "oneDNN" if any(map(_is_onednn, found)) else "torch"
        kind = (_name(node), reason, runs_in)
        kinds.setdefault(kind, []).append(node)
        spent[kind] = spent.get(kind, 0) + sum(took for _, took in found)
    rows = [
        Left(*kind, len(nodes), spent[kind] / total, _arguments(nodes[0], facts))
        for kind, nodes in kinds.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.share))


def _name(node: fx.Node) -> str:
    """The operator's name, as executables name their steps."""
    return str(node.target).removesuffix(".default")


def _is_onednn(timed: tuple[Step, int]) -> bool:
    """Whether a step calls oneDNN itself, by torch's names for its operators."""
    function = timed[0].function
    module = str(getattr(function, "__module__", ""))
    return str(function).startswith(("mkldnn.", "onednn.")) or module.endswith("onednn.integers")


def _arguments(node: fx.Node, facts: Mapping[fx.Node, Any]) -> str:
    """A node's arguments to be read: shapes of tensors, and values of everything else."""

    def text(argument: Any) -> str:
        if isinstance(argument, fx.Node):
            fact = facts[argument]
            if isinstance(fact, Tensor):
                return str(list(fact.shape)).replace(" ", "")
            return "a tuple" if isinstance(fact, (tuple, list)) else str(fact)
        if isinstance(argument, (tuple, list)):
            return "[" + ", ".join(map(text, argument)) + "]"
        return f"{argument:g}" if isinstance(argument, float) else str(argument)

    named = [f"{name}={text(value)}" for name, value in node.kwargs.items()]
    return ", ".join([*map(text, node.args), *named])
