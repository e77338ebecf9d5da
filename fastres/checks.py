"""Checks of arguments; every refusal reads ``name: got VALUE, expected WHAT; ADVICE.``"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from fastres.errors import OptionError


def is_number(value: object) -> bool:
    """Whether it is a finite int or float; a bool is neither."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_integer(value: object, least: int = 1, most: int | None = None) -> bool:
    """Whether it is an int from ``least`` to ``most``; a bool is none."""
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return least <= value and (most is None or value <= most)


def refusal(name: str, value: object, expected: str, advice: str = "") -> OptionError:
    """The error for an argument ``name`` whose ``value`` is not what was ``expected``."""
    return OptionError(f"{name}: got {value!r}, expected {expected}{advice and f'; {advice}'}.")


def require_integer(
    name: str, value: object, advice: str = "", *, least: int = 1, most: int | None = None
) -> None:
    """Raise OptionError unless ``value`` is an integer from ``least`` to ``most``."""
    if not is_integer(value, least, most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise refusal(name, value, f"an integer {bounds}", advice)


def require_integers(name: str, values: object, length: int, advice: str = "") -> None:
    """Raise OptionError unless ``values`` is a sequence of ``length`` integers of at least 1."""
    if not (
        isinstance(values, Sequence) and len(values) == length and all(map(is_integer, values))
    ):
        raise refusal(name, values, f"{length} integers of at least 1", advice)


def require_bool(name: str, value: object) -> None:
    """Raise OptionError unless ``value`` is True or False, so that the text "false" is not true."""
    if not isinstance(value, bool):
        raise refusal(name, value, "True or False")


def require_one_of(name: str, value: object, choices: Collection[str], advice: str = "") -> None:
    """Raise OptionError unless ``value`` is one of the strings ``choices``."""
    if not isinstance(value, str) or value not in choices:
        listed = [repr(choice) for choice in choices]
        expected = " or ".join(listed) if len(listed) < 3 else f"one of {', '.join(listed)}"
        raise refusal(name, value, expected, advice)


def as_tuple(name: str, value: Any) -> tuple[Any, ...]:
    """A list or tuple as a tuple.

    Raises:
        OptionError: it is neither.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise refusal(name, value, "a list")
    return tuple(value)
