"""AMX and AVX-VNNI on processors without: their instructions in software, all else as it is.

``amx_instructions.cpp`` is compiled by whoever first asks, and catches these instructions of the
compiled library as they come by. What remains unproven with it is that the hardware does what its
manual says, and how fast.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from fastres.runtime.native import library
from tests.support.cxx import COMPILER

SOURCE = Path(__file__).with_name("amx_instructions.cpp")
INSTRUCTIONS = (
    *("configure", "release", "zero", "load", "store", "product", "byte product"),
    "vector product",
)


@dataclass
class Counts:
    """How many instructions were done in software, by :data:`INSTRUCTIONS`.

    Attributes:
        done: empty until the end of :func:`emulated`, and where the processor has them.
        hardware: whether the processor did them itself.
    """

    done: dict[str, int]
    hardware: bool


def loaded() -> library.Library:
    """The compiled library; skips the test where there is none."""
    found = library.load()
    if isinstance(found, str):
        pytest.skip(f"the native engine is not here: {found}")
    return found


@functools.cache
def _compiled() -> ctypes.CDLL:
    assert COMPILER
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "amx_instructions.so"
        command = [COMPILER, "-std=c++17", "-O3", "-fPIC", "-shared"]
        done = subprocess.run(
            [*command, str(SOURCE), "-o", str(output)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return ctypes.CDLL(str(output))


NEEDS = {
    "amx_bf16": ("avx512_bf16",),
    "amx_int8": ("avx512_bf16", "avx512_vnni"),
    "avx_vnni": ("avx2",),
}
"""What can be had in software, and what the rest of the library's code for it needs."""


def tile_instructions() -> AbstractContextManager[Counts]:
    """:func:`emulated` for AMX-BF16."""
    return emulated("amx_bf16")


@contextmanager
def emulated(isa: str) -> Iterator[Counts]:
    """Let all threads of the process use an instruction set; skips the test where they cannot."""
    isas = loaded().isas
    if isa in isas:
        yield Counts({}, hardware=True)
        return
    missing = [name for name in NEEDS.get(isa, (isa,)) if name not in isas]
    if missing:
        pytest.skip(f"needs a processor with {', '.join(missing)}")
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("needs Linux on x86-64")
    if COMPILER is None:
        pytest.skip("needs a C++ compiler")
    software = _compiled()
    counts = Counts({}, hardware=False)
    assert software.amx_install() == 0
    try:
        yield counts
    finally:
        assert software.amx_remove() == 0
        numbers = (ctypes.c_uint64 * len(INSTRUCTIONS))()
        software.amx_counts(numbers)
        counts.done = dict(zip(INSTRUCTIONS, numbers, strict=True))
