"""The user's model as it was: what forward keeps during capture is put back, and told."""

from __future__ import annotations

import functools
import inspect
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from fastres.ir.graph import user_path

_REGISTRIES = ("_buffers", "_parameters", "_modules")
_ABSENT = object()
_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_DEPTH = 6
"""Containers inside containers that are looked into."""


@contextmanager
def untouched(model: nn.Module) -> Iterator[list[str]]:
    """A context after which ``model`` holds what it held before, down to the items of its lists.

    ``forward`` runs once during capture, on stand-ins for tensors; what it keeps (on a module, in a
    list or dict of one, on a class) would stay there. Yields a list that has, at the end, a
    sentence for each attribute that forward changed.
    """
    before = _Contents(model)
    told: dict[str, None] = {}
    forward = model.forward

    @functools.wraps(forward)
    def watched(*args: Any, **kwargs: Any) -> Any:
        begun = _Contents(model)  # torch.export has put its stand-ins in the weights' places
        result = forward(*args, **kwargs)
        told.update(dict.fromkeys(begun.changes()))  # now: it puts some attributes back by itself
        return result

    # That of the method, without self, which a function's own __signature__ may have.
    vars(watched)["__signature__"] = inspect.signature(forward)
    changed: list[str] = []
    vars(model)["forward"] = watched
    try:
        yield changed
    finally:
        before.put_back()
        changed += told


class _Contents:
    """What the modules of a model hold, their classes, and the containers among it."""

    def __init__(self, model: nn.Module) -> None:
        self._held: list[tuple[str, Any, Any]] = []  # sentence's start, container, its copy
        seen: set[int] = set()
        for name, module in model.named_modules():
            where = f"module {user_path(name) or '(the model itself)'} ({type(module).__name__})"
            own = vars(module)
            self._held.append((f"{where} sets self.", own, dict(own)))
            for registry in _REGISTRIES:
                self._held.append((f"{where} sets self.", own[registry], dict(own[registry])))
            for key, value in own.items():
                if key not in _REGISTRIES:
                    self._look_into(value, f"{where} changes self.{key}", seen, _DEPTH)
        for kind in {type(module) for module in model.modules()}:
            if not kind.__module__.startswith("torch."):
                self._held.append(
                    (f"class {kind.__name__} sets {kind.__name__}.", kind, dict(vars(kind)))
                )

    def _look_into(self, value: Any, where: str, seen: set[int], depth: int) -> None:
        items = _items(value)
        if items is None or id(value) in seen or not depth:
            return
        seen.add(id(value))
        if not isinstance(value, tuple):  # which holds what it holds, but its lists may change
            container = value if isinstance(value, (list, dict, set, deque)) else vars(value)
            self._held.append((where, container, container.copy()))
        for item in items:
            self._look_into(item, where, seen, depth - 1)

    def changes(self) -> list[str]:
        """A sentence for each attribute that holds something else now."""
        told = []
        for where, now, before in self._held:
            names = [str(name) for name in _changed(now, before) if name != "forward"]
            if where.endswith("."):
                told += [f"{where}{name} in forward" for name in names]
            elif names:
                told.append(f"{where} in forward")
        return [f"{sentence}; the optimised model does not" for sentence in dict.fromkeys(told)]

    def put_back(self) -> None:
        """Let everything hold what it held."""
        for _, now, before in self._held:
            if isinstance(now, (list, set, deque)):
                if _changed(now, before):
                    now.clear()
                    now.extend(before) if not isinstance(now, set) else now.update(before)
                continue
            entries = vars(now) if isinstance(now, type) else now
            for name in [name for name in {**before, **entries} if _differs(entries, before, name)]:
                if isinstance(now, type):
                    delattr(now, name) if name not in before else setattr(now, name, before[name])
                elif name in before:
                    now[name] = before[name]
                else:
                    del now[name]


def _items(value: Any) -> list[Any] | None:
    """What a container or a plain object holds; None for anything else."""
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, (list, tuple, set, deque)):
        return list(value)
    kind = type(value).__module__.partition(".")[0]
    if isinstance(value, (nn.Module, type)) or kind in ("torch", "numpy", "builtins"):
        return None
    return (
        list(vars(value).values()) if isinstance(getattr(value, "__dict__", None), dict) else None
    )


def _changed(now: Any, before: Any) -> list[Any]:
    """The names that have another value, or for what has no names, something if it changed."""
    if isinstance(now, (list, deque)):
        same = len(now) == len(before) and all(map(_same, now, before))
        return [] if same else [""]
    if isinstance(now, set):
        return [] if now == before else [""]
    entries = vars(now) if isinstance(now, type) else now
    return [name for name in {**before, **entries} if _told(entries, before, name)]


def _differs(now: Any, before: Any, name: Any) -> bool:
    return now.get(name, _ABSENT) is not before.get(name, _ABSENT)


def _told(now: Any, before: Any, name: Any) -> bool:
    return not _same(now.get(name, _ABSENT), before.get(name, _ABSENT))


def _same(a: Any, b: Any) -> bool:
    """The same object, or equal numbers and texts: == of anything else may be the user's own."""
    if a is b:
        return True
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and isinstance(a, _PLAIN) and bool(a == b)
