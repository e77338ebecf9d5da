"""What an exported file is compared with: the model in float64, and in its own precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fastres.accuracy.reference import InPrecision
from fastres.accuracy.sample import on_device
from fastres.ir.precision import retype_node
from fastres.optimized import OptimizedModule


class Values(fx.Interpreter):
    """A fused graph in plain PyTorch, in its own precision or in float64, all values kept.

    Attributes:
        kept: the values, by the names of the fused graph's nodes.
    """

    def __init__(self, fast: OptimizedModule, dtype: torch.dtype) -> None:
        graph = fx.Graph()
        mapping: dict[fx.Node, fx.Node] = {}
        graph.output(graph.graph_copy(fast.graph_module.graph, mapping))
        super().__init__(fx.GraphModule(fast.graph_module, graph))
        self.dtype = dtype
        self._device = fast.report.device
        self.kept: dict[str, Tensor] = {}
        self._taken: Mapping[str, Tensor] = {}
        self._original = {new.name: old.name for old, new in mapping.items()}
        if dtype == torch.float64:
            for model_dtype in (torch.float32, torch.float16, torch.bfloat16):
                for node in graph.nodes:
                    retype_node(node, model_dtype, dtype)

    def run_flat(
        self, flat: Sequence[Any], replacements: Mapping[str, Tensor] | None = None
    ) -> list[Any]:
        """The flattened results.

        Args:
            flat: the arguments.
            replacements: values, by name, that are taken instead of computed.
        """
        self._taken = {name: value.to(self._device) for name, value in (replacements or {}).items()}
        with torch.no_grad():
            return on_device(list(self.run(*on_device(copied(flat), self._device))), "cpu")

    def run_node(self, n: fx.Node) -> Any:
        """One node's value, in float64 where that is wanted."""
        name = self._original.get(n.name, n.name)
        value = self._taken[name] if name in self._taken else super().run_node(n)
        if not isinstance(value, Tensor):
            return value
        if self.dtype == torch.float64 and value.is_floating_point():
            value = value.double()
        if n.op == "call_function":
            self.kept[name] = value.cpu()
        return value


class Reference:
    """Reference outputs for the file's: in float64 and in its own precision.

    Args:
        fast: the optimised model that was exported.
        model: the model that it was made from, where that is known and takes the same inputs;
            otherwise, and where the fused graph is quantised, that is the reference.
    """

    def __init__(self, fast: OptimizedModule, model: nn.Module | None) -> None:
        self.fast = fast
        self.dtype = fast.dtype
        dtypes = (torch.float64, self.dtype)
        if fast.is_quantized:
            model = None
        self._models = [] if model is None else [InPrecision(model, dtype) for dtype in dtypes]
        weights = () if model is None else model.state_dict().values()
        self._device = str(next((tensor.device for tensor in weights), "cpu"))
        self._graphs = [Values(fast, dtype) for dtype in dtypes]

    def outputs(
        self, flat: Sequence[Any], replacements: Mapping[str, Tensor] | None = None
    ) -> tuple[list[Any], list[Any]]:
        """Flattened results for flattened arguments: in float64, and in the file's precision.

        With ``replacements`` (values of nodes by name, taken from the file) they are the fused
        graph's, which alone has these nodes; otherwise the model's, where it is known.
        """
        if replacements or not self._models:
            exact, plain = (graph.run_flat(flat, replacements) for graph in self._graphs)
            return exact, plain
        inputs = on_device(copied(flat), self._device)
        args, kwargs = pytree.tree_unflatten(inputs, self.fast.internals.in_spec)
        with torch.no_grad():
            results = [pytree.tree_leaves(model((args, kwargs))) for model in self._models]
        exact, plain = (on_device(each, "cpu") for each in results)
        return exact, plain


def copied(flat: Sequence[Any]) -> list[Any]:
    """The arguments with cloned tensors: a model may write to them."""
    return [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in flat]
