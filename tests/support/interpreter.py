"""Triton's interpreter, made as strict and as exact as a GPU where it is neither.

- A masked load without ``other`` reads whatever a GPU's register held; interpreted it reads zero,
  which is what most kernels would have asked for. Here it reads NaN, or the largest integer.
- A GPU rounds float32 to the nearest bfloat16; interpreted, the last 16 bits are cut off, which
  doubles the error and turns some NaN into infinity.
- Products of float16 are summed in float32 on both, but numpy is slow at it unless it is given
  float32.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastres.system.versions import why_not_interpreted

_BFLOAT16_NAN = 0x7FC0


def need() -> None:
    """Skip the test where Triton's interpreter cannot run: see ``fastres.system.versions``."""
    reason = why_not_interpreted()
    if reason is not None:
        pytest.skip(reason)


@cache
def install() -> None:
    """Replace these operations for the rest of the process; importing triton happens here."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    masked_load, cast, dot = builder.create_masked_load, builder.cast_impl, builder.create_dot

    def strict_masked_load(
        self: Any, ptrs: Any, mask: Any, other: Any, *rest: Any, **named: Any
    ) -> Any:
        if other is None:
            element = ptrs.get_element_ty()
            dtype = interpreter._get_np_dtype(element)
            data = np.full(ptrs.data.shape, garbage(dtype, element == tl.bfloat16), dtype)
            other = interpreter.TensorHandle(data, element)
        return masked_load(self, ptrs, mask, other, *rest, **named)

    def rounding_cast(self: Any, src: Any, dst_type: Any) -> Any:
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
            return interpreter.TensorHandle(bfloat16_bits(src.data), dst_type.scalar)
        return cast(self, src, dst_type)

    def fast_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        if a.data.dtype == b.data.dtype == np.float16 and d.data.dtype == np.float32:
            a, b = (
                interpreter.TensorHandle(each.data.astype(np.float32), tl.float32)
                for each in (a, b)
            )
        return dot(self, a, b, d, *rest)

    builder.create_masked_load = strict_masked_load
    builder.create_dot = fast_dot
    builder.cast_impl = rounding_cast


def garbage(dtype: np.dtype[Any], is_bfloat16: bool) -> Any:
    """What a number of ``dtype`` may be that was never set."""
    if is_bfloat16:
        return _BFLOAT16_NAN
    return np.nan if np.issubdtype(dtype, np.floating) else np.iinfo(dtype).max


def bfloat16_bits(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """float32 rounded to bfloat16, ties to even."""
    bits = np.ascontiguousarray(x).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), _BFLOAT16_NAN, rounded).astype(np.uint16)
