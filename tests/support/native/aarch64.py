"""The library as it is on AArch64, on whatever is here: cross-compiled, each call run by QEMU.

:class:`Emulated` has the methods of :class:`fastres.runtime.native.library.Library`, so plans are
made here, by what makes them there. A call is written to a file, with the memory that its
structures point at; ``aarch64_run.cpp`` runs it, and what came out is read from the file. Memory in
it lies between bytes of which numbers are NaN.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import shutil
import subprocess
from ctypes import POINTER, c_int32, c_int64, c_void_p
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from fastres.dtypes import ROWS
from fastres.runtime.native.abi import ABI, FORMS, KINDS, COp, COutside, CPhase
from fastres.runtime.native.library import LEAST_KEPT, Library
from tests.support.cxx import SOURCES, shared_library

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
DRIVER = Path(__file__).with_name("aarch64_run.cpp")

_LINE = 64
_PRECISIONS = {row.native_code: row for row in ROWS if row.native_code is not None}


def needs_tools() -> None:
    """Skip the test where the cross compiler or the emulator is missing; in CI it fails."""
    missing = [name for name in (COMPILER, EMULATOR) if shutil.which(name) is None]
    if missing:
        sentence = f"needs {' and '.join(missing)} (Debian: g++-aarch64-linux-gnu, qemu-user)"
        if os.environ.get("CI"):
            pytest.fail(sentence)
        pytest.skip(sentence)


@functools.cache
def _system() -> Path:
    """The folder that holds the other processor's ``lib``."""
    command = [COMPILER, "-print-file-name=ld-linux-aarch64.so.1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Path(done.stdout.strip()).resolve().parent.parent


@dataclass(frozen=True)
class Program:
    """The library and the program that runs it, for processors of one kind.

    Attributes:
        processor: as QEMU calls it.
    """

    path: Path
    processor: str = "max"

    def __call__(self, *arguments: str | Path) -> str:
        """What it prints.

        Raises:
            AssertionError: it did not end well, as after an instruction that the processor lacks.
        """
        command = [EMULATOR, "-cpu", self.processor, "-L", str(_system()), str(self.path)]
        done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 0, (done.returncode, done.stderr)
        return done.stdout


def build(folder: Path) -> Path:
    """Compile the library as ``pip install`` would there, and the program that runs it."""
    library = shared_library(folder / "native.so", compiler=COMPILER)
    program = folder / "run"
    command = [
        *(COMPILER, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}"),
        *(str(DRIVER), str(library), f"-Wl,-rpath,{folder}", "-o", str(program)),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


class _Range(ctypes.Structure):
    _fields_: ClassVar = [("offset", c_int64), ("bytes", c_int64), ("byte", c_int64)]


_LISTS = ("ops", "phases", "guards", "fills", "poisons", "releases")


class _Plan(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, c_void_p) for name in _LISTS),
        ("arena_bytes", c_int64),
        *((f"{name}_count", c_int32) for name in ("op", "phase")),
        ("images", c_int32),
        *((f"{name}_count", c_int32) for name in ("guard", "fill", "poison", "release")),
    ]


class _Call(ctypes.Structure):
    _fields_: ClassVar = [
        ("plans", _Plan * 2),
        *((name, c_void_p) for name in ("inputs", "outputs", "times")),
        *((name, c_int32) for name in ("input_count", "output_count", "threads", "status")),
    ]


class _Header(ctypes.Structure):
    _fields_: ClassVar = [(name, c_int64) for name in ("call", "pointers", "pointer_count")]


