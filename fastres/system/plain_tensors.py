"""What a kernel may be given: plain tensors in memory, in a call that nothing watches or rewrites.

torch lets other things pass for a tensor: shapes without values (fake and meta tensors), wrappers
(functional tensors, those of ``torch.func``, subclasses), views whose values are not those in
memory (the negative and the conjugate bit), tensors whose memory was given back. And it lets a call
be watched: by ``make_fx``, ``torch.jit.trace``, a transformation of ``torch.func``, a dispatch
mode. All of this torch knows by its dispatch keys, those of the tensor and those of the thread, so
two numbers tell an ordinary call from any other, including what torch may invent yet.
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
    """The dispatch keys of these names as bits; those that this torch does not have are none."""
    known = [getattr(torch._C.DispatchKey, name, None) for name in names]
    bits = 0
    for key in known:
        bits |= 0 if key is None else int(torch._C.DispatchKeySet(key).raw_repr())
    return bits


_OF_PLAIN = _bits(
    "ADInplaceOrView",
    *(f"{kind}{device}" for device in _DEVICES for kind in ("", "Autograd", "Autocast")),
)
"""Keys of a tensor in memory, made inside or outside ``inference_mode``."""

_OF_QUIET = _bits("ADInplaceOrView", "BackendSelect")
"""Keys that a thread has where nothing watches, inside or outside ``inference_mode``."""

_tensor_keys = torch._C._dispatch_keys
_thread_keys = torch._C._dispatch_tls_local_include_set
_function_modes = torch._C._len_torch_function_stack


def is_ordinary(values: Sequence[Any]) -> bool:
    """Whether kernels can run a call with these arguments (of every call: two microseconds)."""
    if _thread_keys().raw_repr() & ~_OF_QUIET or (_function_modes() and _is_watched_in_python()):
        return False
    for value in values:
        kind = type(value)
        if kind is Tensor or kind is nn.Parameter:
            if _tensor_keys(value).raw_repr() & ~_OF_PLAIN or not _is_in_memory(value):
                return False
            if forward_ad._current_level >= 0 and has_tangent(value):
                return False
        elif isinstance(value, Tensor):
            return False
    return True


def watcher() -> str | None:
    """Who watches calls in this thread or rewrites them, as one would call it; None for nobody."""
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace"
    modes = torch.utils._python_dispatch._get_current_dispatch_mode_stack()
    if modes:
        return type(modes[-1]).__name__
    if torch._C._functorch.maybe_current_level() is not None:
        return "a transformation of torch.func"
    if _thread_keys().raw_repr() & ~_OF_QUIET:
        return f"torch's dispatcher ({_thread_keys()})"
    return None


def refuse_watched(what: str) -> None:
    """For work that makes weights or reads them, which cannot be done on stand-ins for tensors.

    Raises:
        OptionError: something watches this thread's calls.
    """
    found = watcher()
    if found is not None:
        raise OptionError(
            f"{what} was called under {found}, where tensors have no values of their own: "
            "call it outside, and only the optimised model inside"
        )


def oddity(value: Tensor) -> str | None:
    """What keeps kernels from reading a tensor's values in memory; None where nothing does."""
    extra = _tensor_keys(value).raw_repr() & ~_OF_PLAIN
    if stands_for_another(value):
        return f"it is a {type(value).__name__}, a tensor that stands for something else"
    if value.is_meta:
        return "it is on the meta device, without values"
    if value.layout != torch.strided:
        return f"it is a {value.layout} tensor"
    for name, what in _KINDS.items():
        if extra & _bits(name):
            return what
    if extra:
        return f"it is none that kernels can read ({_tensor_keys(value)})"
    if forward_ad._current_level >= 0 and has_tangent(value):
        return "it has a tangent (forward-mode differentiation)"
    return lost_memory(value)


def lost_memory(value: Tensor) -> str | None:
    """Says that a tensor's memory was given back, if it was; None for what never had any."""
    extra = _tensor_keys(value).raw_repr() & ~_OF_PLAIN
    if extra & ~_READ_OTHERWISE or _is_in_memory(value):
        return None
    return (
        f"its memory was given back ({value.untyped_storage().nbytes()} bytes are left of "
        f"{_end(value) * value.itemsize})"
    )


def settled(value: Any, name: str) -> Any:
    """An example's tensor as a plain one of the same values; anything else as it is.

    Raises:
        OptionError: it has no values.
    """
    if not isinstance(value, Tensor):
        return value
    if type(value) is not Tensor and not stands_for_another(value):
        value = value.as_subclass(Tensor)
    extra = _tensor_keys(value).raw_repr() & ~_OF_PLAIN
    if extra and not extra & ~_READ_OTHERWISE:
        value = value if lost_memory(value) else value.resolve_conj().resolve_neg()
    found = oddity(value)
    if found is not None:
        raise OptionError(f"{name}: {found}; pass a plain tensor")
    return value


def stands_for_another(value: Tensor) -> bool:
    """Whether Python code of somebody's own computes with the tensor (a fake one, a wrapper)."""
    return bool(_tensor_keys(value).raw_repr() & _STANDS_FOR_ANOTHER)


def has_tangent(value: Tensor) -> bool:
    """Whether a tensor is a dual number of forward-mode differentiation."""
    return forward_ad.unpack_dual(value).tangent is not None


_STANDS_FOR_ANOTHER = _bits("Python", "PythonTLSSnapshot")
_READ_OTHERWISE = _bits("Negative", "Conjugate")

_KINDS = {
    "NestedTensor": "it is a nested tensor",
    "Negative": "its negative bit is set, its values are not those in memory (use resolve_neg())",
    "Conjugate": "its conjugate bit is set, its values are not those in memory "
    "(use resolve_conj())",
    "ZeroTensor": "it is a zero without memory",
}


def _is_watched_in_python() -> bool:
    """Whether a function mode is there that does more than name a default device."""
    modes = torch.overrides._get_current_function_mode_stack()
    return any(type(mode) is not DeviceContext for mode in modes)


def _is_in_memory(value: Tensor) -> bool:
    """Whether all elements lie in the tensor's storage, which may have been shrunk."""
    held: int = value.untyped_storage().nbytes()
    if value.is_contiguous():  # most often, and quickly told
        return not value.nbytes or held >= value.nbytes + value.storage_offset() * value.itemsize
    return bool(held >= _end(value) * value.itemsize)


def _end(value: Tensor) -> Any:
    """Elements from the storage's start to behind the tensor's last one."""
    count = value.numel()
    if not count:
        return 0
    if value.is_contiguous(memory_format=torch.channels_last):
        return value.storage_offset() + count
    reach = sum((size - 1) * step for size, step in zip(value.shape, value.stride(), strict=True))
    return value.storage_offset() + reach + 1
