"""One call of ``torch.export`` (non-strict), with the sizes that may vary as symbols."""

from __future__ import annotations

import inspect
import os
import threading
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fastres import forking

TANGLED = 60
"""Operations in the expression of one size, beyond which symbols do not pay.

A ResNet's sizes have at most a dozen. Padding computed from the image's size at every layer
(TensorFlow's SAME) nests divisions, and torch.export then takes minutes instead of seconds.
"""


class TangledSizes(Exception):
    """Raised inside capture to start again with the image's size as a number."""


class Tracing(TorchFunctionMode):
    """Watches the model's calls of torch while it is traced.

    Keeps ``F.avg_pool2d(f, f.shape[2:])`` independent of the image size: avg_pool2d takes plain
    numbers, so tracing would bake the example's size in, while pooling over the whole image is
    ``adaptive_avg_pool2d(f, 1)``, which has no size in it. And gives up early on sizes that are
    too complicated for symbols.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d and any(map(_is_tangled, args[0].shape)):
            raise TangledSizes
        if func is F.avg_pool2d and _pools_everything(*args, **kwargs):
            return F.adaptive_avg_pool2d(args[0] if args else kwargs["input"], 1)
        return func(*args, **kwargs)


def _is_tangled(size: Any) -> bool:
    return isinstance(size, torch.SymInt) and size.node.expr.count_ops() > TANGLED


def _pools_everything(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: Any = None,
) -> bool:
    return (
        isinstance(input, Tensor)
        and input.dim() == 4
        and isinstance(kernel_size, (tuple, list))
        and len(kernel_size) == 2
        and any(isinstance(size, torch.SymInt) for size in kernel_size)
        and [str(size) for size in kernel_size] == [str(size) for size in input.shape[2:]]
        and padding in (0, (0, 0), [0, 0])
        and divisor_override is None
    )


def with_batch(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Double a batch of one: torch.export would take a size of one for a constant."""
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    images = [t for t in tensors if t.dim() >= 4] or [t for t in tensors if t.dim() >= 2]
    if not images or images[0].shape[0] > 1:
        return args, kwargs

    def doubled(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.dim() >= 2 and leaf.shape[0] in (0, 1):
            return leaf.new_zeros((2, *leaf.shape[1:]))
        return leaf

    doubled_args, doubled_kwargs = pytree.tree_map(doubled, (args, kwargs))
    return doubled_args, doubled_kwargs


def dynamic_sizes(arguments: Any, images_vary: bool = True) -> Any:
    """What ``torch.export`` takes as ``dynamic_shapes``: batch, height and width may vary.

    With ``images_vary=False``, the batch only.
    """

    def axes(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return None
        varying = [0] if leaf.dim() >= 2 else []
        if leaf.dim() >= 4 and images_vary:
            varying += [leaf.dim() - 2, leaf.dim() - 1]
            if leaf.dtype == torch.uint8:  # may be NHWC; torch finds out that channels are fixed
                varying += [leaf.dim() - 3]
        # torch takes a size of one for a constant, and would warn.
        return {axis: Dim.AUTO for axis in varying if leaf.shape[axis] != 1}

    return pytree.tree_map(axes, arguments)


def export(
    model: nn.Module,
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    images_vary: bool = True,
) -> ExportedProgram:
    """Export a model in eval mode; ``signature`` is that of its forward.

    Raises:
        TangledSizes: the symbols of height and width got too complicated.
        Exception: whatever the model's forward or torch.export raise.
    """
    shapes = dynamic_sizes(dict(signature.bind(*args, **kwargs).arguments), images_vary)
    # Without no_grad a `with torch.no_grad()` inside forward would become a nested graph.
    with torch.no_grad(), Tracing(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # attributes set in forward: `untouched` tells of them
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)


class _Small(nn.Module):
    """A convolution: what torch imports for it, it imports for every model."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(1, 1, 1, 1, dtype=torch.float32, device="cpu"))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.get_buffer("weight"))


class _Loader:
    """Has torch import what capture needs, once, in a thread of its own.

    Ctrl-C reaches the main thread only. An import that it cuts off would leave names half
    registered in torch and sympy, and no later capture in the process would work.
    """

    def __init__(self) -> None:
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def wait(self) -> None:
        """Return when all is imported; begin where nobody has."""
        if self._done.is_set():
            return
        if not torch.cuda.is_available():
            _stand_in_for_a_gpu()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._load, name="fastres-imports")
            self._thread.start()
        self._done.wait()

    def _load(self) -> None:
        try:
            small = _Small().eval()
            x = torch.zeros(2, 1, 4, 4, dtype=torch.float32, device="cpu")
            export(small, inspect.signature(small.forward), (x,), {})
        finally:
            self._done.set()  # what is wrong shows in the capture itself


def _stand_in_for_a_gpu() -> None:
    """Have torch make what its CUDA builds use where there is no GPU, in a thread that never ends.

    It lives as long as the thread that asked first, and torch asks in every capture; 2.11 crashes
    in the first one behind the end of that thread.
    """
    if threading.current_thread() is threading.main_thread():
        torch._C._ensureCUDADeviceGuardSet()
        return
    made = threading.Event()

    def stay() -> None:
        torch._C._ensureCUDADeviceGuardSet()
        made.set()
        threading.Event().wait()

    threading.Thread(target=stay, name="fastres-stays", daemon=True).start()
    made.wait()


_loader = _Loader()


def import_ahead() -> None:
    """Have torch import what :func:`export` needs, so that Ctrl-C cannot cut it off."""
    _loader.wait()


def _nothing_is_exported() -> None:
    """torch tells all threads that one exports; in a child that one is not there any more."""
    if forking.cut_off():
        torch.compiler._is_compiling_flag = False
        torch.compiler._is_exporting_flag = False


if hasattr(os, "register_at_fork"):  # behind the hook of `forking`
    os.register_at_fork(after_in_child=_nothing_is_exported)
