"""Is a value what it should be? Checks of arguments and of what was read from a file."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from fastres.errors import OptionError


def is_number(value: Any) -> bool:
    """Whether it is a finite number; True and False are none."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


def is_count(value: Any, most: int) -> bool:
    """Whether it is a whole number from 1 to ``most``."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def as_tuple(name: str, value: Any) -> tuple[Any, ...]:
    """A list or tuple as a tuple.

    Raises:
        OptionError: it is neither.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise OptionError(f"{name}={value!r}: expected a list")
    return tuple(value)


def require_one_of(name: str, value: Any, known: Sequence[str], also: str = "") -> None:
    """Raise OptionError unless ``value`` is among ``known``."""
    if not isinstance(value, str) or value not in known:
        raise OptionError(f"{name}={value!r}: expected {also}one of {', '.join(map(repr, known))}")


def require_boolean(name: str, value: Any) -> None:
    """Raise OptionError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise OptionError(f"{name}={value!r}: expected True or False")


def require_count(name: str, value: object, advice: str) -> None:
    """Raise OptionError unless ``value`` is an integer of at least 1; a bool is none."""
    if not _is_positive(value):
        raise OptionError(f"{name}: got {value!r}, expected an integer of at least 1; {advice}.")


def require_counts(name: str, values: object, length: int, advice: str) -> None:
    """Raise OptionError unless ``values`` is a sequence of ``length`` integers of at least 1."""
    if not (
        isinstance(values, Sequence) and len(values) == length and all(map(_is_positive, values))
    ):
        raise OptionError(
            f"{name}: got {values!r}, expected {length} integers of at least 1; {advice}."
        )


def require_flag(name: str, value: object) -> None:
    """Raise OptionError unless ``value`` is True or False, so that the text "false" is not true."""
    if not isinstance(value, bool):
        raise OptionError(f"{name}: got {value!r}, expected a bool; pass True or False.")


def require_choice(name: str, value: object, choices: Collection[str], advice: str) -> None:
    """Raise OptionError unless ``value`` is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        expected = " or ".join(repr(choice) for choice in choices)
        raise OptionError(f"{name}: got {value!r}, expected {expected}; {advice}.")


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
