"""What an engine is, and which one a graph gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import fx

from fastres.errors import TargetError
from fastres.options import Options
from fastres.runtime.eager import EagerEngine
from fastres.runtime.executable import Runnable
from fastres.runtime.native.engine import NativeEngine
from fastres.runtime.onednn.engine import OneDnnEngine
from fastres.runtime.triton.engine import TritonEngine


class Engine(Protocol):
    """Turns a fused graph into executables; one instance serves one optimised model.

    Attributes:
        name: what ``engine=...`` calls it.
        device_types: where ``"auto"`` considers it; elsewhere it runs only if asked for by name.
        plans_threads: whether an executable is for one number of threads; one is built for each.
        reads_in_place: whether executables read weights where they were when they were built, so
            that it must be noticed when one is moved (``.data = ...``, ``share_memory_()``).
    """

    name: str
    device_types: tuple[str, ...]
    plans_threads: bool
    reads_in_place: bool

    def unpacked(self) -> Engine:
        """The same engine for weights that changed: without what it has packed."""

    def refusal(self, module: fx.GraphModule) -> str | None:
        """Why this engine cannot run the graph on this machine, or None when it can."""

    def build(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Runnable:
        """An executable for inputs of these shapes, dtypes and devices.

        Raises:
            InputError: an operator cannot take these sizes.
            OutOfMemory: the activations do not fit.
        """


ENGINES: tuple[Callable[[Options], Engine], ...] = (
    TritonEngine,
    NativeEngine,
    lambda options: OneDnnEngine(),
    lambda options: EagerEngine(),
)
"""Every engine, fastest first; the last takes any graph."""


def choose(options: Options, module: fx.GraphModule) -> tuple[Engine, list[str]]:
    """The engine that was asked for, or with ``"auto"`` the first that takes the graph.

    Returns:
        The engine, and a sentence for every faster one that was passed over.

    Raises:
        TargetError: the engine was asked for by name and cannot run the graph here.
    """
    name = options.engine
    places = {buffer.device.type for buffer in module.buffers()}
    passed_over: list[str] = []
    for make in ENGINES:
        engine = make(options)
        if name not in ("auto", engine.name):
            continue
        elsewhere = places and engine.device_types and not places & set(engine.device_types)
        if name == "auto" and elsewhere:
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
