"""Arguments of operators as JSON, and whether an operator's schema accepts them.

Numbers, booleans, texts, lists and null are themselves. What JSON lacks is an object with one name:
``{"node": "conv1"}``, ``{"dtype": "float32"}``, ``{"device": "cpu"}``, ``{"layout": "strided"}``,
``{"memory_format": "channels_last"}``, ``{"float": "-inf"}``, ``{"tuple": [1, 2]}``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from fastres.artifact.strict import of_type, text
from fastres.errors import ArtifactError

DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.uint64,
        torch.bool,
        torch.complex64,
        torch.complex128,
        torch.complex32,
    )
}
LAYOUTS = {"strided": torch.strided}
MEMORY_FORMATS = {
    str(form).removeprefix("torch."): form
    for form in (torch.contiguous_format, torch.channels_last, torch.preserve_format)
}
FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}

_TABLES: dict[str, Mapping[str, Any]] = {
    "dtype": DTYPES, "layout": LAYOUTS, "memory_format": MEMORY_FORMATS, "float": FLOATS,
}  # fmt: skip
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(:\d{1,3})?")

MAX_NUMBER = 2**63 - 1
"""torch's numbers have 64 bits."""


def argument_to_json(value: Any) -> Any:
    """An argument of a node.

    Raises:
        ArtifactError: it is of a kind that a file cannot hold.
    """
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float):
        special = "nan" if math.isnan(value) else str(float(value))
        return float(value) if math.isfinite(value) else {"float": special}
    if isinstance(value, (list, tuple)):
        listed = [argument_to_json(item) for item in value]
        return listed if isinstance(value, list) else {"tuple": listed}
    kinds: dict[type[Any], str] = {
        torch.dtype: "dtype", torch.layout: "layout", torch.memory_format: "memory_format"
    }  # fmt: skip
    kind = kinds.get(type(value))
    name = str(value).removeprefix("torch.")
    if kind is not None and name in _TABLES[kind]:
        return {kind: name}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    raise ArtifactError(
        f"an operation takes {value!r}, a {type(value).__name__}, which no file holds"
    )


def argument_from_json(data: Any, nodes: Mapping[str, fx.Node], where: str) -> Any:
    """The argument that :func:`argument_to_json` wrote; ``nodes`` are those before it.

    Raises:
        ArtifactError: it names a node that is not there, or something unknown.
    """
    if data is None or isinstance(data, (bool, float)):
        return data
    if isinstance(data, str):
        return text(data, where)
    if isinstance(data, int):
        if abs(data) > MAX_NUMBER:
            raise ArtifactError(f"{where}: a number of more than 64 bits")
        return data
    if isinstance(data, list):
        return [argument_from_json(item, nodes, where) for item in data]
    if not isinstance(data, dict) or len(data) != 1:
        raise ArtifactError(f"{where}: expected an argument, got an object of several names")
    ((kind, value),) = data.items()
    if kind == "tuple":
        return tuple(argument_from_json(of_type(value, list, where), nodes, where))
    name = of_type(value, str, where)
    if kind == "node" and name in nodes:
        return nodes[name]
    if kind == "device":
        return device_from_json(name, where)
    if kind in _TABLES and name in _TABLES[kind]:
        return _TABLES[kind][name]
    what = kind if kind.isidentifier() and len(kind) < 20 else "value"
    raise ArtifactError(f"{where}: {ascii(name)[:60]} is no {what} known here")


def device_from_json(data: Any, where: str) -> torch.device:
    """A device by name; whether this machine has it is another question."""
    name = of_type(data, str, where)
    if _DEVICE.fullmatch(name) is None:
        raise ArtifactError(f"{where}: {ascii(name)[:60]} is no device")
    return torch.device(name)


def dtype_from_json(data: Any, where: str) -> torch.dtype:
    """A dtype by name."""
    name = of_type(data, str, where)
    if name not in DTYPES:
        raise ArtifactError(f"{where}: {ascii(name)[:60]} is no dtype known here")
    return DTYPES[name]


def accepts(kind: str, value: Any, kind_of: Callable[[fx.Node], str]) -> bool:
    """Whether an argument of this type (as a schema writes it) takes ``value``.

    Args:
        kind_of: what a node's value is: ``"Tensor"``, ``"List[Tensor]"``, ``"number"`` or else.
    """
    if kind.startswith("Optional["):
        return value is None or accepts(kind[len("Optional[") : -1], value, kind_of)
    if kind.startswith("List["):
        inner = kind[len("List[") : -1]
        if isinstance(value, (list, tuple)):
            return all(accepts(inner, item, kind_of) for item in value)
        if isinstance(value, fx.Node):
            return kind == "List[Tensor]" and kind_of(value) == kind
        return inner in ("int", "float", "bool") and accepts(inner, value, kind_of)  # one for all
    if isinstance(value, fx.Node):
        found = kind_of(value)
        return found == kind or (found == "number" and kind in _NUMBERS)
    return _ACCEPTS.get(kind, _accepts_nothing)(value)


_NUMBERS = {"int", "float", "bool", "number", "Tensor"}
"""Types of a schema that accept a number: torch wraps it where a tensor is expected."""


def _accepts_nothing(value: Any) -> bool:
    return False


_ACCEPTS: dict[str, Callable[[Any], bool]] = {
    "Tensor": lambda value: type(value) in (bool, int, float),
    "int": lambda value: type(value) is int,
    "bool": lambda value: type(value) is bool,
    "float": lambda value: type(value) in (int, float),
    "number": lambda value: type(value) in (bool, int, float),
    "str": lambda value: type(value) is str,
    "ScalarType": lambda value: isinstance(value, torch.dtype),
    "Layout": lambda value: isinstance(value, torch.layout),
    "MemoryFormat": lambda value: isinstance(value, torch.memory_format),
    "Device": lambda value: isinstance(value, torch.device),
}
