"""A captured graph run in another precision than the model was written for.

A model may name a dtype in forward (``x.float()``, ``torch.zeros(..., dtype=torch.float32)``). Such
a model cannot be run in float64 by converting its weights; its graph can, by reading every mention
of the model's own dtype as the other one.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from fastres.ir.graph import value_of


def fits_float16(value: Tensor) -> bool:
    """Whether float16 holds these numbers as well as its precision promises.

    It ends at 65504 and thins out below 6e-5, where a small BatchNorm weight times a small
    convolution weight may land.
    """
    error = torch.linalg.vector_norm(value.to(torch.float16).double() - value.double())
    norm = torch.linalg.vector_norm(value.double())
    return not math.isfinite(norm) or bool(error <= torch.finfo(torch.float16).eps * norm)


def rounded_as_float16(value: Tensor) -> Tensor:
    """float32 rounded to the 11 leading bits of float16, as if float16's exponents had no end.

    Veltkamp's splitting (Dekker, "A floating-point technique for extending the available
    precision", 1971); what is too large for it, and NaN, stays as it is.
    """
    shifted = value * (2.0**13 + 1)
    return torch.where(torch.isfinite(shifted), shifted - (shifted - value), value)


def retype_node(node: fx.Node, own: torch.dtype, dtype: torch.dtype) -> None:
    """Let a call that names ``own``, or creates a tensor of that dtype, use ``dtype``."""
    if node.op != "call_function":
        return
    if node.meta.get("lowered") and dtype == torch.float64:
        node.args = (node.args[0], dtype)  # torch.autocast leaves float64 alone
        return
    node.args = fx.node.map_aggregate(node.args, lambda a: dtype if a is own else a)
    node.kwargs = fx.node.map_aggregate(node.kwargs, lambda a: dtype if a is own else a)
    value = value_of(node)
    creates = isinstance(value, Tensor) and value.dtype == own and not _reads_tensors(node)
    schema = getattr(node.target, "_schema", None)
    if creates and schema is not None and any(a.name == "dtype" for a in schema.arguments):
        node.kwargs = {**node.kwargs, "dtype": dtype}


def _reads_tensors(node: fx.Node) -> bool:
    return any(isinstance(value_of(parent), Tensor) for parent in node.all_input_nodes)


class Recorder(fx.Interpreter):
    """Runs a captured graph in ``dtype`` and keeps every floating-point result by its node's name.

    The graph is copied; weights stay as they are and are cast when they are read.

    Args:
        own: what the model computes in.
        dtype: what this computes in.
        endless: with float16, whose numbers then neither overflow nor thin out: float32 that is
            rounded as float16 is.
    """

    def __init__(
        self, module: fx.GraphModule, own: torch.dtype, dtype: torch.dtype, endless: bool = False
    ) -> None:
        graph = fx.Graph()
        graph.output(graph.graph_copy(module.graph, {}))
        module = fx.GraphModule(module, graph)
        super().__init__(module)
        self.own = own
        self.dtype = torch.float32 if endless else dtype
        self.endless = endless
        self.kept: dict[Any, Tensor] = {}
        for node in module.graph.nodes:
            retype_node(node, own, self.dtype)

    def run_node(self, n: fx.Node) -> Any:
        """One node's value; constants and inputs of the model's own dtype are cast."""
        value = super().run_node(n)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if n.op in ("get_attr", "placeholder"):
            value = value.to(self.dtype)
        if self.endless and value.dtype == torch.float32 and not n.meta.get("added"):
            value = rounded_as_float16(value)
        if n.op == "call_function":
            self.kept[n.name] = value
        return value
