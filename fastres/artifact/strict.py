"""Reading untrusted JSON: every type, length and name is checked."""

from __future__ import annotations

import json
import keyword
import math
import re
import unicodedata
from collections.abc import Iterable
from typing import Any, TypeVar

from fastres.errors import ArtifactError

T = TypeVar("T")

MAX_NAME_LENGTH = 1000
"""Characters in a name; a dotted module name of a network has a few dozen."""

_DUNDER = re.compile("__.*__$")

MAX_DEPTH = 50
"""Levels of nested lists and objects; a real file has a dozen."""


def parse(text: str) -> Any:
    """The value of a JSON text in which no name stands twice and no number is infinite.

    Raises:
        ArtifactError: it is no such text.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        _check_depth_and_numbers(value, MAX_DEPTH)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"its description is not valid JSON ({error})") from error
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _check_depth_and_numbers(value: Any, left: int) -> None:
    if isinstance(value, (list, dict)):
        if not left:
            raise ValueError(f"more than {MAX_DEPTH} levels deep")
        for inner in value.values() if isinstance(value, dict) else value:
            _check_depth_and_numbers(inner, left - 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number is too large")


def of_type(value: Any, kind: type[T], where: str) -> T:
    """``value``, which must be of exactly this type of JSON's (True is no number).

    Raises:
        ArtifactError: it is not.
    """
    if kind is float and type(value) is int and abs(value) < 2**1000:
        value = float(value)
    if type(value) is not kind:
        raise ArtifactError(
            f"{where}: expected {kind.__name__}, got {type(value).__name__} {_shown(value)}"
        )
    return value


def fields(value: Any, names: Iterable[str], where: str) -> list[Any]:
    """The values of an object that has exactly these names, in this order.

    Raises:
        ArtifactError: it is no object, or its names are others.
    """
    names = list(names)
    data = of_type(value, dict, where)
    if set(data) != set(names):
        odd = sorted(set(data) ^ set(names))[0]
        what = "an unknown" if odd in data else "no"
        raise ArtifactError(f"{where}: {what} field {_shown(odd)}")
    return [data[name] for name in names]


def items(value: Any, kind: type[T], where: str) -> list[T]:
    """A list of values of one type."""
    data = of_type(value, list, where)
    return [of_type(item, kind, f"{where}[{index}]") for index, item in enumerate(data)]


def count(value: Any, where: str, most: int = 2**63 - 1) -> int:
    """A whole number from 0 to ``most``."""
    number = of_type(value, int, where)
    if not 0 <= number <= most:
        raise ArtifactError(f"{where}: {_shown(number)} is not between 0 and {most}")
    return number


def text(value: Any, where: str, longest: int = MAX_NAME_LENGTH) -> str:
    """A text of limited length."""
    found = of_type(value, str, where)
    if len(found) > longest:
        raise ArtifactError(f"{where}: a text of {len(found)} characters")
    return found


def identifier(value: Any, where: str) -> str:
    """A name that may stand in a program: it cannot be anything else there.

    Raises:
        ArtifactError: it is a keyword, has other characters, or is one of Python's own (``__x__``).
    """
    name = text(value, where)
    plain = name.isidentifier() and unicodedata.normalize("NFKC", name) == name
    if not plain or keyword.iskeyword(name) or _DUNDER.match(name):
        raise ArtifactError(f"{where}: {_shown(name)} is not a name for a value")
    return name


def _shown(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 200:
        return "a huge number"
    shown = ascii(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