class _File:
    """A call's file while it is put together."""

    def __init__(self) -> None:
        self.content = bytearray(ctypes.sizeof(_Header))
        self._pointers: list[int] = []
        self._memory: dict[tuple[int, int], int] = {}

    def add(self, content: bytes) -> int:
        """Where it is; in front of it and behind it lie bytes of which numbers are NaN."""
        self.content += b"\xff" * (_LINE + -len(self.content) % _LINE)
        offset = len(self.content)
        self.content += content + b"\xff" * _LINE
        return offset

    def memory(self, address: int, size: int) -> int:
        """Where a copy of memory is."""
        if (address, size) not in self._memory:
            self._memory[address, size] = self.add(ctypes.string_at(address, size))
        return self._memory[address, size]

    def structures(self, items: list[Any]) -> int:
        """An array of structures whose pointers are offsets in the file, or None; 0 if none."""
        if not items:
            return 0
        offset = self.add(b"".join(map(bytes, items)))
        for number, item in enumerate(items):
            self._note_pointers(item, offset + number * ctypes.sizeof(item))
        return offset

    def _note_pointers(self, item: Any, offset: int) -> None:
        for name, kind, *_ in item._fields_:
            value, at = getattr(item, name), offset + getattr(type(item), name).offset
            if kind is c_void_p and value:
                self._pointers.append(at)
            elif isinstance(value, ctypes.Array) and issubclass(value._type_, ctypes.Structure):
                for number, one in enumerate(value):
                    self._note_pointers(one, at + number * ctypes.sizeof(one))

    def finish(self, call: _Call) -> int:
        """Write down where everything is. Where the call is."""
        offset = self.structures([call])
        pointers = (c_int64 * len(self._pointers))(*self._pointers)
        header = _Header(offset, self.add(bytes(pointers)), len(pointers))
        self.content[: ctypes.sizeof(header)] = bytes(header)
        return offset


