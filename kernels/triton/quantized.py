"""What follows quantised sums of products, number by number as the definition has it.

The definition is :mod:`fastres.kernels.quantized`: float32 in which every product and every sum is
rounded by itself, half to even at the end. Kernels that use this are launched with
``rounds_each=True``, so that the compiler makes no fused multiply-adds.

Scales, ratios and zero points are arguments of a launch, all of them float32, which holds zero
points exactly: Triton compiles a kernel anew for integers that are 1 or divisible by 16. So one
kernel serves all layers of a shape.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastres.kernels.triton.activations import activate

WHOLE = tl.constexpr(12582912.0)
"""1.5 * 2^23: from 2^23 to 2^24 float32 has whole numbers only, so that a sum with this, of any
number below 2^22, is rounded to a whole one, half to even. Its last byte is 0."""


@triton.jit
def activate_exactly(y, ACTIVATION: tl.constexpr):
    """An activation of float32, as ``quantized.activate``: divisions are rounded to the nearest."""
    if ACTIVATION == "hardswish":
        gate = tl.where(y + 3.0 < 0.0, 0.0, y + 3.0)
        gate = tl.where(gate > 6.0, 6.0, gate)
        y = tl.div_rn(y * gate, 6.0)
    else:
        y = activate(y, ACTIVATION)
    return y


@triton.jit
def rounded(y, zero_point):
    """float32 as uint8: half to even, then the zero point, then what is beyond is cut off."""
    whole = tl.minimum(tl.maximum(y + WHOLE + zero_point, WHOLE), WHOLE + 255.0)
    return whole.to(tl.int32, bitcast=True).to(tl.uint8)


@triton.jit
def centred(q, zero_point):
    """uint8 as float32, 0 for what stands for 0."""
    return q.to(tl.float32) - zero_point


@triton.jit
def finish_sums(
    acc,
    bias,
    multiplier,
    residual,
    residual_zero_point,
    residual_ratio,
    PRE_ACTIVATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    """int32 sums of products as float32, in the unit of the output or in ones.

    ``bias`` (int32), ``multiplier`` (float32) and ``residual`` (uint8) are as wide as needed.
    """
    y = activate_exactly((acc + bias).to(tl.float32) * multiplier, PRE_ACTIVATION)
    if HAS_RESIDUAL:
        y += centred(residual, residual_zero_point) * residual_ratio
    return activate_exactly(y, ACTIVATION)
