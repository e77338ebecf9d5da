"""Remove wrappers (DataParallel, torch.compile) from a model and their prefixes from its names."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from typing import Any

from torch import nn

from fastres.errors import CaptureError

PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel, DistributedDataParallel and torch.compile put before every name."""


def unwrapped(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """The model without wrappers around it or its parts, and a sentence for each that there was.

    The model is not changed: where a part is wrapped, the result is another module of the same
    structure on the same parts and tensors.

    Raises:
        CaptureError: a part is wrapped, and the model around it cannot be copied.
    """
    notes: list[str] = []
    while (inner := _wrapped_module(model)) is not None:
        notes.append(f"{type(model).__name__} around the model is left out")
        model = inner
    parts = {name: m for name, m in model.named_modules() if _wrapped_module(m) is not None}
    if not parts:
        return model, notes
    # deepcopy takes what the memo has for an object instead of copying that object.
    memo: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    for name, part in parts.items():
        notes.append(f"{type(part).__name__} around {name} is left out")
        inner = part
        while (next_module := _wrapped_module(inner)) is not None:
            inner = next_module
        memo[id(part)] = inner
    try:
        return copy_keeping_modes(model, memo), notes
    except Exception as error:  # a user's __deepcopy__ may raise anything
        name, part = next(iter(parts.items()))
        raise CaptureError(
            f"module {name} is wrapped in a {type(part).__name__}, and the model around it cannot "
            f"be copied to leave that out ({error}); replace it by the module inside"
        ) from error


def copy_keeping_modes(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy with each module's train/eval mode; a copied ``fx.GraphModule`` would train."""
    copied = copy.deepcopy(model, memo)
    training = {name: module.training for name, module in model.named_modules()}
    for name, module in copied.named_modules():
        module.training = training.get(name, module.training)
    return copied


def unprefixed(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict without the prefixes that wrappers put before every name."""
    names = dict(state)
    for prefix in PREFIXES:
        if names and all(name.startswith(prefix) for name in names):
            names = {name.removeprefix(prefix): value for name, value in names.items()}
    return names


def _wrapped_module(module: nn.Module) -> nn.Module | None:
    """The module inside a wrapper; None for a module that is no wrapper."""
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner: Any = module.module
    elif _is_compiled(module):
        inner = module._orig_mod
    else:
        return None
    return inner if isinstance(inner, nn.Module) else None


def _is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile made it; where its module was never imported, it made nothing.

    Importing it here would be an import of torch's that Ctrl-C could cut off.
    """
    dynamo: Any = sys.modules.get("torch._dynamo")
    return isinstance(module, getattr(dynamo, "OptimizedModule", ()))
