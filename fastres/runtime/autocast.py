"""Precision is what ``optimize`` was asked for, whatever ``torch.autocast`` says around a call."""

from __future__ import annotations

import contextlib
from typing import Any

import torch


def without_autocast() -> contextlib.AbstractContextManager[Any]:
    """A context in which precision is what ``optimize`` was asked for, autocast or not."""
    if not torch._C._is_any_autocast_enabled():
        return _NOTHING
    stack = contextlib.ExitStack()
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            stack.enter_context(torch.autocast(device, enabled=False))
    return stack


_NOTHING: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
