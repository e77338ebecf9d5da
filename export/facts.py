"""Facts about a fused graph's values that hold for every input that a file takes.

The graph is run on fake tensors of several sizes. A tensor's size that is the same in all of them
is a number. What the model computes from sizes is one if everything that it is computed from is: a
padding may agree in all that were tried, and be another for a width that is odd after two strides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fastres.errors import ModelError
from fastres.ir.graph import arguments, module_of


class Facts:
    """Facts on values, and the node that is being translated.

    Attributes:
        module: the fused graph.
        base: name of the user's module behind that node.
    """

    def __init__(self, module: fx.GraphModule, probes: Sequence[dict[fx.Node, Any]]) -> None:
        self.module = module
        self.base = ""
        self._probes = probes
        self._node: fx.Node | None = None
        self._varying: dict[fx.Node, bool] = {}

    def begin(self, node: fx.Node) -> None:
        """From here on, what is emitted belongs to ``node``."""
        self._node = node
        self.base = str(node.meta.get("module") or node.name)

    def refusal(self, reason: str) -> ModelError:
        """An error that names the module and the operator that is being translated."""
        assert self._node is not None
        return ModelError(
            f"{module_of(self._node)}: {self._node.target} cannot be written to ONNX: {reason}"
        )

    def argument(self, index: int, name: str = "", default: Any = None) -> Any:
        """An argument of the current node, positional or by name, as the fused graph has it."""
        assert self._node is not None
        positional = arguments(self._node)
        return (
            positional[index] if len(positional) > index else self._node.kwargs.get(name, default)
        )

    def fact(self, node: fx.Node) -> Any:
        """A fake tensor, a number or another plain value, for one of the inputs tried."""
        return self._probes[0][node]

    def rank(self, node: fx.Node) -> int:
        """Number of dimensions."""
        return int(self.fact(node).dim())

    def shape(self, node: fx.Node) -> list[int | None]:
        """Sizes of a tensor; None for those that differ between inputs."""
        return [self.size(node, axis) for axis in range(self.rank(node))]

    def size(self, node: fx.Node, axis: int) -> int | None:
        """One size of a tensor, None where it differs between inputs."""
        fixed: int | None = _constant([facts[node].shape[axis] for facts in self._probes])
        return fixed

    def same_size(self, a: fx.Node, axis: int, b: fx.Node, other: int) -> bool:
        """Whether two sizes are equal for every input."""
        return all(facts[a].shape[axis] == facts[b].shape[other] for facts in self._probes)

    def fixed(self, node: fx.Node) -> Any:
        """A number or another plain value that is the same for every input, else None."""
        return None if self._varies(node) else _constant([facts[node] for facts in self._probes])

    def _varies(self, node: fx.Node) -> bool:
        """Whether a plain value is computed from a size that depends on the input."""
        known = self._varying.get(node)
        if known is None:
            if node.target is torch.ops.aten.sym_size.int:
                x, axis = arguments(node)
                known = self.size(x, axis) is None
            else:
                parents = [n for n in node.all_input_nodes if not isinstance(self.fact(n), Tensor)]
                known = any(map(self._varies, parents))
            self._varying[node] = known
        return known

    def number(self, argument: Any) -> Any:
        """A plain argument; of a computed size, its value.

        Raises:
            ModelError: it differs between inputs, where ONNX needs a number.
        """
        if isinstance(argument, (list, tuple)):
            return [self.number(part) for part in argument]
        if not isinstance(argument, fx.Node):
            return argument
        value = None if isinstance(self.fact(argument), Tensor) else self.fixed(argument)
        if value is None:
            raise self.refusal("it computes an attribute from the size of its input")
        return value


def _constant(values: Sequence[Any]) -> Any:
    """The value if it is the same for every input tried, else None."""
    first = values[0]
    return first if all(type(v) is type(first) and v == first for v in values) else None
