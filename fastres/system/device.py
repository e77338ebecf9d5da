"""Devices as callers name them, and graphs that move from one to another."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fastres.errors import OptionError, TargetError


def checked_device(device: torch.device | str | None) -> torch.device | None:
    """A device that is here, as its tensors name it, or None for none given.

    Raises:
        OptionError: it is no device with memory.
        TargetError: it is not here.
    """
    if device is None:
        return None
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise OptionError(f"device={device!r}: {str(error).splitlines()[0]}") from error
    if wanted.type == "meta":
        raise OptionError("device='meta': nothing runs there; expected a device with memory")
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise TargetError(f"device={device!r}: torch sees no CUDA device here; leave device out")
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise TargetError(
            f"device={device!r}: torch sees {torch.cuda.device_count()} CUDA devices here, the "
            "first of which is cuda:0"
        )
    if wanted.type == "cuda" and wanted.index is None:  # tensors always name theirs
        return torch.device("cuda", torch.cuda.current_device())
    return wanted


def move(module: fx.GraphModule, old: torch.device, new: torch.device) -> None:
    """Bring a graph's constants to ``new``, and what it makes itself on ``old`` too."""
    module.to(new)
    if old == new:
        return

    def moved(value: Any) -> Any:
        return new if isinstance(value, torch.device) and value == old else value

    for node in module.graph.nodes:
        node.args = fx.node.map_aggregate(node.args, moved)
        node.kwargs = fx.node.map_aggregate(node.kwargs, moved)
    module.recompile()
