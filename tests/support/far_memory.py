"""Tensors past 2^31 elements without the memory for them: addresses of which few are touched.

The operating system gives an address range pages only where something is written, so a kernel's
address arithmetic can be followed to the end of a tensor that nobody could allocate. Offsets that
wrap around to negative numbers stay inside the range, whose lower half is for them.
"""

from __future__ import annotations

import mmap
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter

from fastres.kernels.launch.call import KernelCall
from tests.support.interpreter import need

NORESERVE = 0x4000
"""Linux: the range counts for nothing until it is used."""


class FarTensor:
    """A range for any tensor of ``dtype`` that 64-bit, or wrapped 32-bit, offsets can reach.

    Attributes:
        start: one element at the tensor's beginning: what a kernel gets as a pointer.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        # Two wrapped offsets may be added to one pointer.
        self._start = 2 * 2**31 * dtype.itemsize
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
        self._range = mmap.mmap(-1, 2 * self._start + 2**24, flags=flags)
        self._dtype = dtype
        self.start = self.at(0, 1)

    def at(self, offset: int, count: int) -> Tensor:
        """``count`` elements from ``offset``, counted in elements, on."""
        place = self._start + offset * self._dtype.itemsize
        return torch.frombuffer(self._range, dtype=self._dtype, count=count, offset=place)


def run_program(
    monkeypatch: pytest.MonkeyPatch, call: KernelCall, program: tuple[int, int, int], **changed: Any
) -> None:
    """Interpret one program of a launch, with other arguments and constants where given."""
    need()
    arguments = {**call.arguments, **{k: v for k, v in changed.items() if k in call.arguments}}
    constants = {**call.constants, **{k: v for k, v in changed.items() if k in call.constants}}
    assert set(changed) <= {*arguments, *constants}
    assert all(number < size for number, size in zip(program, call.grid, strict=True))
    builder = interpreter.interpreter_builder
    with monkeypatch.context() as patch:
        patch.setattr(builder, "set_grid_idx", lambda *_: setattr(builder, "grid_idx", program))
        replace(call, grid=(1, 1, 1), arguments=arguments, constants=constants).run()
