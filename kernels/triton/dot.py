"""The matrix product inside kernels, the same when compiled and when interpreted."""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Whether kernels of this process are interpreted; as ``triton.jit``, decided at import."""


@triton.jit
def rounded_to_tf32(x):
    """float32 to the nearest with 10 bits of fraction; infinity and NaN stay.

    Tensor cores ignore the other bits, that is, they round towards zero. Alone it is a small error,
    but it shrinks every product, and through fifty layers that adds up.
    """
    bits = x.to(tl.int32, bitcast=True)
    bits = tl.where(x == x, bits + 0x1000, bits) & -0x2000  # infinity has room for the carry
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def dot(a, b, acc, INPUT_PRECISION: tl.constexpr, ROUND_A: tl.constexpr = True):
    """``acc + a @ b`` in float32; INPUT_PRECISION (``tf32 ieee``) is about float32 operands.

    For tf32, ``a`` is rounded here if ROUND_A; ``b`` must have been before: weights are packed so.
    """
    if INPUT_PRECISION == "tf32" and a.dtype == tl.float32:
        if ROUND_A or INTERPRETED:  # descriptors can round while they copy, but only on hardware
            a = rounded_to_tf32(a)
        if INTERPRETED:  # what tensor cores see of b
            b = (b.to(tl.int32, bitcast=True) & -0x2000).to(tl.float32, bitcast=True)
    if INTERPRETED and a.dtype == tl.bfloat16:
        # The interpreter keeps bfloat16 as its bits and would multiply those as integers.
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=INPUT_PRECISION)
