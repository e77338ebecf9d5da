"""Quicker shapes in torch's tracing, for as long as a model is traced.

torch finds the shape of a BatchNorm's result by tracing what it computes, a dozen operators one by
one, each of which asks how its symbolic sizes and strides compare. In a ResNet that is most of what
is traced, and the answer is always that the result is like the input.

torch also keeps the shapes that it has found, each in terms of the symbols of its operator's
inputs. With sizes that differ from layer to layer as expressions, finding out whether a result can
be kept costs more than is ever saved, above all in attention with products of sizes. And it notes
things about every result that only other readers of a traced graph want.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

_BATCH_NORM = torch.ops.aten._native_batch_norm_legit_no_training.default
"""What every BatchNorm with running statistics comes to; sizes have been compared by then."""


@contextmanager
def quick_shapes() -> Iterator[None]:
    """Have torch take the shape functions of this file for symbolic sizes, and keep no shapes."""
    import torch._dynamo.config  # imports what capture imports
    from torch._subclasses.fake_impls import get_fast_op_impls

    known: dict[Any, Any] = get_fast_op_impls()
    is_ours = _BATCH_NORM not in known  # else a capture within a capture, or a torch's own
    if is_ours:
        known[_BATCH_NORM] = _batch_norm
    try:
        with torch._dynamo.config.patch(fake_tensor_cache_enabled=False), _no_notes():
            yield
    finally:
        if is_ours:
            del known[_BATCH_NORM]


@contextmanager
def _no_notes() -> Iterator[None]:
    """Have torch not note what nobody reads here: every result's memory layout and Python's stack.

    For the one, symbolic strides are asked how they compare; for the other, files are read.
    """
    from torch.fx.experimental import proxy_tensor

    with ExitStack() as stack:
        for owner, name, new in (
            (getattr(torch.fx, "config", None), "do_not_emit_stack_traces", True),
            (proxy_tensor, "_extract_tensor_metadata", _nothing),
        ):
            old = getattr(owner, name, new)
            if old is not new:  # else a capture within a capture, or a torch without it
                setattr(owner, name, new)
                stack.callback(setattr, owner, name, old)
        yield


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _batch_norm(
    mode: Any,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fake results [N, C, ...] like ``x``, and the saved statistics: none on a CPU, else [C]."""
    with mode:
        saved = (0,) if x.device.type == "cpu" else tuple(mean.shape)
        dtype = x.dtype if x.device.type == "cpu" else torch.promote_types(x.dtype, torch.float32)
        first, second = (
            torch.empty(saved, dtype=dtype, device=x.device) for _ in ("mean", "1 / deviation")
        )
        # torch has asked for this before; empty_like would work the strides out anew.
        if x.is_contiguous():
            result = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
        else:
            result = torch.empty_like(x)
        return result, first, second
