"""Which elements a program of a kernel reads and writes, found without any memory.

For tensors past 2**31 elements, which no test can allocate. The interpreter runs one program on
made-up addresses; loads give zeros, stores go nowhere, and all addresses are kept. Launches on
meta tensors are enough.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastres.kernels.launch.call import KernelCall
from tests.support import interpreter as strict

_SPACE = 1 << 48
"""Distance of two made-up tensors; each begins in the middle, so that offsets may be negative."""


@dataclass(frozen=True)
class Access:
    """One load or store.

    Attributes:
        kind: ``load`` or ``store``.
        argument: the kernel's parameter that the address belongs to.
        offsets: elements from the tensor's first one, of those lanes that the mask lets through.
    """

    kind: str
    argument: str
    offsets: NDArray[np.int64]


def accesses(call: KernelCall, program: tuple[int, int, int] = (0, 0, 0)) -> list[Access]:
    """What one program of the launch would touch, in order."""
    strict.need()
    strict.install()
    from triton.runtime import interpreter

    names: dict[int, tuple[str, int]] = {}
    arguments: dict[str, Any] = {}
    for name, value in call.arguments.items():
        tensor = getattr(value, "base", value) if _is_descriptor(value) else value
        if not isinstance(tensor, torch.Tensor):
            arguments[name] = value
            continue
        place = len(names) + 1
        names[place] = (name, tensor.element_size())
        address = _Address(tensor.dtype, place * _SPACE + _SPACE // 2)
        arguments[name] = (
            dataclasses.replace(value, base=address) if _is_descriptor(value) else address
        )
    function = call.kernel.rewrite()
    found: list[Access] = []
    # What the interpreter itself does around a program, except for copying the tensors.
    scope = interpreter._patch_lang(function)
    try:
        with _recording(names, found):
            given = {name: interpreter._implicit_cvt(value) for name, value in arguments.items()}
            interpreter.interpreter_builder.set_grid_dim(*call.grid)
            interpreter.interpreter_builder.set_grid_idx(*program)
            function(**given, **call.constants)
    finally:
        scope.restore()
    return found


def last_program(call: KernelCall) -> tuple[int, int, int]:
    """The program with the highest numbers."""
    x, y, z = call.grid
    return x - 1, y - 1, z - 1


def touched(found: list[Access], kind: str, argument: str) -> NDArray[np.int64]:
    """All elements of one argument that were read or written, sorted, each once."""
    parts = [a.offsets for a in found if (a.kind, a.argument) == (kind, argument)]
    assert parts, f"no {kind} of {argument}"
    result: NDArray[np.int64] = np.unique(np.concatenate(parts))
    return result


def assert_within_bounds(calls: list[KernelCall], *outputs: str) -> None:
    """Assert that no program of any launch touches what lies outside its tensors.

    Reads beyond a tensor are harmless to the answer as long as nobody stores what came of them, and
    stop a GPU all the same.

    Args:
        calls: of a few programs; all of them are run.
        outputs: parameters of the last launch whose every element must be written exactly once.
    """
    written: dict[str, list[NDArray[np.int64]]] = {name: [] for name in outputs}
    for call in calls:
        sizes = {name: _numel(value) for name, value in call.arguments.items()}
        high, wide, deep = call.grid
        for program in itertools.product(range(high), range(wide), range(deep)):
            for access in accesses(call, program):
                size = sizes.get(access.argument)
                assert size is not None, f"{access.kind} at no tensor's address"
                inside = (access.offsets >= 0) & (access.offsets < size)
                assert inside.all(), (
                    f"program {program} of {call.name}: {access.kind} of {access.argument} at "
                    f"{access.offsets[~inside][:5].tolist()}, it has {size} elements"
                )
                if call is calls[-1] and access.kind == "store":
                    written.setdefault(access.argument, []).append(access.offsets)
    for name, parts in written.items():
        # Not only each once: a second store may come before the first one's load.
        every = np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)
        assert np.array_equal(every, np.arange(sizes[name] or 0)), f"{name} is not written once"


def _numel(value: Any) -> int | None:
    tensor = value.base if _is_descriptor(value) else value
    return tensor.numel() if isinstance(tensor, torch.Tensor) else None


class _Address:
    """As much of a tensor as the interpreter looks at."""

    def __init__(self, dtype: torch.dtype, address: int) -> None:
        self.dtype = dtype
        self._address = address

    def data_ptr(self) -> int:
        return self._address


def _is_descriptor(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and hasattr(value, "base")


@contextmanager
def _recording(names: dict[int, tuple[str, int]], found: list[Access]) -> Iterator[None]:
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder

    def keep(kind: str, ptrs: Any, mask: Any) -> None:
        lets_through = np.asarray(mask.data)
        shape = np.broadcast_shapes(ptrs.data.shape, lets_through.shape)
        lanes = np.broadcast_to(ptrs.data, shape)[np.broadcast_to(lets_through, shape)]
        places = lanes // _SPACE
        for place in np.unique(places).tolist():
            # An address that wrapped around may lie in no tensor at all.
            name, size = names.get(place, ("nothing", 1))
            start = place * _SPACE + _SPACE // 2
            offsets = lanes[places == place].astype(np.int64) - start
            assert not (offsets % size).any(), "between two elements"
            found.append(Access(kind, name, offsets // size))

    def load(self: Any, ptrs: Any, mask: Any, other: Any, *rest: Any, **named: Any) -> Any:
        keep("load", ptrs, mask)
        element = ptrs.get_element_ty()
        zeros = np.zeros(ptrs.data.shape, interpreter._get_np_dtype(element))
        return interpreter.TensorHandle(zeros, element)

    def store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> None:
        keep("store", ptrs, mask)

    originals = builder.create_masked_load, builder.create_masked_store
    builder.create_masked_load, builder.create_masked_store = load, store
    try:
        yield
    finally:
        builder.create_masked_load, builder.create_masked_store = originals
