"""One ONNX graph in the making: nodes, initializers, names, and what is known of each value.

A translation of one operator (see :data:`fastres.export.rules.table.RULES`) is
``rule(builder, node) -> value``, where a value is the name of an ONNX tensor, a list of such names
for an operator with several results, or a number. Sizes that are the same for every input that the
file takes are numbers; the others are computed in the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx

from fastres.export.facts import Facts

if TYPE_CHECKING:
    from onnx import NodeProto

ELEMENT_TYPES: dict[torch.dtype, int] = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.float64: TensorProto.DOUBLE,
    torch.uint8: TensorProto.UINT8,
    torch.int8: TensorProto.INT8,
    torch.int16: TensorProto.INT16,
    torch.int32: TensorProto.INT32,
    torch.int64: TensorProto.INT64,
    torch.bool: TensorProto.BOOL,
}
"""The dtypes that a file may hold."""

LAST = 2**63 - 1
"""ONNX's way to say "to the end"."""


class Builder(Facts):
    """An ONNX graph under construction, for the translation rules.

    Attributes:
        opset: version of the standard operators.
        rounds_sums: whether a quantised convolution is rounded in front of a residual addition.
        nodes: so far, in order.
        initializers: ONNX constants by name.
        values: what stands for each node of the fused graph.
        dequantized: the float32 value of a quantised one, by its name, scale and zero point.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        probes: Sequence[dict[fx.Node, Any]],
        opset: int,
        rounds_sums: bool = False,
    ) -> None:
        super().__init__(module, probes)
        self.opset = opset
        self.rounds_sums = rounds_sums
        self.nodes: list[NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self.values: dict[fx.Node, Any] = {}
        self.dequantized: dict[tuple[str, tuple[float, int]], str] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._names: set[str] = set()
        self._weights: dict[str, str] = {}
        self._published: dict[str, str] = {}

    # Arguments.

    def tensor(self, argument: Any, dtype: torch.dtype | None = None, hint: str = "") -> str:
        """The ONNX name of a tensor argument, or of a number as a constant, cast to ``dtype``."""
        if isinstance(argument, fx.Node) and argument.op == "get_attr":
            name = self._weight(argument, hint)
        elif isinstance(argument, fx.Node):
            value = self.values[argument]
            if not isinstance(value, str):
                return self.tensor(value, dtype, hint)
            name = value
        elif isinstance(argument, (int, float, bool)):
            assert dtype is not None
            return self.constant(torch.tensor(argument, dtype=dtype, device="cpu"))
        else:
            raise self.refusal(f"it takes {argument!r} for a tensor")
        return self.cast(name, dtype) if dtype is not None else name

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of an ONNX value."""
        return self._dtypes[name]

    def weight_of(self, argument: Any) -> Tensor:
        """The tensor of an argument that is a constant of the graph.

        Raises:
            ModelError: the argument is computed.
        """
        if not isinstance(argument, fx.Node) or argument.op != "get_attr":
            raise self.refusal("an argument that ONNX needs as a constant is computed")
        value = getattr(self.module, str(argument.target))
        assert isinstance(value, Tensor)
        return value

    # Making values.

    def constant(self, value: Tensor, hint: str = "", shared: bool = True) -> str:
        """The name of an initializer with these values; the same small values may share one."""
        array = np.asarray(value.detach().cpu().numpy(), order="C")
        small = shared and array.size <= _SMALL
        key = f"{array.dtype}{array.shape}{array.tobytes()!r}" if small else ""
        if key in self._weights:
            return self._weights[key]
        name = self.unique(hint or f"constant_{len(self.initializers)}")
        self.initializers[name] = numpy_helper.from_array(array, name)
        self._dtypes[name] = value.dtype
        if key:
            self._weights[key] = name
        return name

    def integers(self, *numbers: int) -> str:
        """A constant list of whole numbers: axes, sizes, starts."""
        return self.constant(torch.tensor(numbers, dtype=torch.int64, device="cpu"))

    def emit(
        self,
        operator: str,
        *inputs: str,
        dtype: torch.dtype | None = None,
        part: str | None = None,
        **attributes: Any,
    ) -> str:
        """Add a node with one result.

        Args:
            operator: of the standard domain.
            inputs: names; "" for an optional one that is left out.
            dtype: of the result; by default that of the first input.
            part: what is added to the module's name; by default the operator, "" for nothing.
            attributes: the node's ONNX attributes.
        """
        (name,) = self.emit_many(operator, *inputs, results=1, dtype=dtype, part=part, **attributes)
        return name

    def emit_many(
        self,
        operator: str,
        *inputs: str,
        results: int,
        dtype: torch.dtype | None = None,
        part: str | None = None,
        **attributes: Any,
    ) -> list[str]:
        """Add a node with several results; see :meth:`emit`."""
        suffix = operator if part is None else part
        name = self.unique(f"{self.base}/{suffix}" if suffix else self.base)
        names = [name, *(self.unique(f"{name}:{index}") for index in range(1, results))]
        operands = list(inputs)
        while operands and not operands[-1]:
            operands.pop()
        self.nodes.append(helper.make_node(operator, operands, names, name=name, **attributes))
        for result in names:
            self._dtypes[result] = dtype or self._dtypes[inputs[0]]
        return names

    def cast(self, name: str, dtype: torch.dtype) -> str:
        """A value in another dtype; itself where it has that one."""
        if self._dtypes[name] == dtype:
            return name
        if dtype not in ELEMENT_TYPES:
            raise self.refusal(f"a file cannot hold {dtype}")
        return self.emit("Cast", name, dtype=dtype, to=ELEMENT_TYPES[dtype])

    def as_bfloat16(self, name: str) -> str:
        """A value rounded to bfloat16 and held as float32, in which runtimes can compute."""
        small = self.emit("Cast", name, part="bfloat16", to=TensorProto.BFLOAT16)
        return self.emit("Cast", small, dtype=torch.float32, to=TensorProto.FLOAT)

    def retyped(self, name: str, dtype: torch.dtype) -> str:
        """A value whose operator has results of different dtypes."""
        self._dtypes[name] = dtype
        return name

    def input(self, name: str, dtype: torch.dtype) -> str:
        """Register a graph input."""
        self._dtypes[name] = dtype
        self._names.add(name)
        return name

    def unique(self, name: str) -> str:
        """``name``, or numbered if it is taken."""
        free, number = name, 0
        while free in self._names:
            number += 1
            free = f"{name}_{number}"
        self._names.add(free)
        return free

    # Names that users see.

    def publish(self, value: str, name: str) -> str:
        """Give a value the name of an output; inputs, constants and what has one are copied."""
        published = self.unique(name)
        computed = {result for node in self.nodes for result in node.output}
        if value in computed and value not in self._published:
            self._published[value] = published
            for node in self.nodes:
                for field in (node.input, node.output):
                    for index, field_name in enumerate(field):
                        if field_name == value:
                            field[index] = published
        else:
            field_name = self.name(value)
            self.nodes.append(
                helper.make_node(
                    "Identity", [field_name], [published], name=f"{published}/Identity"
                )
            )
        self._dtypes[published] = self._dtypes[value]
        return published

    def name(self, value: str) -> str:
        """What a value is called in the file."""
        return self._published.get(value, value)

    # Sizes computed in the file.

    def scalar(self, argument: Any) -> int | str:
        """A size as a number, or the name of a tensor [1] of int64 that holds it."""
        if not isinstance(argument, fx.Node):
            return int(argument)
        value = self.fixed(argument)
        if value is not None:
            return int(value)
        computed = self.values[argument]
        assert isinstance(computed, str)
        return computed

    def as_sizes(self, parts: Sequence[int | str]) -> str:
        """One list of sizes, int64, from numbers and computed sizes."""
        if all(isinstance(part, int) for part in parts):
            return self.integers(*(int(part) for part in parts))
        names = [self.integers(part) if isinstance(part, int) else part for part in parts]
        return names[0] if len(names) == 1 else self.emit("Concat", *names, axis=0)

    def size_of(self, node: fx.Node, axis: int) -> int | str:
        """One size of a tensor: a number where it is always the same, else computed."""
        fixed = self.size(node, axis)
        if fixed is not None:
            return fixed
        shape = self.emit("Shape", self.tensor(node), dtype=torch.int64)
        return self.emit("Gather", shape, self.integers(axis % self.rank(node)), axis=0)

    def reshape(self, node: fx.Node, source: fx.Node) -> str:
        """The value of ``source`` in the shape that ``node`` has.

        Open sizes are the source's where it has such ones, copied from the same place or looked up;
        one may be what is left over, and others come from the fused graph's own arithmetic.
        """
        sizes: list[int | str] = []
        for axis, size in enumerate(self.shape(node)):
            places = [a for a in range(self.rank(source)) if self.same_size(node, axis, source, a)]
            if size is not None:
                sizes.append(size)
            elif axis in places:
                sizes.append(0)
            elif places:
                sizes.append(self.size_of(source, places[0]))
            elif -1 not in sizes:
                sizes.append(-1)
            else:
                sizes.append(self._written_size(axis))
        return self.emit("Reshape", self.tensor(source), self.as_sizes(sizes))

    def reshape_like(self, name: str, node: fx.Node) -> str:
        """A value in the shape of another node's."""
        fixed = self.shape(node)[1:]
        if None in fixed:
            shape = self.emit("Shape", self.tensor(node), dtype=torch.int64)
            return self.emit("Reshape", name, shape)
        return self.emit("Reshape", name, self.integers(0, *(int(size or 0) for size in fixed)))

    def _written_size(self, axis: int) -> int | str:
        sizes = self.argument(1)
        if isinstance(sizes, (list, tuple)) and len(sizes) > axis:
            return self.scalar(sizes[axis])
        raise self.refusal("more than one of its sizes depends on the input")

    def _weight(self, node: fx.Node, hint: str) -> str:
        target = str(node.target)
        if target not in self._weights:
            value = getattr(self.module, target)
            if value.dtype not in ELEMENT_TYPES:
                raise self.refusal(f"a file cannot hold {value.dtype}")
            self._weights[target] = self._unshared(value, hint or target)
        return self._weights[target]

    def _unshared(self, value: Tensor, hint: str) -> str:
        array = np.asarray(value.detach().cpu().numpy(), order="C")
        name = self.unique(hint)
        self.initializers[name] = numpy_helper.from_array(array, name)
        self._dtypes[name] = value.dtype
        return name


_SMALL = 64
"""Elements up to which equal constants are stored once."""
