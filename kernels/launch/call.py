"""One launch of one kernel, with everything bound: what is run, inspected, counted and timed.

Launch code builds calls from tensors and looks at shapes, strides and dtypes only, so that calls on
meta tensors can be compiled and read where there is no GPU, and those on real tensors run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class KernelCall:
    """A launch.

    Attributes:
        kernel: the Triton kernel.
        grid: number of programs along three axes; a zero means there is nothing to do.
        arguments: tensors, tensor descriptors and numbers, by the kernel's parameter names.
        constants: its ``tl.constexpr`` parameters.
        num_warps: warps per program.
        num_stages: depth of the software pipeline.
        note: why it is this kernel and not the one asked for, if so; part of :attr:`name`.
        chained: whether its programs may start before the launch in front has ended; see
            :mod:`fastres.kernels.triton.chain`.
        rounds_each: every product and every sum of floats is rounded by itself; no two become a
            fused multiply-add, which rounds once.
    """

    kernel: Any = field(repr=False)
    grid: tuple[int, int, int]
    arguments: Mapping[str, Any] = field(repr=False)
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    note: str = ""
    chained: bool = False
    rounds_each: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """What is compiled differently, beside :attr:`constants`."""
        found: dict[str, Any] = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        if self.chained:
            found |= {"CHAINED": True, "launch_pdl": True}
        if self.rounds_each:
            found["enable_fp_fusion"] = False
        return found

    @property
    def name(self) -> str:
        """The kernel's name, with the note in parentheses."""
        name = str(self.kernel.fn.__name__)
        return f"{name} ({self.note})" if self.note else name

    def run(self) -> None:
        """Launch on the tensors' own device, in its current stream."""
        if 0 in self.grid:
            return
        with self._device():
            self.kernel[self.grid](**self.arguments, **self.constants, **self.options)

    def compile(self) -> None:
        """Compile for the tensors' device without launching; errors are Triton's own."""
        if 0 in self.grid:
            return
        with self._device():
            self.kernel.warmup(grid=self.grid, **self.arguments, **self.constants, **self.options)

    def _device(self) -> contextlib.AbstractContextManager[Any]:
        """Triton launches on the current device, whatever the tensors' is."""
        for value in self.arguments.values():
            tensor = getattr(value, "base", value)
            if isinstance(tensor, Tensor) and tensor.is_cuda:
                return torch.cuda.device(tensor.device)
        return contextlib.nullcontext()


INT32_ELEMENTS = 2**31
"""From this many elements on, an offset no longer fits into 32 bits."""


def needs_int64(*tensors: Tensor | None) -> bool:
    """Whether offsets into one of these dense tensors need 64 bits.

    Triton's offsets are 32 bits wide unless asked, and wrap around without a word.
    """
    return any(tensor is not None and tensor.numel() > INT32_ELEMENTS for tensor in tensors)
