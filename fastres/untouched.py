"""The user's model as it was: attributes that forward sets during capture are put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from fastres.errors import CaptureError


@contextmanager
def untouched(model: nn.Module) -> Iterator[list[str]]:
    """A context after which every module of ``model`` has the attributes that it had before.

    ``forward`` runs once during capture, on stand-ins for tensors; what it stores on ``self`` would
    stay there. Yields a list that has, at the end, a sentence for each attribute put back.

    Raises:
        CaptureError: forward replaced a buffer or parameter; the optimised model would not.
    """
    before = [(name, module, _contents(module)) for name, module in model.named_modules()]
    changed: list[str] = []
    replaced: list[str] = []
    try:
        yield changed
    finally:
        for name, module, contents in before:
            where = f"module {name or '(the model itself)'} ({type(module).__name__})"
            for registry in _REGISTRIES:
                for key in _put_back(vars(module)[registry], contents[registry]):
                    replaced.append(f"{where} changes its own state in forward ({key})")
            for key in _put_back(vars(module), contents["attributes"]):
                changed.append(f"{where} sets self.{key} in forward; the optimised model does not")
    if replaced:
        raise CaptureError(
            f"{replaced[0]}; an optimised model keeps no state: move this out of forward"
        )


_REGISTRIES = ("_buffers", "_parameters", "_modules")
_ABSENT = object()


def _contents(module: nn.Module) -> dict[str, dict[str, Any]]:
    registries = {registry: dict(vars(module)[registry]) for registry in _REGISTRIES}
    return {"attributes": dict(vars(module)), **registries}


def _put_back(now: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Give ``now`` the entries of ``before``; the names of those that differed."""
    names = [k for k in {**before, **now} if now.get(k, _ABSENT) is not before.get(k, _ABSENT)]
    for name in names:
        if name in before:
            now[name] = before[name]
        else:
            del now[name]
    return names
