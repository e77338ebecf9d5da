"""What torch computed, as kernels read it: where it lies otherwise, it is laid out anew.

This happens between two steps of a plan, and is recorded with them: a launch of our transposition
costs the host nothing there, and it reads and writes whole cache lines, where torch's copy between
two layouts has one side strided. Arguments and results of a call are copied by torch, in
:class:`fastres.runtime.triton.executable.TritonExecutable`: why, says
:mod:`fastres.kernels.launch.layout`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def laid_out(value: Tensor, strides: tuple[int, ...]) -> Tensor:
    """``value`` with exactly these strides, without gaps; itself or a view, if it lies that way."""
    if value.stride() == strides:
        return value
    if _lies_like(value, strides):
        return value.as_strided(value.shape, strides)
    if _transposed(value, strides):
        from fastres.kernels.launch.layout import to_channels_last  # imports Triton

        return to_channels_last(value)
    made = torch.empty_strided(value.shape, strides, dtype=value.dtype, device=value.device)
    return made.copy_(value)


def _lies_like(value: Tensor, strides: tuple[int, ...]) -> bool:
    """Whether the strides differ only along axes of one element, which nobody steps along."""
    steps = zip(value.shape, value.stride(), strides, strict=True)
    return all(size == 1 or own == expected for size, own, expected in steps)


def _transposed(value: Tensor, strides: tuple[int, ...]) -> bool:
    """Whether it is an image in NCHW, wanted channels-last, of numbers that the kernel takes."""
    if value.dim() != 4 or value.is_meta or not value.is_contiguous():
        return False
    _, c, h, w = value.shape
    expected = (c * h * w, 1, c * w, c)
    return strides == expected and value.dtype in (torch.float16, torch.bfloat16, torch.float32)
