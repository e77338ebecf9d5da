"""The engine that is always there: every operator by its plain-PyTorch meaning, on folded weights.

It is the reference of the other engines and takes what they cannot: other dtypes and devices,
empty batches, and inputs with NaN or infinity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from fastres.runtime.executable import Executable
from fastres.runtime.lowering import Lowering


class EagerEngine:
    """Runs any graph on any device; see :class:`fastres.runtime.engine.Engine`."""

    name = "eager"
    device_types: tuple[str, ...] = ()
    plans_threads = False
    reads_in_place = True

    def unpacked(self) -> EagerEngine:
        """The same engine; it keeps nothing of the weights."""
        return EagerEngine()

    def refusal(self, module: fx.GraphModule) -> str | None:
        """It can always run a graph."""
        return None

    def build(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Executable:
        """An executable for inputs of these shapes."""
        return Lowering(module, inputs).run(self.name, {})
