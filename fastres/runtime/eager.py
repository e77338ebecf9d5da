"""The engine that is always there: every operator by its plain-PyTorch meaning, on folded weights.

It is the reference of the other engines and takes what they cannot: other dtypes and devices,
empty batches, and inputs with NaN or infinity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fastres.errors import InputError
from fastres.ir import ops
from fastres.kernels.quantized import quantize
from fastres.runtime.executable import Executable
from fastres.runtime.lowering import Lowering


class EagerEngine:
    """Runs any graph on any device; see :class:`fastres.runtime.engine.Engine`."""

    name = "eager"
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
        return Lowering(module, inputs).run(self.name, {ops.quantize: _quantize})


def quantize_numbers(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """:func:`fastres.kernels.quantized.quantize` of what has integers; infinity is cut off.

    Raises:
        InputError: there is a NaN.
    """
    if bool(torch.isnan(x).any()):
        raise InputError(
            "got NaN, which int8 cannot hold and would take for a number: expected images without, "
            "or a model in another precision, which answers with NaN"
        )
    return quantize(x, scale, zero_point)


def _quantize(lowering: Lowering, node: fx.Node) -> fx.Node:
    return lowering.call(quantize_numbers, lowering.value(node.args), node)
