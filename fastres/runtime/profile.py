"""Where the time of one call goes, by the names of the user's modules."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastres.runtime.executable import Runnable

ROUNDS = 20
"""Calls that a profile takes the fastest of, after two that do not count."""


@dataclass(frozen=True)
class LayerTime:
    """One operation of one module, in milliseconds."""

    module: str
    operation: str
    milliseconds: float


@dataclass(frozen=True)
class Profile:
    """Time per layer of one call.

    Attributes:
        layers: in the order they run, from the fastest call that was timed layer by layer. On a
            noisy machine, medians taken layer by layer would add up to no call that ever was.
        milliseconds: the fastest whole call; whole and layered calls took turns.
    """

    layers: tuple[LayerTime, ...]
    milliseconds: float

    @property
    def between(self) -> float:
        """Milliseconds of a whole call outside its layers: what the runtime itself costs.

        The difference of two measurements; noise can take it slightly below zero.
        """
        return self.milliseconds - sum(layer.milliseconds for layer in self.layers)

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        table = Table(
            "module", "operation", "ms", "share", title=f"{self.milliseconds:.3f} ms per call"
        )
        for layer in self.layers:
            share = layer.milliseconds / self.milliseconds
            table.add_row(
                layer.module, layer.operation, f"{layer.milliseconds:.3f}", f"{share:.1%}"
            )
        table.add_section()
        table.add_row(
            "(between layers)", "", f"{self.between:.3f}", f"{self.between / self.milliseconds:.1%}"
        )
        console = Console(width=120, force_terminal=False)
        with console.capture() as capture:
            console.print(table)
        return capture.get()


def measure(
    executable: Runnable, call: Callable[[], Any], inputs: Sequence[Any], rounds: int = ROUNDS
) -> Profile:
    """Time ``executable`` layer by layer, in turn with whole calls of ``call``."""
    waits = any(isinstance(value, Tensor) and value.is_cuda for value in inputs)
    layered: list[list[tuple[str, str, int]]] = []
    whole: list[int] = []
    for index in range(rounds + 2):
        times = executable.timed(inputs)
        started = time.perf_counter_ns()
        call()
        if waits:
            torch.cuda.synchronize()
        took = time.perf_counter_ns() - started
        if index >= 2:
            layered.append(times)
            whole.append(took)
    fastest = min(layered, key=lambda times: sum(took for _, _, took in times))
    layers = (LayerTime(module or "(model)", name, took / 1e6) for module, name, took in fastest)
    return Profile(tuple(layers), min(whole) / 1e6)
