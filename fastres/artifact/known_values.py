"""Dtype and symbolic sizes of a graph's values, as capture found them: to JSON and back.

The passes ask about shapes for every image size. Torch answers with fake tensors whose sizes are
sympy expressions; they are written down as plain trees and made again without tracing anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fastres.artifact.arguments import dtype_from_json
from fastres.artifact.sizes import dimension_from_json, size_to_json
from fastres.artifact.strict import count, fields, identifier, of_type
from fastres.capture.contract import fixed_size
from fastres.capture.symbols import Expression, UnknownFunction, evaluate, from_sympy, solve
from fastres.errors import ArtifactError


def values_to_json(graph: fx.Graph) -> dict[str, Any]:
    """dtype and sizes of every node that is a tensor or a list of tensors, by the node's name.

    Raises:
        ArtifactError: a size is computed by a function that a file cannot hold.
    """
    known = {node.name: _value_to_json(node.meta.get("val")) for node in graph.nodes}
    return {name: value for name, value in known.items() if value is not None}


def _value_to_json(value: Any) -> Any:
    if isinstance(value, Tensor):
        return [str(value.dtype).removeprefix("torch."), *map(_dimension, value.shape)]
    if isinstance(value, (list, tuple)):
        return {"list": [_value_to_json(item) for item in value]}
    return None


def _dimension(size: Any) -> Any:
    fixed = fixed_size(size)
    if fixed is not None:
        return fixed
    try:
        return size_to_json(from_sympy(size.node.expr))
    except UnknownFunction as error:
        raise ArtifactError(f"a size is computed by the function {error}") from error


def hints_to_json(graph: fx.Graph) -> dict[str, int]:
    """The sizes that the symbols had in the captured call."""
    hints: dict[str, int] = {}
    for node in graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        sizes: Sequence[Any] = value.shape if isinstance(value, Tensor) else ()
        for size in sizes:
            if fixed_size(size) is not None:
                continue
            expression = from_sympy(size.node.expr)
            assert isinstance(expression, Expression)
            unknown = expression.symbols - hints.keys()
            if len(unknown) == 1:
                (name,) = unknown
                found = solve(expression, int(size.node.hint), name, hints)
                if found is not None:
                    hints[name] = found
    return hints


class KnownValues:
    """Fake tensors of symbolic sizes for a graph that was read from JSON.

    Args:
        hints: what :func:`hints_to_json` wrote.
        device: where the graph's tensors are.
    """

    def __init__(self, hints: Any, device: torch.device) -> None:
        from torch._dynamo.source import ConstantSource  # imports sympy
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

        self._device = device
        self._sizes = {
            identifier(name, "hints"): count(size, "hints", 2**31)
            for name, size in of_type(hints, dict, "hints").items()
        }
        self._environment = ShapeEnv(specialize_zero_one=False, duck_shape=False)
        self._mode = FakeTensorMode(shape_env=self._environment)
        self._symbols = {
            name: self._environment.create_symbol(
                size, ConstantSource(name), dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None
            )
            for name, size in self._sizes.items()
        }

    def annotate(self, graph: fx.Graph, values: Any) -> None:
        """Give the nodes the values that :func:`values_to_json` wrote.

        Raises:
            ArtifactError: they are not such values.
        """
        data = of_type(values, dict, "values")
        for node in graph.nodes:
            if node.name in data:
                node.meta["val"] = self._value(data[node.name])

    def _value(self, data: Any) -> Any:
        if isinstance(data, dict):
            (listed,) = fields(data, ("list",), "values")
            return [self._value(item) for item in of_type(listed, list, "values")]
        if data is None:
            return None
        dtype, *shape = of_type(data, list, "values") or [None]
        kind = dtype_from_json(dtype, "values")
        sizes = [self._size(dimension_from_json(size, "values")) for size in shape]
        with self._mode:
            return torch.empty(sizes, dtype=kind, device=self._device)

    def _size(self, size: Any) -> Any:
        if not isinstance(size, Expression):
            return size
        hint = evaluate(size, self._sizes)
        if type(hint) is not int or hint < 0:
            raise ArtifactError(f"values: {size} is no size")
        expression = to_sympy(size, self._symbols)
        return self._environment.create_symintnode(expression, hint=hint)


def to_sympy(size: Any, symbols: Mapping[str, Any]) -> Any:
    """An expression as torch's symbolic sizes have it.

    Raises:
        ArtifactError: it is none of the functions that sizes are made of.
    """
    import sympy
    from torch.utils._sympy import functions as torchs

    if not isinstance(size, Expression):
        return sympy.sympify(size, strict=True)
    if size.function == "symbol":
        return symbols[size.operands[0]]
    make = {
        "add": sympy.Add, "mul": sympy.Mul, "pow": sympy.Pow, "fraction": sympy.Rational,
        "floordiv": torchs.FloorDiv, "ceildiv": torchs.CeilDiv, "mod": torchs.PythonMod,
        "max": torchs.Max, "min": torchs.Min, "floor": torchs.FloorToInt,
        "ceil": torchs.CeilToInt, "trunc": torchs.TruncToInt, "round": torchs.RoundToInt,
        "float": torchs.ToFloat, "truediv": torchs.IntTrueDiv,
        "sqrt": torchs.OpaqueUnaryFn_sqrt,
    }.get(size.function)  # fmt: skip
    if make is None:
        raise ArtifactError(f"values: {size.function} is no function of a tensor's size")
    return make(*(to_sympy(part, symbols) for part in size.operands))
