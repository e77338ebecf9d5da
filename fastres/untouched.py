"""The user's model as it was: attributes that forward sets during capture are put back."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from fastres.graph import user_path


@contextmanager
def untouched(model: nn.Module) -> Iterator[list[str]]:
    """A context after which every module of ``model`` has the attributes that it had before.

    ``forward`` runs once during capture, on stand-ins for tensors; what it stores on ``self`` would
    stay there. Yields a list that has, at the end, a sentence for each attribute put back.
    """
    before = [(name, module, _contents(module)) for name, module in model.named_modules()]
    changed: list[str] = []
    try:
        yield changed
    finally:
        for name, module, contents in before:
            for registry in _REGISTRIES:
                _put_back(vars(module)[registry], contents[registry])
            where = f"module {user_path(name) or '(the model itself)'} ({type(module).__name__})"
            told = _put_back(vars(module), contents["attributes"])
            for key, containers in contents["filled"].items():
                refilled = [_refill(container) for container in containers]
                if any(refilled) and key not in told:
                    told.append(key)
            changed += [
                f"{where} sets self.{key} in forward; the optimised model does not" for key in told
            ]


_REGISTRIES = ("_buffers", "_parameters", "_modules")
_ABSENT = object()


def _contents(module: nn.Module) -> dict[str, dict[str, Any]]:
    registries = {registry: dict(vars(module)[registry]) for registry in _REGISTRIES}
    filled = {
        key: list(_containers(value))
        for key, value in vars(module).items()
        if key not in _REGISTRIES
    }
    return {"attributes": dict(vars(module)), "filled": filled, **registries}


def _containers(value: Any, depth: int = 4) -> Iterator[tuple[Any, Any]]:
    """The lists, dicts and sets in an attribute, each with a copy that shares its entries."""
    if isinstance(value, (list, dict, set)):
        yield value, copy.copy(value)
    if depth and isinstance(value, (list, tuple, dict)):
        for part in list(value.values() if isinstance(value, dict) else value):
            yield from _containers(part, depth - 1)


def _refill(container: tuple[Any, Any]) -> bool:
    """Give a container the entries that it had; whether it had others."""
    now, before = container
    if _entries(now) == _entries(before):
        return False
    now.clear()
    if isinstance(now, list):
        now.extend(before)
    else:
        now.update(before)
    return True


def _entries(container: Any) -> Any:
    """What identifies the entries, without comparing tensors."""
    if isinstance(container, dict):
        return [(key, id(value)) for key, value in container.items()]
    return set(map(id, container)) if isinstance(container, set) else list(map(id, container))


def _put_back(now: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Give ``now`` the entries of ``before``; the names of those that had another value."""
    changed = []
    for name in {**before, **now}:
        old, new = before.get(name, _ABSENT), now.get(name, _ABSENT)
        if old is new:
            continue
        if isinstance(old, Tensor) or isinstance(new, Tensor) or old != new:
            changed.append(name)
        if old is _ABSENT:
            del now[name]
        else:
            now[name] = old
    return changed
