"""Whether kernels can run a call: plain tensors in memory, and no tracing or transformation.

A ``torch.Tensor`` need not have values in memory: it may be a shape only (fake and meta tensors), a
wrapper (functional tensors, those of ``torch.func``, subclasses), a view whose values are not those
in memory (the negative and the conjugate bit), or have a storage that was freed. A call may be
traced or transformed: by ``make_fx``, ``torch.jit.trace``, ``torch.func``, a dispatch mode. Each of
these sets a dispatch key of the tensor or of the thread, so comparing two bit sets recognises a
plain call, and refuses kinds of tensors that later releases of torch may add.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._device import DeviceContext

from fastres.errors import OptionError

_DEVICES = ("CPU", "CUDA", "MPS", "XPU")


def _bits(*names: str) -> int:
    """The dispatch keys of these names as bits; names that this torch does not have are skipped."""
    known = [getattr(torch._C.DispatchKey, name, None) for name in names]
    bits = 0
    for key in known:
        bits |= 0 if key is None else int(torch._C.DispatchKeySet(key).raw_repr())
    return bits


_PLAIN_TENSOR_KEYS = _bits(
    "ADInplaceOrView",
    *(f"{kind}{device}" for device in _DEVICES for kind in ("", "Autograd", "Autocast")),
)
"""Dispatch keys of a tensor in memory, made inside or outside ``inference_mode``."""

_PLAIN_THREAD_KEYS = _bits("ADInplaceOrView", "BackendSelect")
"""Keys of a thread without tracing or modes, inside or outside ``inference_mode``."""

_tensor_keys = torch._C._dispatch_keys
_thread_keys = torch._C._dispatch_tls_local_include_set
_function_modes = torch._C._len_torch_function_stack


def is_plain_call(values: Sequence[Any]) -> bool:
    """Whether kernels can run a call with these arguments; takes two microseconds of every call."""
    if _thread_keys().raw_repr() & ~_PLAIN_THREAD_KEYS or (
        _function_modes() and _has_function_mode()
    ):
        return False
    for value in values:
        kind = type(value)
        if kind is Tensor or kind is nn.Parameter:
            if _tensor_keys(value).raw_repr() & ~_PLAIN_TENSOR_KEYS or not _is_in_memory(value):
                return False
            if forward_ad._current_level >= 0 and has_tangent(value):
                return False
        elif isinstance(value, Tensor):
            return False
    return True


def active_tracer() -> str | None:
    """A name for what traces or transforms calls in this thread; None where nothing does."""
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace"
    modes = torch.utils._python_dispatch._get_current_dispatch_mode_stack()
    if modes:
        return type(modes[-1]).__name__
    if torch._C._functorch.maybe_current_level() is not None:
        return "a transformation of torch.func"
    if _thread_keys().raw_repr() & ~_PLAIN_THREAD_KEYS:
        return f"torch's dispatcher ({_thread_keys()})"
    return None


def refuse_under_tracing(what: str) -> None:
    """Refuse work that reads or makes weights while tensors have no values of their own.

    Args:
        what: the work, for the message.

    Raises:
        OptionError: calls of this thread are traced or transformed.
    """
    tracer = active_tracer()
    if tracer is not None:
        raise OptionError(
            f"{what} was called under {tracer}, where tensors have no values of their own: "
            "call it outside, and only the optimised model inside"
        )


def why_not_plain(value: Tensor) -> str | None:
    """Why kernels cannot read a tensor's values in memory; None where they can."""
    extra = _tensor_keys(value).raw_repr() & ~_PLAIN_TENSOR_KEYS
    if has_python_dispatch(value):
        return f"it is a {type(value).__name__}, a tensor that stands for something else"
    if value.is_meta:
        return "it is on the meta device, without values"
    if value.layout != torch.strided:
        return f"it is a {value.layout} tensor"
    if extra:
        for name, what in _REASONS.items():
            if extra & _bits(name):
                return what
        return f"it is none that kernels can read ({_tensor_keys(value)})"
    if forward_ad._current_level >= 0 and has_tangent(value):
        return "it has a tangent (forward-mode differentiation)"
    return lost_memory(value)


def lost_memory(value: Tensor) -> str | None:
    """A sentence where a tensor's storage was freed or shrunk; None for one without a storage."""
    extra = _tensor_keys(value).raw_repr() & ~_PLAIN_TENSOR_KEYS
    if extra & ~_LAZY_VIEW_KEYS or _is_in_memory(value):
        return None
    return (
        f"its memory was given back ({value.untyped_storage().nbytes()} bytes are left of "
        f"{_storage_elements(value) * value.itemsize})"
    )


def materialized(value: Any, name: str) -> Any:
    """An example's tensor as a plain one of the same values; anything but a tensor as it is.

    Lazy negation and conjugation are carried out, subclasses without Python dispatch are removed.

    Raises:
        OptionError: it has no values in memory; ``name`` is the argument's, for the message.
    """
    if not isinstance(value, Tensor):
        return value
    if type(value) is not Tensor and not has_python_dispatch(value):
        value = value.as_subclass(Tensor)
    extra = _tensor_keys(value).raw_repr() & ~_PLAIN_TENSOR_KEYS
    if extra and not extra & ~_LAZY_VIEW_KEYS:
        value = value if lost_memory(value) else value.resolve_conj().resolve_neg()
    reason = why_not_plain(value)
    if reason is not None:
        raise OptionError(f"{name}: {reason}; pass a plain tensor")
    return value


def has_python_dispatch(value: Tensor) -> bool:
    """Whether operators on the tensor run Python code (a fake tensor, a wrapper subclass)."""
    return bool(_tensor_keys(value).raw_repr() & _PYTHON_KEYS)


def has_tangent(value: Tensor) -> bool:
    """Whether a tensor is a dual number of forward-mode differentiation."""
    return forward_ad.unpack_dual(value).tangent is not None


_PYTHON_KEYS = _bits("Python", "PythonTLSSnapshot")
_LAZY_VIEW_KEYS = _bits("Negative", "Conjugate")

_REASONS = {
    "NestedTensor": "it is a nested tensor",
    "Negative": "its negative bit is set, its values are not those in memory (use resolve_neg())",
    "Conjugate": "its conjugate bit is set, its values are not those in memory "
    "(use resolve_conj())",
    "ZeroTensor": "it is a zero without memory",
}


def _has_function_mode() -> bool:
    """Whether a ``TorchFunctionMode`` other than that of a default device is active."""
    modes = torch.overrides._get_current_function_mode_stack()
    return any(type(mode) is not DeviceContext for mode in modes)


def _is_in_memory(value: Tensor) -> bool:
    """Whether all elements lie in the tensor's storage, which may have been shrunk."""
    available: int = value.untyped_storage().nbytes()
    if value.is_contiguous():  # the usual case, without looking at strides
        return (
            not value.nbytes or available >= value.nbytes + value.storage_offset() * value.itemsize
        )
    return bool(available >= _storage_elements(value) * value.itemsize)


def _storage_elements(value: Tensor) -> Any:
    """Elements that the storage must have: from its start up to the tensor's last one."""
    count = value.numel()
    if not count:
        return 0
    if value.is_contiguous(memory_format=torch.channels_last):
        return value.storage_offset() + count
    reach = sum((size - 1) * step for size, step in zip(value.shape, value.stride(), strict=True))
    return value.storage_offset() + reach + 1