def _sizes(op: COp) -> dict[str, int]:
    """Bytes behind each pointer of an operation."""
    kind, precision = KINDS[op.kind], _PRECISIONS[op.dtype]
    pixels = 4 * op.images * op.pixels
    taps = precision.group if FORMS[op.form] == "depthwise" else 1
    channels = 128 * -(-op.output.channels // 32)
    multiplies = kind in ("convolution", "winograd")
    return {
        "slopes": channels, "scale": channels, "shift": channels,
        "input_px": pixels, "output_px": pixels, "residual_px": pixels,
        "steps": 4 * op.step_count * taps,
        "panel_input": 4 * op.panels * max(op.reads, 1),
        "weights": op.panels * op.panel_bytes if multiplies else 4 * op.kernel[0],
        "bias": 128 * op.panels if multiplies else 4,
        "multiplier": 128 * op.panels,
        "copies": 12 * op.copy_count,
        "source_rows": 8 * op.output.height, "source_columns": 8 * op.output.width,
        "row_shares": 4 * op.output.height, "column_shares": 4 * op.output.width,
    }  # fmt: skip


@dataclass
class _Made:
    """What a plan was made of."""

    ops: list[COp]
    phases: list[CPhase]
    images: int
    arena_bytes: int
    guards: list[int]
    fills: list[_Range] = field(default_factory=list)
    poisons: list[_Range] = field(default_factory=list)
    releases: list[_Range] = field(default_factory=list)

    def write(self, file: _File) -> _Plan:
        """The program's structure of it."""
        ops = [COp.from_buffer_copy(op) for op in self.ops]
        for op in ops:
            for name, size in _sizes(op).items():
                address = getattr(op, name)
                setattr(op, name, file.memory(address, size) if address else None)
        guards = (c_int64 * len(self.guards))(*self.guards)
        return _Plan(
            file.structures(ops), file.structures(self.phases),
            file.add(bytes(guards)) if self.guards else None, file.structures(self.fills),
            file.structures(self.poisons), file.structures(self.releases), self.arena_bytes,
            len(self.ops), len(self.phases), self.images, len(self.guards) // 2, len(self.fills),
            len(self.poisons), len(self.releases),
        )  # fmt: skip

    def outside(self, tensor: COutside, output: bool, index: int, images: int) -> int:
        """Bytes of the caller's tensor, of all plans' images.

        A tensor that is neither imported nor exported has ``image_bytes`` for each image.
        """
        side, kind = ("output", "export") if output else ("input", "import")
        for op in self.ops:
            inside = getattr(op, side)
            if KINDS[op.kind] == kind and inside.index == index:
                sizes = (images, inside.channels, inside.height, inside.width)
                last = sum((n - 1) * step for n, step in zip(sizes, tensor.strides, strict=True))
                return int(last + 1) * _PRECISIONS[op.outside_dtype].bytes
        return int(tensor.image_bytes) * images


def _listed(array: Any, kind: Any, count: int) -> list[Any]:
    return ctypes.cast(array, POINTER(kind))[:count] if count else []


class Emulated(Library):
    """The library's methods. A plan's check is made when it runs.

    Args:
        folder: for the files of calls.
    """

    def __init__(self, program: Program, folder: Path) -> None:
        self._program, self._folder = program, folder
        abi, op_bytes, isas = map(int, program().split())
        assert (abi, op_bytes) == (ABI, ctypes.sizeof(COp))
        self._functions: Any = SimpleNamespace(fr_isas=lambda: isas)
        self.kept = LEAST_KEPT
        self.runs = 0
        self._plans: dict[int, _Made] = {}
        self._names = itertools.count(1)
        self.plan_create: Any = self._create
        self.plan_destroy: Any = self._plans.pop
        self.plan_check: Any = lambda plan: -1
        self.plan_fill: Any = self._fill
        self.plan_release: Any = self._release
        self.plan_poison: Any = self._poison
        self.run: Any = self._run

    def keep(self, size: int) -> None:
        """Nothing is kept between processes."""
        self.kept = size

    def let_go(self) -> int:
        return 0

    def _create(
        self, ops: Any, op_count: int, phases: Any, phase_count: int, images: int,
        arena_bytes: int, guards: Any, guard_count: int,
    ) -> int:  # fmt: skip
        handle = next(self._names)
        self._plans[handle] = _Made(
            [COp.from_buffer_copy(op) for op in _listed(ops, COp, op_count)],
            [CPhase.from_buffer_copy(each) for each in _listed(phases, CPhase, phase_count)],
            images, arena_bytes, _listed(guards, c_int64, 2 * guard_count),
        )  # fmt: skip
        return handle

    def _fill(self, plan: int, offset: int, size: int, byte: int) -> int:
        self._plans[plan].fills.append(_Range(offset, size, byte))
        return 0

    def _release(self, plan: int, op: int, offset: int, size: int) -> int:
        self._plans[plan].releases.append(_Range(offset, size, op))
        return 0

    def _poison(self, plan: int, ranges: Any, count: int, byte: int) -> int:
        numbers = _listed(ranges, c_int64, 2 * count)
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        self._plans[plan].poisons = [_Range(*pair, byte) for pair in pairs]
        return 0

    def _run(
        self, alone: int | None, together: int | None, threads: int, inputs: Any,
        input_count: int, outputs: Any, output_count: int, times: Any,
    ) -> int:  # fmt: skip
        """As ``fr_run``, in a process of its own.

        Raises:
            AssertionError: it did not end well; a plan could not be made or reaches outside.
        """
        file, call = _File(), _Call(threads=threads)
        parts = [self._plans[plan] if plan else None for plan in (alone, together)]
        images = sum(
            part.images * (threads if part is parts[0] else 1) for part in parts if part is not None
        )
        some = parts[0] or parts[1]
        assert some is not None
        for number, part in enumerate(parts):
            if part is not None:
                call.plans[number] = part.write(file)
        returned: list[tuple[int, int, int]] = []  # address, bytes, where in the file
        sides = (("input", inputs, input_count), ("output", outputs, output_count))
        for side, array, count in sides:
            tensors = []
            for index, tensor in enumerate(_listed(array, COutside, count)):
                size = some.outside(tensor, side == "output", index, images)
                at = file.memory(tensor.data, size)
                if side == "output":
                    returned.append((tensor.data, size, at))
                tensors.append(COutside(at, tensor.image_bytes, tensor.strides))
            setattr(call, f"{side}s", file.structures(tensors))
            setattr(call, f"{side}_count", count)
        if times is not None:
            size = 8 * len(some.ops)
            call.times = file.add(bytes(size))
            returned.append((ctypes.addressof(times), size, call.times))
        offset = file.finish(call)
        path = self._folder / f"call{next(self._names)}"
        path.write_bytes(file.content)
        self._program(path)
        content = path.read_bytes()
        path.unlink()
        self.runs += 1
        done = _Call.from_buffer_copy(content, offset)
        assert done.status < 100, f"status {done.status}: see aarch64_run.cpp"
        for address, size, at in returned:
            ctypes.memmove(address, content[at : at + size], size)
        return int(done.status)
