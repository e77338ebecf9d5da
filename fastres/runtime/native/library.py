"""The compiled library: found, loaded once, and asked what this processor can do.

It is compiled by ``pip install`` where there is a C++ compiler. Two environment variables are for
tests: ``FASTRES_NATIVE_LIBRARY`` is the path of another build, ``FASTRES_NATIVE_ISA`` the highest
instruction set to use, one of :data:`fastres.runtime.native.abi.ISAS`, so that what an older
processor would do can be seen.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from ctypes import POINTER, c_double, c_int32, c_int64, c_uint32, c_void_p
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

from fastres import kernels
from fastres.dtypes import BY_DTYPE
from fastres.errors import TargetError
from fastres.runtime.native.abi import ABI, ISAS, COp, COutside, CPhase
from fastres.system.target import available_memory, openmp

STEM = "_native"

LEAST_KEPT = 256 << 20
"""Bytes kept between calls on machines of little memory; on others, a part of what they have."""
KEPT_PART = 16
"""Of the available memory, one part of so many is kept, enough for several models that take turns
at large batches: what comes anew in every call has to be put together of huge pages and zeroed."""


class Library:
    """The functions of ``kernels/cpu/native.h``.

    Attributes:
        kept: bytes of memory for activations that are kept between calls; see :meth:`keep`.

    Raises:
        OSError: the file is no library for this machine, or of another version.
    """

    def __init__(self, path: Path) -> None:
        self._functions = ctypes.CDLL(str(path))
        if self._functions.fr_abi() != ABI or self._op_bytes() != ctypes.sizeof(COp):
            raise OSError(
                f"{path} was built from other sources than this fastres; install fastres again"
            )
        self._functions.fr_isas.restype = c_uint32
        self._share_threads()
        self.plan_create = self._functions.fr_plan_create
        self.plan_create.restype = c_void_p
        self.plan_create.argtypes = [
            POINTER(COp),
            c_int32,
            POINTER(CPhase),
            c_int32,
            c_int32,
            c_int64,
            POINTER(c_int64),
            c_int32,
        ]
        self.plan_destroy = self._functions.fr_plan_destroy
        self.plan_destroy.restype = None
        self.plan_destroy.argtypes = [c_void_p]
        self.plan_check = self._functions.fr_plan_check
        self.plan_check.argtypes = [c_void_p]
        self.plan_fill = self._functions.fr_plan_fill
        self.plan_fill.argtypes = [c_void_p, c_int64, c_int64, c_int32]
        self.plan_release = self._functions.fr_plan_release
        self.plan_release.argtypes = [c_void_p, c_int32, c_int64, c_int64]
        self.plan_poison = self._functions.fr_plan_poison
        self.plan_poison.argtypes = [c_void_p, POINTER(c_int64), c_int32, c_int32]
        self.run = self._functions.fr_run
        self.run.argtypes = [
            c_void_p,
            c_void_p,
            c_int32,
            POINTER(COutside),
            c_int32,
            POINTER(COutside),
            c_int32,
            POINTER(c_int64),
        ]
        self._functions.fr_keep.restype = None
        self._functions.fr_keep.argtypes = [c_int64]
        self._functions.fr_let_go.restype = c_int64
        self.keep(max(LEAST_KEPT, available_memory() // KEPT_PART))
        self._functions.fr_peak.restype = c_double
        self._functions.fr_peak.argtypes = [c_int32, c_int32, c_int32, c_int32]

    def keep(self, size: int) -> None:
        """Of the memory for activations, keep no more bytes than this between calls.

        It is that of all models together. What a call needs beyond it is the system's again when
        the call ends.
        """
        self.kept = size
        self._functions.fr_keep(size)

    def let_go(self) -> int:
        """Give all of it back to the system. How many bytes it was."""
        return int(self._functions.fr_let_go())

    def _op_bytes(self) -> int:
        self._functions.fr_op_bytes.restype = c_int64
        return int(self._functions.fr_op_bytes())

    def _share_threads(self) -> None:
        """Run in the OpenMP runtime that torch brought along, where there is one."""
        runtime = openmp()
        if runtime is not None:
            functions = (runtime.GOMP_parallel, runtime.omp_get_thread_num)
            self._functions.fr_use_openmp.argtypes = [c_void_p] * 3
            self._functions.fr_use_openmp(
                *(ctypes.cast(f, c_void_p) for f in (*functions, runtime.omp_get_num_threads))
            )

    @property
    def isas(self) -> frozenset[str]:
        """The instruction sets of :data:`ISAS` that the processor and the system allow.

        Raises:
            TargetError: ``FASTRES_NATIVE_ISA`` is none.
        """
        allowed = int(self._functions.fr_isas())
        limit = os.environ.get("FASTRES_NATIVE_ISA", ISAS[-1])
        if limit not in ISAS:
            raise TargetError(f"FASTRES_NATIVE_ISA={limit!r}: expected one of {', '.join(ISAS)}")
        names = ISAS[: ISAS.index(limit) + 1]
        return frozenset(name for i, name in enumerate(names) if allowed >> i & 1)

    def peak(self, isa: str, dtype: torch.dtype, threads: int, milliseconds: int = 200) -> float:
        """Multiply-adds per second of so many threads together that do nothing else, in registers.

        Measured for so many milliseconds, on numbers of ``dtype``. 0 where the instruction set is
        not among :attr:`isas` or the library has no kernels with it for that dtype.
        """
        code = BY_DTYPE[dtype].native_code if dtype in BY_DTYPE else None
        if isa not in self.isas or code is None:
            return 0.0
        return float(self._functions.fr_peak(ISAS.index(isa), code, threads, milliseconds))


def find() -> Path | None:
    """The file, beside the sources or where else fastres is installed; None without one."""
    configured = os.environ.get("FASTRES_NATIVE_LIBRARY")
    if configured:
        return Path(configured)
    # Python started in the repository's root takes the package from there, although `pip install .`
    # put the library into another folder.
    installed = (Path(entry) / "fastres" / "kernels" for entry in sys.path)
    for folder in (Path(kernels.__file__).parent, *installed):
        for suffix in EXTENSION_SUFFIXES:
            path = folder / "cpu" / f"{STEM}{suffix}"
            if path.exists():
                return path
    return None


@functools.cache
def load() -> Library | str:
    """The library, or a sentence that says why there is none."""
    path = find()
    if path is None:
        if not sys.platform.startswith("linux"):
            return f"its library is for Linux, this is {sys.platform}"
        return "its library was not built (there was no C++ compiler when fastres was installed)"
    try:
        return Library(path)
    except (OSError, AttributeError) as error:
        return f"its library cannot be loaded: {error}"


def let_go() -> bool:
    """Give the memory that is kept between calls back to the system; whether there was some."""
    library = load()
    return isinstance(library, Library) and library.let_go() > 0
