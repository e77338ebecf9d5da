"""How the element-wise kernels are launched: enough bytes in flight per thread, and no more."""

from __future__ import annotations

from dataclasses import dataclass

ACCESS_BYTES = 16
"""The widest access of one thread."""

ACCESSES = 2
"""Accesses per thread and tensor: two hide each other's latency, more only cost registers."""


@dataclass(frozen=True)
class ElementwiseConfig:
    """How a kernel that walks its tensors as one row is launched.

    Attributes:
        block_size: numbers per program.
        num_warps: warps per program.
    """

    block_size: int
    num_warps: int = 4


@dataclass(frozen=True)
class TransposeConfig:
    """How a transposition is launched.

    Attributes:
        block_rows, block_columns: one program's tile of the input.
        num_warps: warps per program.
    """

    block_rows: int
    block_columns: int
    num_warps: int = 4


def choose_elementwise(element_bytes: int, warp_size: int = 32) -> ElementwiseConfig:
    """For tensors of ``element_bytes`` per number."""
    num_warps = 4
    per_thread = ACCESSES * ACCESS_BYTES // element_bytes
    return ElementwiseConfig(num_warps * warp_size * per_thread, num_warps)


def choose_transpose(rows: int, columns: int) -> TransposeConfig:
    """Tiles of 64 x 64; where an image has fewer rows or columns, longer the other way.

    64 numbers of two bytes are a whole cache line of 128 bytes, read and written in full.
    """
    tile = 64 * 64
    block_rows = min(64, power_of_two_from(rows))
    block_columns = min(tile // block_rows, 1024, power_of_two_from(columns))
    block_rows = min(tile // block_columns, 1024, power_of_two_from(rows))
    return TransposeConfig(block_rows, block_columns)


def power_of_two_from(size: int) -> int:
    """The smallest power of two that is at least ``size``, and at least 1."""
    return 1 << max(size - 1, 0).bit_length()
