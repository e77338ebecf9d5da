"""Memory for weights in huge pages: they are read from end to end for every batch.

With pages of 4 KiB each page costs a walk through the page table, and the processor's own
read-ahead ends with it.
"""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

CHUNK = 32 << 20
"""Bytes asked for at a time, of which tensors are cut; a larger tensor has a chunk of its own."""

ALIGNMENT = 4096


class HugePages:
    """Keeps copies of tensors side by side in huge pages where the system has them.

    The memory is given back with the last tensor in it.
    """

    def __init__(self) -> None:
        self._chunk: mmap.mmap | None = None
        self._used = 0

    def copy(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """A contiguous copy of ``tensor``, which may be strided, in ``dtype``."""
        size = math.ceil(tensor.numel() * dtype.itemsize / ALIGNMENT) * ALIGNMENT
        if self._chunk is None or self._used + size > len(self._chunk):
            self._chunk = _mapped(max(size, CHUNK))
            self._used = 0
        place = torch.frombuffer(self._chunk, dtype=dtype, count=tensor.numel(), offset=self._used)
        self._used += size
        return place.view(tensor.shape).copy_(tensor)


def _mapped(size: int) -> mmap.mmap:
    # Anonymous shared memory, which is the default here, has huge pages on few systems.
    chunk = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        chunk.madvise(mmap.MADV_HUGEPAGE)
    return chunk
