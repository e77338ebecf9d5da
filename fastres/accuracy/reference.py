"""The model that answers are compared with: itself, in float64 or in another precision."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastres.accuracy.twin import lean_twin, whole_twin
from fastres.capture.capture import (
    STATE_CHANGES,
    TRACING,
    as_arguments,
    capture,
    in_eval_mode,
    model_dtype,
)
from fastres.capture.guard import state_restored
from fastres.errors import CaptureError
from fastres.ir.precision import Recorder


class InPrecision:
    """The model in another precision: a converted copy, run by torch alone.

    A model whose forward names a dtype cannot be converted; of such a model, its captured graph is
    run instead, with that dtype read as the other one.

    Args:
        endless: with float16, whose numbers then neither overflow nor thin out; it is the captured
            graph that is run.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, endless: bool = False) -> None:
        self._model, _ = in_eval_mode(model)
        self._dtype, self._endless = dtype, endless
        self._is_lean = True
        self._twin = self._model if endless else lean_twin(self._model, self._conversion())

    def __call__(self, batch: Any) -> Any:
        """The answer for a batch as :func:`fastres.verify` takes it.

        Raises:
            CaptureError: forward changes a buffer, which an optimised model would not.
        """
        own = model_dtype(self._model)
        if self._endless:
            return self._by_graph(batch, own)
        if self._is_lean:
            try:
                return self._answer(batch, own)
            except CaptureError:
                raise
            except Exception:  # noqa: BLE001 - whatever a forward makes of what stands in
                # It keeps parameters where the twin's cannot be read; or the model itself fails.
                self._is_lean = False
                self._twin = whole_twin(self._model, self._conversion())
        try:
            return self._answer(batch, own)
        except RuntimeError:
            if self._dtype == own:
                raise  # nothing was converted, the model itself fails
            return self._by_graph(batch, own)

    def _conversion(self) -> torch.dtype | None:
        return None if self._dtype == model_dtype(self._model) else self._dtype

    def _answer(self, batch: Any, own: torch.dtype) -> Any:
        args, kwargs = cast_copy(as_arguments(batch), own, self._dtype)
        before = self._state()
        # A forward may print, and keep something on a class, which the twin has in common.
        with TRACING, state_restored(self._twin), contextlib.redirect_stdout(io.StringIO()):
            answer = self._twin(*args, **kwargs)
            after = self._state()
        for name, state in after.items():
            if state != before.get(name):
                module = name.rpartition(".")[0] or "the model"
                raise CaptureError(STATE_CHANGES.format(module=module))
        if self._is_lean and any(
            isinstance(leaf, Tensor) and leaf.is_meta for leaf in pytree.tree_leaves(answer)
        ):
            raise RuntimeError("the answer was computed from what stands in for a parameter")
        return answer

    def _by_graph(self, batch: Any, own: torch.dtype) -> Any:
        captured = capture(self._model, batch)
        recorder = Recorder(captured.module, own, self._dtype, self._endless)
        flat = recorder.run(*cast_copy(captured.example, own, recorder.dtype))
        return pytree.tree_unflatten(list(flat), captured.out_spec)

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
