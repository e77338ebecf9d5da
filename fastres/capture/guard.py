"""Capture leaves the user's model as it was: changes by forward are undone, and reported."""

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
_COMPARABLE = (type(None), bool, int, float, complex, str, bytes)
_MAX_DEPTH = 6
"""Levels of nested containers that a snapshot copies."""


@contextmanager
def state_restored(model: nn.Module) -> Iterator[list[str]]:
    """A context after which the state of ``model`` is what it was, down to the items of its lists.

    ``forward`` runs once during capture, on fake tensors; what it stores (on a module, in a list or
    dict of one, on a class) would stay there. Yields a list that holds, once the context is left, a
    sentence for each attribute that forward changed.
    """
    before = _Snapshot(model)
    sentences: dict[str, None] = {}
    forward = model.forward

    @functools.wraps(forward)
    def recording_forward(*args: Any, **kwargs: Any) -> Any:
        at_entry = _Snapshot(model)  # by now torch.export has put fake tensors for the weights
        result = forward(*args, **kwargs)
        # Compared here, not after the export: torch.export restores some attributes by itself.
        sentences.update(dict.fromkeys(at_entry.changes()))
        return result

    # The bound method's signature, without self; functools.wraps copies one that may have it.
    vars(recording_forward)["__signature__"] = inspect.signature(forward)
    changed: list[str] = []
    vars(model)["forward"] = recording_forward
    try:
        yield changed
    finally:
        before.restore()
        changed += sentences


class _Snapshot:
    """The attributes of a model's modules and of their classes, with copies of the containers."""

    def __init__(self, model: nn.Module) -> None:
        self._saved: list[tuple[str, Any, Any]] = []  # sentence's start, container, its copy
        seen: set[int] = set()
        for name, module in model.named_modules():
            where = f"module {user_path(name) or '(the model itself)'} ({type(module).__name__})"
            attributes = vars(module)
            self._saved.append((f"{where} sets self.", attributes, dict(attributes)))
            for registry in _REGISTRIES:
                self._saved.append(
                    (f"{where} sets self.", attributes[registry], dict(attributes[registry]))
                )
            for key, value in attributes.items():
                if key not in _REGISTRIES:
                    self._save_containers(value, f"{where} changes self.{key}", seen, _MAX_DEPTH)
        for kind in {type(module) for module in model.modules()}:
            if not kind.__module__.startswith("torch."):
                self._saved.append(
                    (f"class {kind.__name__} sets {kind.__name__}.", kind, dict(vars(kind)))
                )

    def _save_containers(self, value: Any, where: str, seen: set[int], depth: int) -> None:
        items = _items(value)
        if items is None or id(value) in seen or not depth:
            return
        seen.add(id(value))
        if not isinstance(value, tuple):  # a tuple cannot change, but a list in it can
            container = value if isinstance(value, (list, dict, set, deque)) else vars(value)
            self._saved.append((where, container, container.copy()))
        for item in items:
            self._save_containers(item, where, seen, depth - 1)

    def changes(self) -> list[str]:
        """A sentence for each attribute whose value is another one now."""
        sentences = []
        for where, now, before in self._saved:
            names = [str(name) for name in _changed_names(now, before) if name != "forward"]
            if where.endswith("."):
                sentences += [f"{where}{name} in forward" for name in names]
            elif names:
                sentences.append(f"{where} in forward")
        return [
            f"{sentence}; the optimised model does not" for sentence in dict.fromkeys(sentences)
        ]

    def restore(self) -> None:
        """Put every attribute and every container's items back."""
        for _, now, before in self._saved:
            if isinstance(now, (list, set, deque)):
                if _changed_names(now, before):
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
    """The items of a container, or attribute values of a plain object; None for anything else."""
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


def _changed_names(now: Any, before: Any) -> list[Any]:
    """The keys whose value changed; for a list or set, ``[""]`` if it changed and ``[]`` if not."""
    if isinstance(now, (list, deque)):
        same = len(now) == len(before) and all(map(_equal, now, before))
        return [] if same else [""]
    if isinstance(now, set):
        return [] if now == before else [""]
    entries = vars(now) if isinstance(now, type) else now
    return [name for name in {**before, **entries} if _is_reported_change(entries, before, name)]


def _differs(now: Any, before: Any, name: Any) -> bool:
    return now.get(name, _ABSENT) is not before.get(name, _ABSENT)


def _is_reported_change(now: Any, before: Any, name: Any) -> bool:
    return not _equal(now.get(name, _ABSENT), before.get(name, _ABSENT))


def _equal(a: Any, b: Any) -> bool:
    """The same object, or equal numbers and strings; == of other types may be the user's code."""
    if a is b:
        return True
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return type(a) is type(b) and isinstance(a, _COMPARABLE) and bool(a == b)
