"""An optimised model has no derivative, records none, and says so where one is wanted."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastres.errors import InputError
from fastres.system.plain_tensors import has_python_dispatch, has_tangent

_functorch = torch._C._functorch


class _WithoutGradients:
    """What ``torch.no_grad()`` does, without an object made anew in every call."""

    def __enter__(self) -> None:
        torch._C._set_grad_enabled(False)

    def __exit__(self, *_: object) -> None:
        torch._C._set_grad_enabled(True)


_WITHOUT = _WithoutGradients()
_NOTHING: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


def without_gradients() -> contextlib.AbstractContextManager[None]:
    """A context in which torch records no gradients."""
    return _WITHOUT if torch.is_grad_enabled() else _NOTHING


def refuse_derivatives(values: Sequence[Any]) -> None:
    """Let pass what no derivative is taken of.

    Raises:
        InputError: an input requires a gradient where gradients are recorded, has a tangent, or is
            what ``torch.func`` differentiates by.
    """
    tensors = [value for value in values if isinstance(value, Tensor)]
    if torch.is_grad_enabled() and any(value.requires_grad for value in tensors):
        raise InputError(
            "got an input that requires a gradient, but an optimised model is for inference "
            "and has none: call it under torch.no_grad(), or pass x.detach()"
        )
    if any(map(_is_differentiated, tensors)):
        raise InputError(
            "got an input that a derivative is taken of (by torch.func or forward-mode "
            "differentiation), but an optimised model is for inference and has none: pass "
            "x.detach(), or differentiate the model that it was made from"
        )


def _is_differentiated(value: Tensor) -> bool:
    while _functorch.is_functorch_wrapped_tensor(value):
        if _functorch.is_gradtrackingtensor(value):
            return True
        value = _functorch.get_unwrapped(value)
    if forward_ad._current_level < 0:
        return False
    return has_python_dispatch(value) or has_tangent(value)  # what is inside cannot be asked for
