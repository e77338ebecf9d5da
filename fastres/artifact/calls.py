"""Contract, signature and captured example of a model, as JSON and back."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from fastres.artifact.arguments import (
    argument_from_json,
    argument_to_json,
    device_from_json,
    dtype_from_json,
)
from fastres.artifact.sizes import dimension_from_json, size_from_json, size_to_json
from fastres.artifact.strict import count, fields, identifier, items, of_type, text
from fastres.capture.contract import Contract, Guard, Limit, TensorInput
from fastres.errors import ArtifactError

MAX_EXAMPLE_ELEMENTS = 2**40
"""Elements in one tensor of the captured call."""


def contract_to_json(contract: Contract) -> dict[str, Any]:
    """A contract as JSON.

    Raises:
        ArtifactError: an argument other than a tensor had a value that JSON cannot hold.
    """
    return {
        "inputs": [_input_to_json(expected) for expected in contract.inputs],
        "guards": [[size_to_json(g.condition), g.location] for g in contract.guards],
        "limits": [[limit.symbol, limit.lower, limit.upper] for limit in contract.limits],
    }


def _input_to_json(expected: Any) -> Any:
    if not isinstance(expected, TensorInput):
        return {"value": _plain_to_json(expected)}
    return {
        "name": expected.name,
        "dtype": str(expected.dtype).removeprefix("torch."),
        "device": str(expected.device),
        "sizes": [size_to_json(size) for size in expected.sizes],
    }


def contract_from_json(data: Any) -> Contract:
    """The contract that :func:`contract_to_json` wrote."""
    inputs, guards, limits = fields(data, ("inputs", "guards", "limits"), "contract")
    return Contract(
        tuple(_input_from_json(entry) for entry in items(inputs, dict, "contract.inputs")),
        tuple(_guard(entry) for entry in items(guards, list, "contract.guards")),
        tuple(_limit(entry) for entry in items(limits, list, "contract.limits")),
    )


def _input_from_json(entry: dict[str, Any]) -> Any:
    where = "contract.inputs"
    if "value" in entry:
        (value,) = fields(entry, ("value",), where)
        return _plain_from_json(value, where)
    name, dtype, device, sizes = fields(entry, ("name", "dtype", "device", "sizes"), where)
    dimensions = tuple(dimension_from_json(size, where) for size in of_type(sizes, list, where))
    tensor_device = device_from_json(device, where)
    return TensorInput(text(name, where), dtype_from_json(dtype, where), tensor_device, dimensions)


def _guard(entry: list[Any]) -> Guard:
    where = "contract.guards"
    if len(entry) != 2:
        raise ArtifactError(f"{where}: expected a condition and its place")
    return Guard(size_from_json(entry[0], where), text(entry[1], where))


def _limit(entry: list[Any]) -> Limit:
    where = "contract.limits"
    if len(entry) != 3:
        raise ArtifactError(f"{where}: expected a symbol and two numbers")
    return Limit(identifier(entry[0], where), count(entry[1], where), count(entry[2], where))


def example_to_json(example: list[Any]) -> list[Any]:
    """The flattened arguments of the captured call; of tensors shape and dtype."""
    return [
        {"shape": list(leaf.shape), "dtype": str(leaf.dtype).removeprefix("torch.")}
        if isinstance(leaf, Tensor)
        else {"value": _plain_to_json(leaf)}
        for leaf in example
    ]


def example_from_json(data: Any) -> list[Any]:
    """The arguments that :func:`example_to_json` wrote, tensors without memory."""
    where = "example"
    leaves: list[Any] = []
    for entry in items(data, dict, where):
        if "value" in entry:
            (value,) = fields(entry, ("value",), where)
            leaves.append(_plain_from_json(value, where))
            continue
        shape, dtype = fields(entry, ("shape", "dtype"), where)
        sizes = [count(size, where) for size in of_type(shape, list, where)]
        elements = 1
        for size in sizes:
            elements = min(elements * max(size, 1), 2**64)
        if elements > MAX_EXAMPLE_ELEMENTS or len(sizes) > 64:
            raise ArtifactError(f"{where}: a tensor of {len(sizes)} dimensions, too large")
        leaves.append(torch.empty(sizes, dtype=dtype_from_json(dtype, where), device="meta"))
    return leaves


def signature_to_json(signature: inspect.Signature) -> list[Any]:
    """Names, kinds and defaults of forward's parameters.

    A default that JSON cannot hold is kept as what it looks like: it is for reading only, since the
    captured graph already has its effect.
    """
    listed = []
    for parameter in signature.parameters.values():
        entry: dict[str, Any] = {"name": parameter.name, "kind": parameter.kind.name}
        if parameter.default is not parameter.empty:
            try:
                entry["default"] = _plain_to_json(parameter.default)
            except ArtifactError:
                entry["shown"] = repr(parameter.default)[:200]
        listed.append(entry)
    return listed


class UnsavedDefault:
    """Stands for a default value that a file could not hold."""

    def __init__(self, form: str) -> None:
        self.form = form

    def __repr__(self) -> str:
        return self.form


def signature_from_json(data: Any) -> inspect.Signature:
    """The signature that :func:`signature_to_json` wrote."""
    where = "signature"
    parameters = []
    for entry in items(data, dict, where):
        default_keys = [name for name in ("default", "shown") if name in entry][:1]
        name, kind, *default_entry = fields(entry, ["name", "kind", *default_keys], where)
        default: Any = inspect.Parameter.empty
        if default_entry:
            shown = default_keys == ["shown"]
            default = (
                UnsavedDefault(text(default_entry[0], where))
                if shown
                else _plain_from_json(default_entry[0], where)
            )
        kind_name = of_type(kind, str, where)
        if kind_name not in _KINDS:
            raise ArtifactError(f"{where}: {ascii(kind_name)[:40]} is no kind of parameter")
        parameter_name = identifier(name, where)
        parameters.append(inspect.Parameter(parameter_name, _KINDS[kind_name], default=default))
    try:
        return inspect.Signature(parameters)
    except ValueError as error:
        raise ArtifactError(f"{where}: {error}") from error


_KINDS = {kind.name: kind for kind in map(inspect._ParameterKind, range(5))}


def _plain_to_json(value: Any) -> Any:
    """A number, text, dtype, device or None, or a list or tuple of them."""
    if isinstance(value, (list, tuple)) and type(value) not in (list, tuple):
        raise ArtifactError(f"the argument {value!r} is a {type(value).__name__}")
    return argument_to_json(value)


def _plain_from_json(data: Any, where: str) -> Any:
    return argument_from_json(data, {}, where)
