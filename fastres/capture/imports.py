"""What torch imports for a capture: once, in a thread of its own, and no more than it needs."""

from __future__ import annotations

import importlib.abc
import inspect
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils._triton as torch_and_triton
from torch import Tensor, nn

from fastres.capture.export_program import export_with_dynamic_sizes
from fastres.system import versions
from fastres.system.collector import full_collections_later
from fastres.system.torch_logs import silence_torch_logs


class _TinyModel(nn.Module):
    """One convolution: exporting it imports what exporting any model does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(1, 1, 1, 1, dtype=torch.float32, device="cpu"))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.get_buffer("weight"))


class _ImportThread:
    """Has torch import what capture needs, once, in a thread of its own.

    Ctrl-C reaches the main thread only. An import that it cuts off would leave names half
    registered in torch and sympy, and no later capture in the process would work.
    """

    def __init__(self) -> None:
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def wait(self) -> None:
        """Return when everything is imported; the first caller starts the thread."""
        if self._done.is_set():
            return
        if not torch.cuda.is_available():
            _stand_in_for_a_gpu()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._stay, name="fastres-imports", daemon=True)
            self._thread.start()
        self._done.wait()

    def _stay(self) -> None:
        """Import everything, and then wait for ever.

        On a machine without a GPU, a CUDA build of torch 2.11 crashes in the next capture once the
        thread of the first one is over (see :func:`fastres.system.versions.stand_in_for_a_gpu`).
        """
        self._load()
        threading.Event().wait()

    def _load(self) -> None:
        try:
            model = _TinyModel().eval()
            x = torch.zeros(2, 1, 4, 4, dtype=torch.float32, device="cpu")
            # So many objects are made that stay that collections are a good part of the time.
            with full_collections_later(), _without_triton():
                export_with_dynamic_sizes(model, inspect.signature(model.forward), (x,), {})
        finally:
            self._done.set()  # even after an error: the capture itself will raise it again


def _stand_in_for_a_gpu() -> None:
    """Have torch make what its CUDA builds use where there is no GPU, in a thread that never ends.

    It lives as long as the thread that asked first, and torch asks in every capture; 2.11 crashes
    in the first one behind the end of that thread.
    """
    if threading.current_thread() is threading.main_thread():
        versions.stand_in_for_a_gpu()
        return
    ready = threading.Event()

    def create_and_wait() -> None:
        versions.stand_in_for_a_gpu()
        ready.set()
        threading.Event().wait()

    threading.Thread(target=create_and_wait, name="fastres-stays", daemon=True).start()
    ready.wait()


@contextmanager
def _without_triton() -> Iterator[None]:
    """Let this thread's imports find no Triton where there is no GPU to use it on.

    torch imports it whole to know the name of one of its types, and with it a compiler's library.
    For whoever imports it in another thread or later it is there as ever.
    """
    if torch.cuda.is_available() or torch.xpu.is_available() or "triton" in sys.modules:
        yield
        return
    hidden = _Hidden(threading.get_ident())
    sys.meta_path.insert(0, hidden)
    try:
        with silence_torch_logs():  # torch warns that there is none
            yield
    finally:
        sys.meta_path.remove(hidden)
        for answer in vars(torch_and_triton).values():
            forget = getattr(answer, "cache_clear", None)
            if forget is not None:  # torch keeps that there was none
                forget()


class _Hidden(importlib.abc.MetaPathFinder):
    """Finds Triton missing, in one thread."""

    def __init__(self, thread: int) -> None:
        self._thread = thread

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        """No module; it raises for Triton, and leaves all others to whoever comes next."""
        if fullname == "triton" and threading.get_ident() == self._thread:
            raise ModuleNotFoundError("not needed here", name=fullname)


_loader = _ImportThread()


def import_ahead() -> None:
    """Have torch import what :func:`export` needs, so that Ctrl-C cannot cut it off."""
    _loader.wait()
