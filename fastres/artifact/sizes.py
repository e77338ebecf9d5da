"""Sizes and conditions (:mod:`fastres.capture.symbols`) as JSON: ``["floordiv", 7, 2]``.

A number is itself, a function is a list that begins with its name. Reading builds a tree from known
names; no text is evaluated.
"""

from __future__ import annotations

from typing import Any

from fastres.artifact.strict import identifier, of_type
from fastres.capture.symbols import FUNCTIONS, Expression
from fastres.errors import ArtifactError

LARGEST = 2**63
"""No size is as large: torch's sizes have 63 bits."""


def size_to_json(size: Any) -> Any:
    """A size as JSON: a number, or a list that begins with the function's name."""
    if isinstance(size, Expression):
        return [size.function, *map(size_to_json, size.operands)]
    return size


def size_from_json(data: Any, where: str) -> Any:
    """The size that :func:`size_to_json` wrote.

    Raises:
        ArtifactError: an unknown function, a wrong number of operands, no number.
    """
    if isinstance(data, (bool, int, float)):
        if not abs(data) <= LARGEST:  # nor NaN
            raise ArtifactError(f"{where}: a number beyond all sizes")
        return data
    parts = of_type(data, list, where)
    function = of_type(parts[0], str, where) if parts else ""
    if function == "symbol" and len(parts) == 2:
        return Expression("symbol", (identifier(parts[1], where),))
    if function not in FUNCTIONS:
        raise ArtifactError(f"{where}: {function[:60]!r} is no function of sizes")
    operands = FUNCTIONS[function][0]
    if len(parts) < 2 or (operands is not None and len(parts) != operands + 1):
        raise ArtifactError(f"{where}: {function} of {len(parts) - 1} operands")
    return Expression(function, tuple(size_from_json(part, where) for part in parts[1:]))


def dimension_from_json(data: Any, where: str) -> Any:
    """A dimension of a tensor: a whole number, or an expression."""
    size = size_from_json(data, where)
    if not isinstance(size, Expression) and (type(size) is not int or size < 0):
        raise ArtifactError(f"{where}: {size!r} is no size of a tensor")
    return size
