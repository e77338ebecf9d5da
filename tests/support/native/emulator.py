"""AMX on processors without it: the tile instructions in software, all else on the processor.

``amx_instructions.cpp`` is compiled by whoever first asks, and catches the tile instructions of the
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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from fastres.runtime.native import library
from tests.support.cxx import COMPILER

SOURCE = Path(__file__).with_name("amx_instructions.cpp")
INSTRUCTIONS = ("configure", "release", "zero", "load", "store", "product")


@dataclass
class Counts:
    """How many tile instructions were done in software, by :data:`INSTRUCTIONS`.

    Attributes:
        done: empty until the end of :func:`tile_instructions`, and where the processor has AMX.
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


@contextmanager
def tile_instructions() -> Iterator[Counts]:
    """Let all threads of the process use AMX-BF16; skips the test where that cannot be.

    The rest of the library's AMX code needs AVX-512 with bfloat16.
    """
    isas = loaded().isas
    if "amx_bf16" in isas:
        yield Counts({}, hardware=True)
        return
    if "avx512_bf16" not in isas:
        pytest.skip("needs a processor with AVX512_BF16")
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
