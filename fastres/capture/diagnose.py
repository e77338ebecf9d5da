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
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastres.ir.graph import user_path


def eager_fault(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Run a copy of ``model`` in eager mode and name what goes wrong.

    Returns:
        A sentence with the module's name and the reason, or None when the model runs.
    """
    try:
        copied = copy.deepcopy(model).eval()
    except Exception as error:  # noqa: BLE001 - a user's __deepcopy__ may raise anything
        return f"the model could not be copied for a diagnosis ({error})"
    names = {
        id(module): user_path(name) or "(the model itself)"
        for name, module in copied.named_modules()
    }
    running: list[nn.Module] = []
    returned_none: list[str] = []

    def enter(module: nn.Module, _args: Any) -> None:
        running.append(module)

    def leave(module: nn.Module, _args: Any, result: Any) -> None:
        running.pop()
        if result is None:
            returned_none.append(f"{names[id(module)]} ({type(module).__name__})")

    for module in copied.modules():
        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)
    try:
        with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            result = copied(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - whatever forward raises, the sentence says it
        where = running[-1] if running else copied
        sentence = (
            f"the model itself fails in module {names[id(where)]} ({type(where).__name__}): "
            f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else error}"
        )
        if returned_none:
            sentence += (
                f"; before that, {returned_none[0]} returned None: its forward has no return"
            )
        return sentence
    if result is None:
        return f"module {returned_none[0]} returned None: its forward has no return"
    return None


def why_not_captured(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    derived: bool,
    error: Exception,
) -> str:
    """Sentences for a model that could not be captured: what, where, and what to do about it."""
    shapes = [
        list(leaf.shape) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)
    ]
    advice = " Pass example_input=... if the model takes another input." if derived else ""
    fault = eager_fault(model, args, kwargs)
    if fault is not None:
        return f"{type(model).__name__} cannot be captured with input {shapes}: {fault}.{advice}"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
    location = _user_line(error)
    if "data dependent" in reason or "data-dependent" in reason or "unbacked" in reason:
        return (
            f"{type(model).__name__} decides on the values of a tensor{location}, so there is no "
            f"one graph of it ({reason}). Use torch.where instead of if, or optimise the parts "
            "around the decision separately."
        )
    return (
        f"{type(model).__name__} runs, but torch.export cannot follow it{location}: "
        f"{type(error).__name__}: {reason}"
    )


def _user_line(error: BaseException) -> str:
    """`` at file:line in function`` of the innermost frame outside torch, or nothing."""
    found, trace = "", error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        package = trace.tb_frame.f_globals.get("__name__", "").split(".")[0]
        if package not in ("torch", "fastres", "contextlib"):
            file = code.co_filename.replace("\\", "/").split("/")[-1]
            found = f" at {file}:{trace.tb_lineno} in {code.co_name}"
        trace = trace.tb_next
    return found
