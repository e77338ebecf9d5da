"""The matrix product inside kernels, the same when compiled and when interpreted."""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Whether kernels of this process are interpreted; as ``triton.jit``, decided at import."""


@triton.jit
def dot(a, b, acc, INPUT_PRECISION: tl.constexpr):
    """``acc + a @ b`` in float32; INPUT_PRECISION (``tf32 ieee``) is about float32 operands."""
    if INTERPRETED and a.dtype == tl.bfloat16:
        # The interpreter keeps bfloat16 as its bits and would multiply those as integers.
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=INPUT_PRECISION)
