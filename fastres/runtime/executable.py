"""A fused graph made ready for one set of input shapes.

Every engine lowers to another plain ``fx.Graph``, whose calls are the engine's own functions with
everything but the activations bound, sizes as numbers, and each value dropped after its last use.
torch.fx compiles it to straight-line Python, so a call costs no interpretation.

The graph itself is not kept: its nodes refer to each other in cycles, and packed weights would stay
until the garbage collector comes by. What is kept is freed with the last reference to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from fastres.report import Remark


class Runnable(Protocol):
    """What an engine builds, whatever it is made of.

    Attributes:
        code: the program, to be read.
        engine: name of the engine that built it.
        peak_bytes: activations alive at once, in bytes, from the shapes.
        remarks: what this engine left to torch, and why.
        notes: sentences for the receipt.
    """

    engine: str
    peak_bytes: int
    remarks: list[Remark]
    notes: list[str]

    @property
    def code(self) -> str: ...

    def __call__(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Run on the flattened inputs; no output shares memory with an input or another output."""

    def timed(self, inputs: Sequence[Any]) -> list[tuple[str, str, int]]:
        """Run call by call: (module, operation, nanoseconds) per call, in order."""


@dataclass(frozen=True)
class Slot:
    """The place of a value among a call's values."""

    index: int


@dataclass(frozen=True)
class Constant:
    """A weight, by its name among the executable's constants."""

    name: str


@dataclass(frozen=True)
class Step:
    """One call of the straight-line program: what it is, and the places it reads and frees."""

    module: str
    operation: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: int
    dead: tuple[int, ...]


@dataclass
class Executable:
    """What an engine built.

    Attributes:
        code: the program as Python source.
        engine: name of the engine that built it.
        peak_bytes: activations alive at once, in bytes, from the shapes.
        remarks: what this engine left to torch, and why.
        notes: sentences for the receipt.
    """

    code: str
    engine: str
    peak_bytes: int
    remarks: list[Remark]
    notes: list[str]
    _function: Callable[..., Sequence[Any]] = field(repr=False)
    _constants: SimpleNamespace = field(repr=False)
    _steps: list[Step] = field(repr=False)

    def __call__(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Run on the flattened inputs; no output shares memory with an input or another output."""
        return self._function(self._constants, *inputs)

    def timed(self, inputs: Sequence[Any]) -> list[tuple[str, str, int]]:
        """Run call by call: (module, operation, nanoseconds) per call, in order."""
        return [row for _, rows in self._run_timed(inputs, True) for row in rows]

    def timed_steps(self, inputs: Sequence[Any]) -> list[tuple[Step, int]]:
        """The same as (step, nanoseconds): what has parts, a native subgraph, as a whole."""
        return [(step, rows[0][2]) for step, rows in self._run_timed(inputs, False)]

    def _run_timed(
        self, inputs: Sequence[Any], in_parts: bool
    ) -> list[tuple[Step, list[tuple[str, str, int]]]]:
        times: list[tuple[Step, list[tuple[str, str, int]]]] = []
        values: dict[int, Any] = dict(enumerate(inputs))
        waits = any(isinstance(value, Tensor) and value.is_cuda for value in inputs)
        for step in self._steps:
            args = [self._fetch(argument, values) for argument in step.args]
            kwargs = {name: self._fetch(value, values) for name, value in step.kwargs.items()}
            parts = getattr(step.function, "timed", None) if in_parts else None
            if parts is not None:
                result, rows = parts(*args)
            else:
                started = time.perf_counter_ns()
                result = step.function(*args, **kwargs)
                if waits:
                    torch.cuda.synchronize()
                took = time.perf_counter_ns() - started
                rows = [(step.module, step.operation, took)]
            times.append((step, rows))
            values[step.result] = result
            del args, kwargs, result
            for index in step.dead:
                del values[index]
        return times

    def _fetch(self, argument: Any, values: dict[int, Any]) -> Any:
        if isinstance(argument, Slot):
            return values[argument.index]
        if isinstance(argument, Constant):
            return getattr(self._constants, argument.name)
        if isinstance(argument, (tuple, list)):
            items = [self._fetch(item, values) for item in argument]
            return tuple(items) if isinstance(argument, tuple) else items
        return argument


def compile_graph(
    graph: fx.Graph,
    constants: dict[str, Any],
    engine: str,
    peak_bytes: int,
    remarks: list[Remark],
    notes: list[str],
) -> Executable:
    """The executable of a lowered graph; of ``constants``, those that it reads are kept."""
    read = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    program = graph.python_code("self")
    namespace = dict(program.globals)
    exec(compile(program.src, f"<fastres {engine}>", "exec"), namespace)
    return Executable(
        program.src,
        engine,
        peak_bytes,
        remarks,
        notes,
        namespace["forward"],
        SimpleNamespace(**{name: constants[name] for name in read}),
        _steps(graph),
    )


def _steps(graph: fx.Graph) -> list[Step]:
    dead = dead_after(graph)
    places: dict[fx.Node, Any] = {}
    steps: list[Step] = []
    for node in graph.nodes:
        if node.op == "get_attr":
            places[node] = Constant(str(node.target))
        elif node.op == "placeholder":
            places[node] = Slot(len(places))
        elif node.op == "call_function":
            places[node] = Slot(len(places))
            freed = (places[value] for value in dead.get(node, ()))
            steps.append(
                Step(
                    str(node.meta.get("module", "")),
                    str(node.meta["operation"]),
                    node.target,
                    _placed(node.args, places),
                    _placed(node.kwargs, places),
                    places[node].index,
                    tuple(place.index for place in freed if isinstance(place, Slot)),
                )
            )
    return steps


def _placed(argument: Any, places: dict[fx.Node, Any]) -> Any:
    if isinstance(argument, fx.Node):
        return places[argument]
    if isinstance(argument, (tuple, list)):
        items = [_placed(item, places) for item in argument]
        return tuple(items) if isinstance(argument, tuple) else items
    if isinstance(argument, dict):
        return {name: _placed(item, places) for name, item in argument.items()}
    return argument


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
