"""The names of a network's classes, from a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastres.errors import OptionError
from fastres.system.regular import read_text


def read(path: str | Path) -> list[str]:
    """The names in order: one a line, or JSON.

    JSON is a list of names, or a mapping from indices to names, or to lists whose last entry is the
    name (ImageNet's usual ``{"0": ["n01440764", "tench"], ...}``).

    Raises:
        OptionError: the file cannot be read, is none of these, or leaves an index out.
    """
    file = Path(path)
    try:
        text = read_text(file, "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"labels {file}: cannot be read: {error}") from error
    if file.suffix.lower() == ".json":
        return _from_json(file, text)
    names = [line.strip() for line in text.splitlines()]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise OptionError(f"labels {file}: expected one name a line, the file is empty")
    if "" in names:
        raise OptionError(
            f"labels {file}: line {names.index('') + 1} is empty; expected a name for every class"
        )
    return names


def _from_json(file: Path, text: str) -> list[str]:
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise OptionError(f"labels {file}: it is no JSON: {error}") from error
    entries = data
    if isinstance(data, Mapping):
        entries = [data.get(str(index)) for index in range(len(data))]
    if not isinstance(entries, list) or not entries:
        raise OptionError(f"labels {file}: expected a list of names, or indices to names")
    return [_name(file, index, entry) for index, entry in enumerate(entries)]


def _name(file: Path, index: int, entry: Any) -> str:
    if isinstance(entry, list) and entry:
        entry = entry[-1]
    if not isinstance(entry, str):
        raise OptionError(f"labels {file}: expected a name for class {index}, got {entry!r}")
    return entry
