"""Configurations and specs in one line: for plans that are read, and as keys of layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any


def in_words(settings: Any) -> str:
    """``block_m=128 block_n=64 ...``: every field of a dataclass."""
    return " ".join(
        f"{field.name}={_compact(getattr(settings, field.name))}" for field in fields(settings)
    )


def _compact(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "x".join(map(str, value))
    return f"({in_words(value)})" if is_dataclass(value) else str(value)
