"""What an engine is, and which one a graph gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import fx

from fastres.errors import TargetError
from fastres.runtime.eager import EagerEngine
from fastres.runtime.executable import Executable
from fastres.runtime.onednn import OneDnnEngine


class Engine(Protocol):
    """Turns a fused graph into executables; one instance serves one optimised model."""

    name: str

    def refusal(self, module: fx.GraphModule) -> str | None:
        """Why this engine cannot run the graph on this machine, or None when it can."""

    def build(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Executable:
        """An executable for inputs of these shapes, dtypes and devices.

        Raises:
            InputError: an operator cannot take these sizes.
            OutOfMemory: the activations do not fit.
        """


ENGINES: tuple[Callable[[], Engine], ...] = (OneDnnEngine, EagerEngine)
"""Every engine, fastest first; the last takes any graph."""


def choose(name: str, module: fx.GraphModule) -> tuple[Engine, list[str]]:
    """The engine called ``name``, or with ``"auto"`` the first that takes the graph.

    Returns:
        The engine, and a sentence for every faster one that was passed over.

    Raises:
        TargetError: the engine was asked for by name and cannot run the graph here.
    """
    passed_over: list[str] = []
    for make in ENGINES:
        engine = make()
        if name not in ("auto", engine.name):
            continue
        refusal = engine.refusal(module)
        if refusal is None:
            return engine, passed_over
        if name == engine.name:
            raise TargetError(
                f"engine={name!r} cannot run this model here: {refusal}; use engine='auto'"
            )
        passed_over.append(f"the {engine.name} engine was passed over: {refusal}")
    raise AssertionError(f"no engine is called {name!r}")
