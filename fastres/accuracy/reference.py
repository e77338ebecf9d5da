"""The model that answers are compared with: itself, in float64 or in another precision."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastres.capture.capture import (
    STATE_CHANGES,
    TRACING,
    as_arguments,
    capture,
    in_eval_mode,
    model_dtype,
)
from fastres.capture.guard import state_restored
from fastres.capture.wrappers import copy_keeping_modes
from fastres.errors import CaptureError
from fastres.ir.precision import Recorder


class InPrecision:
    """The model in another precision: a converted copy, run by torch alone.

    A model whose forward names a dtype cannot be converted; of such a model, its captured graph is
    run instead, with that dtype read as the other one.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._model, _ = in_eval_mode(model)
        self._twin = copy_keeping_modes(self._model)
        if dtype != model_dtype(self._model):
            self._twin.to(dtype)
        self._dtype = dtype

    def __call__(self, batch: Any) -> Any:
        """The answer for a batch as :func:`fastres.verify` takes it.

        Raises:
            CaptureError: forward changes a buffer, which an optimised model would not.
        """
        own = model_dtype(self._model)
        args, kwargs = cast_copy(as_arguments(batch), own, self._dtype)
        before = self._state()
        try:
            # A forward may print, and keep something on a class, which the twin has in common.
            with TRACING, state_restored(self._twin), contextlib.redirect_stdout(io.StringIO()):
                answer = self._twin(*args, **kwargs)
                after = self._state()
        except RuntimeError:
            if self._dtype == own:
                raise  # nothing was converted, the model itself fails
            captured = capture(self._model, batch)
            recorder = Recorder(captured.module, own, self._dtype)
            flat = recorder.run(*cast_copy(captured.example, own, self._dtype))
            return pytree.tree_unflatten(list(flat), captured.out_spec)
        for name, state in after.items():
            if state != before.get(name):
                module = name.rpartition(".")[0] or "the model"
                raise CaptureError(STATE_CHANGES.format(module=module))
        return answer

    def _state(self) -> dict[str, tuple[int, int]]:
        """What tells whether a buffer was written or replaced."""
        return {
            name: (id(buffer), 0 if buffer.is_inference() else buffer._version)
            for name, buffer in self._twin.named_buffers()
        }


def cast_copy(arguments: Any, own: torch.dtype, dtype: torch.dtype) -> Any:
    """Copies (a model may write to its input), those of the dtype ``own`` cast to ``dtype``."""

    def cast(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        copied = leaf.detach().clone()
        return copied.to(dtype) if copied.dtype == own else copied

    return pytree.tree_map(cast, arguments)
