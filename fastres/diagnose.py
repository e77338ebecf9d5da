"""Which module is to blame when a model cannot be run or captured.

torch's own errors name an operator and a line. The user knows the model by module names, so a
copy of the model is run once more with a hook on every module.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn


def eager_fault(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Run a copy of ``model`` in eager mode and name what goes wrong.

    Returns:
        A sentence with the module's name and the reason, or None when the model runs.
    """
    try:
        twin = copy.deepcopy(model).eval()
    except Exception as error:  # noqa: BLE001 - a user's __deepcopy__ may raise anything
        return f"the model could not be copied for a diagnosis ({error})"
    names = {id(module): name or "(the model itself)" for name, module in twin.named_modules()}
    running: list[nn.Module] = []
    nothing: list[str] = []

    def enter(module: nn.Module, _args: Any) -> None:
        running.append(module)

    def leave(module: nn.Module, _args: Any, result: Any) -> None:
        running.pop()
        if result is None:
            nothing.append(f"{names[id(module)]} ({type(module).__name__})")

    for module in twin.modules():
        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)
    try:
        with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            result = twin(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - whatever forward raises, the sentence says it
        where = running[-1] if running else twin
        sentence = (
            f"the model itself fails in module {names[id(where)]} ({type(where).__name__}): "
            f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else error}"
        )
        if nothing:
            sentence += f"; before that, {nothing[-1]} returned None, is its return missing?"
        return sentence
    if result is None:
        return f"module {nothing[-1]} returned None, is its return missing?"
    return None
