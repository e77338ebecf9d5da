"""What an engine is, and which one a graph gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from torch import fx

from fastres.errors import TargetError
from fastres.options import Options
from fastres.runtime.eager import EagerEngine
from fastres.runtime.executable import Runnable
from fastres.runtime.native.engine import NativeEngine
from fastres.runtime.onednn.engine import OneDnnEngine


class Engine(Protocol):
    """Turns a fused graph into executables; one instance serves one optimised model.

    Attributes:
        name: what ``engine=...`` calls it.
        plans_threads: whether an executable is for one number of threads; one is built for each.
        reads_in_place: whether executables read weights where they were when they were built, so
            that it must be noticed when one is moved (``.data = ...``, ``share_memory_()``).
    """

    name: str
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


class Offer(NamedTuple):
    """An engine that may be chosen.

    Attributes:
        name: the engine's own.
        device_types: where ``"auto"`` considers it, () for everywhere; elsewhere it runs only if
            asked for by name.
        make: an engine for one optimised model.
    """

    name: str
    device_types: tuple[str, ...]
    make: Callable[[Options], Engine]


def _triton(options: Options) -> Engine:
    # Its cost models are most of what there is to import, and of no use without a GPU.
    from fastres.runtime.triton.engine import TritonEngine

    return TritonEngine(options)


ENGINES = (
    Offer("triton", ("cuda",), _triton),
    Offer("native", ("cpu",), NativeEngine),
    Offer("onednn", ("cpu",), lambda options: OneDnnEngine()),
    Offer("eager", (), lambda options: EagerEngine()),
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
    if options.streams is not None and places - {"cpu"}:
        raise TargetError(
            f"streams={options.streams}: the model is on {', '.join(sorted(places))}, and streams "
            "are threads on CPUs; leave it out"
        )
    passed_over: list[str] = []
    for offer in ENGINES:
        if name not in ("auto", offer.name):
            continue
        elsewhere = places and offer.device_types and not places & set(offer.device_types)
        if name == "auto" and elsewhere:
            continue
        engine = offer.make(options)
        refusal = engine.refusal(module)
        if refusal is None:
            return engine, passed_over
        if name == engine.name:
            raise TargetError(
                f"engine={name!r} cannot run this model here: {refusal}; use engine='auto'"
            )
        passed_over.append(f"the {engine.name} engine was passed over: {refusal}")
    raise AssertionError(f"no engine is called {name!r}")
