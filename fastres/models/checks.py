"""What the constructors of this package accept, said in one sentence where they do not."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fastres.errors import OptionError

__all__ = ["require_choice", "require_count", "require_counts", "require_flag"]


def require_count(name: str, value: object, advice: str) -> None:
    """Raise OptionError unless ``value`` is an integer of at least 1; a bool is none."""
    if not _is_count(value):
        raise OptionError(f"{name}: got {value!r}, expected an integer of at least 1; {advice}.")


def require_counts(name: str, values: object, length: int, advice: str) -> None:
    """Raise OptionError unless ``values`` is a sequence of ``length`` integers of at least 1."""
    if not (isinstance(values, Sequence) and len(values) == length and all(map(_is_count, values))):
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


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
