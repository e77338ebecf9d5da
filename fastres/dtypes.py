"""The precisions that fastres computes in: one row each, and the one place to add another."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Precision:
    """One way to compute.

    Attributes:
        name: what options, records and tables call it.
        dtype: torch's dtype of weights and activations; quantised, of activations.
        accumulator: torch's dtype of sums of products.
        devices: types of devices that may be asked to compute in it.
        by_flag: it is never asked for by name: torch's own flags say when a GPU computes so.
        native_code: ``enum fr_dtype`` of the CPU library (``kernels/cpu/native.h``), None where it
            has no kernels for it.
        instruction_sets: those that the CPU library has kernels for, the fastest first.
        quantized: numbers are integers with a scale: the passes fold in :attr:`folded`, and what
            they fold is quantised afterwards.
    """

    name: str
    dtype: torch.dtype
    accumulator: torch.dtype
    devices: tuple[str, ...] = ("cpu", "cuda")
    by_flag: bool = False
    native_code: int | None = None
    instruction_sets: tuple[str, ...] = ()
    quantized: bool = False

    @property
    def folded(self) -> torch.dtype:
        """What the passes make of weights and activations."""
        return torch.float32 if self.quantized else self.dtype

    @property
    def label(self) -> str:
        """The dtype's own name, e.g. ``float32``."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def bytes(self) -> int:
        """Size of a number in memory."""
        return self.dtype.itemsize

    @property
    def lanes(self) -> int:
        """Numbers in a vector of 64 bytes: channels of a block in the CPU library's layouts."""
        return 64 // self.bytes

    @property
    def group(self) -> int:
        """Numbers in the 32 bits that an instruction multiplies and adds up at once."""
        return 4 // self.bytes


ROWS = (
    Precision(
        name="fp32",
        dtype=torch.float32,
        accumulator=torch.float32,
        native_code=0,
        instruction_sets=("avx512", "avx2", "neon"),
    ),
    Precision(  # float32 whose factors a GPU rounds to 10 bits
        name="tf32",
        dtype=torch.float32,
        accumulator=torch.float32,
        devices=("cuda",),
        by_flag=True,
    ),
    Precision(
        name="bf16",
        dtype=torch.bfloat16,
        accumulator=torch.float32,
        native_code=1,
        instruction_sets=("amx_bf16", "avx512_bf16", "neon_bf16"),
    ),
    Precision(name="fp16", dtype=torch.float16, accumulator=torch.float32),
    Precision(
        name="int8",
        dtype=torch.uint8,
        accumulator=torch.int32,
        native_code=2,
        instruction_sets=("amx_int8", "avx512_vnni", "avx_vnni", "avx2", "neon_i8mm"),
        quantized=True,
    ),
)

PRECISIONS: dict[str, Precision] = {row.name: row for row in ROWS}
"""All of them by name."""

GPU_PRECISIONS: dict[str, Precision] = {
    row.name: row for row in ROWS if "cuda" in row.devices and not row.quantized
}
"""Those that the GPU kernels of floating-point numbers compute in."""

REQUESTABLE: tuple[str, ...] = tuple(row.name for row in ROWS if not row.by_flag)
"""The names that ``optimize(..., precision=...)`` takes."""

BY_DTYPE: dict[torch.dtype, Precision] = {row.dtype: row for row in ROWS if not row.by_flag}
"""What tensors of a dtype are computed in where no flag says otherwise."""

FLOATING: tuple[torch.dtype, ...] = (torch.float16, torch.bfloat16, torch.float32)
"""The dtypes of images and weights that the GPU kernels take."""

NATIVE: tuple[torch.dtype, ...] = tuple(row.dtype for row in ROWS if row.native_code is not None)
"""The dtypes that the CPU library computes in."""

NATIVE_OUTSIDE: tuple[torch.dtype, ...] = tuple(
    row.dtype for row in ROWS if row.native_code is not None and not row.quantized
)
"""The dtypes of tensors that the CPU library reads and writes for its caller."""
