"""One number in, one number out: residual additions, scale and shift, and changes of layout.

These kernels do next to no arithmetic, so all that counts is that memory is read and written
once, 16 bytes per thread at a time. Tensors are walked as one long row of numbers in the order in
which they lie in memory. ``VECTOR`` is the largest power of two, up to 16, that divides its length:
only when the compiler can see it do the accesses at the masked end of the row stay wide as well.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastres.kernels.triton.activations import activate
from fastres.kernels.triton.chain import await_inputs, let_next_start


@triton.jit
def block_of_row(vectors, VECTOR: tl.constexpr, BLOCK_SIZE: tl.constexpr, INT64: tl.constexpr):
    """Offsets of this program's numbers, and which of them exist."""
    pid = tl.program_id(0)
    if INT64:
        pid = pid.to(tl.int64)
        vectors = vectors.to(tl.int64)
    offs = pid * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    return offs, offs < vectors * VECTOR


@triton.jit
def add_relu_kernel(
    x_ptr,
    y_ptr,
    out_ptr,
    vectors,
    VECTOR: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    INT64: tl.constexpr,
    CHAINED: tl.constexpr = False,
):
    """``out = relu(x + y)``."""
    offs, exists = block_of_row(vectors, VECTOR, BLOCK_SIZE, INT64)
    await_inputs(CHAINED)
    x = tl.load(x_ptr + offs, mask=exists, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + offs, mask=exists, other=0.0).to(tl.float32)
    total = activate(x + y, "relu")
    let_next_start(CHAINED)
    tl.store(out_ptr + offs, total.to(out_ptr.dtype.element_ty), mask=exists)


@triton.jit
def scale_shift_kernel(
    x_ptr,
    scale_ptr,
    shift_ptr,
    out_ptr,
    vectors,
    C: tl.constexpr,
    ACTIVATION: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    INT64: tl.constexpr,
    CHAINED: tl.constexpr = False,
):
    """``out = activation(x * scale + shift)``, the channel being the innermost of C."""
    offs, exists = block_of_row(vectors, VECTOR, BLOCK_SIZE, INT64)
    await_inputs(CHAINED)
    channel = offs % C
    x = tl.load(x_ptr + offs, mask=exists, other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr + channel, mask=exists, other=0.0)
    shift = tl.load(shift_ptr + channel, mask=exists, other=0.0)
    y = activate(x * scale + shift, ACTIVATION)
    let_next_start(CHAINED)
    tl.store(out_ptr + offs, y.to(out_ptr.dtype.element_ty), mask=exists)


@triton.jit
def cast_kernel(
    x_ptr,
    out_ptr,
    vectors,
    VECTOR: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    INT64: tl.constexpr,
    CHAINED: tl.constexpr = False,
):
    """``out = x`` in the dtype of ``out``."""
    offs, exists = block_of_row(vectors, VECTOR, BLOCK_SIZE, INT64)
    await_inputs(CHAINED)
    x = tl.load(x_ptr + offs, mask=exists, other=0).to(tl.float32)
    let_next_start(CHAINED)
    tl.store(out_ptr + offs, x.to(out_ptr.dtype.element_ty), mask=exists)


@triton.jit
def transpose_kernel(
    x_ptr,
    out_ptr,
    rows,
    columns,
    BLOCK_SIZE_R: tl.constexpr,
    BLOCK_SIZE_C: tl.constexpr,
    INT64: tl.constexpr,
    CHAINED: tl.constexpr = False,
):
    """``out[n, column, row] = x[n, row, column]`` in the dtype of ``out``, one tile a program.

    Neighbouring threads read neighbours along a row and write neighbours along a column: the
    compiler exchanges the numbers between them through shared memory.
    """
    pid = tl.program_id(0)
    tiles_r = tl.cdiv(rows, BLOCK_SIZE_R)
    tiles_c = tl.cdiv(columns, BLOCK_SIZE_C)
    image = pid // (tiles_r * tiles_c)
    tile = pid % (tiles_r * tiles_c)
    offs_r = tile // tiles_c * BLOCK_SIZE_R + tl.arange(0, BLOCK_SIZE_R)
    offs_c = tile % tiles_c * BLOCK_SIZE_C + tl.arange(0, BLOCK_SIZE_C)
    exists = (offs_r < rows)[:, None] & (offs_c < columns)[None, :]
    if INT64:
        image = image.to(tl.int64)
        offs_r = offs_r.to(tl.int64)
        offs_c = offs_c.to(tl.int64)
    first = image * rows * columns
    await_inputs(CHAINED)
    x = tl.load(
        x_ptr + first + offs_r[:, None] * columns + offs_c[None, :], mask=exists, other=0
    ).to(tl.float32)
    let_next_start(CHAINED)
    tl.store(
        out_ptr + first + offs_c[None, :] * rows + offs_r[:, None],
        x.to(out_ptr.dtype.element_ty),
        mask=exists,
    )
