"""Check a device that the caller named, and move a graph from one device to another."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fastres.errors import OptionError, TargetError


def checked_device(device: torch.device | str | None) -> torch.device | None:
    """A device of this machine, with its index as tensors have it; None for None.

    Raises:
        OptionError: it is not the name of a device, or is one without memory (meta).
        TargetError: this machine does not have it.
    """
    if device is None:
        return None
    try:
        requested = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise OptionError(f"device={device!r}: {str(error).splitlines()[0]}") from error
    if requested.type == "meta":
        raise OptionError("device='meta': nothing runs there; expected a device with memory")
    if requested.type == "cuda" and not torch.cuda.is_available():
        raise TargetError(f"device={device!r}: torch sees no CUDA device here; leave device out")
    if requested.type == "cuda" and (requested.index or 0) >= torch.cuda.device_count():
        raise TargetError(
            f"device={device!r}: torch sees {torch.cuda.device_count()} CUDA devices here, the "
            "first of which is cuda:0"
        )
    if requested.type == "cuda" and requested.index is None:  # tensors always name theirs
        return torch.device("cuda", torch.cuda.current_device())
    return requested


def move(module: fx.GraphModule, old: torch.device, new: torch.device) -> None:
    """Move a graph's constants to ``new``, and create tensors there instead of on ``old``."""
    module.to(new)
    if old == new:
        return

    def to_new_device(value: Any) -> Any:
        return new if isinstance(value, torch.device) and value == old else value

    for node in module.graph.nodes:
        node.args = fx.node.map_aggregate(node.args, to_new_device)
        node.kwargs = fx.node.map_aggregate(node.kwargs, to_new_device)
    module.recompile()
