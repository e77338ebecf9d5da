"""The user's model as it was: attributes that forward sets during capture are put back."""

from __future__ import annotations

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
            changed += [
                f"{where} sets self.{key} in forward; the optimised model does not"
                for key in _put_back(vars(module), contents["attributes"])
            ]


_REGISTRIES = ("_buffers", "_parameters", "_modules")
_ABSENT = object()


def _contents(module: nn.Module) -> dict[str, dict[str, Any]]:
    registries = {registry: dict(vars(module)[registry]) for registry in _REGISTRIES}
    return {"attributes": dict(vars(module)), **registries}


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
