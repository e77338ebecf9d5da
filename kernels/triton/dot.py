"""The matrix product inside kernels, the same when compiled and when interpreted."""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Whether kernels of this process are interpreted; as ``triton.jit``, decided at import."""


@tl.core.builtin
def compiled_for_amd(_semantic=None):
    """Whether AMD's compiler is at work; the GPU itself, if any, may be another's."""
    return tl.constexpr(_semantic.builder.options.backend_name == "hip")


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
def zero_sums(x_ptr, BLOCK_SIZE_M: tl.constexpr, BLOCK_SIZE_N: tl.constexpr):
    """Sums to begin with, of products of what lies at ``x_ptr``: int32 of uint8, else float32."""
    if x_ptr.dtype.element_ty == tl.uint8:
        return tl.zeros((BLOCK_SIZE_M, BLOCK_SIZE_N), tl.int32)
    else:
        return tl.zeros((BLOCK_SIZE_M, BLOCK_SIZE_N), tl.float32)


@triton.jit
def less_128(q):
    """uint8 as int8, 128 less: tensor cores multiply integers with a sign by such with a sign.

    NVIDIA's compiler takes four bytes of a register apart for what is one instruction: read on
    sm_80, 1049 integer instructions in a loop of 64 products, and 403 where it is spelt out. AMD's
    takes no four bytes for an operand.
    """
    if INTERPRETED or compiled_for_amd():
        signed = (q ^ 0x80).to(tl.int8, bitcast=True)
    else:
        signed = tl.inline_asm_elementwise(
            "xor.b32 $0, $1, 0x80808080;", "=r,r", [q], dtype=tl.int8, is_pure=True, pack=4
        )
    return signed


@triton.jit
def dot(a, b, acc, INPUT_PRECISION: tl.constexpr, ROUND_A: tl.constexpr = True):
    """``acc + a @ b`` in float32; INPUT_PRECISION (``tf32 ieee``) is about float32 operands.

    For tf32, ``a`` is rounded here if ROUND_A; ``b`` must have been before: weights are packed so.
    Of ``a`` in uint8 and ``b`` in int8, ``acc + (a - 128) @ b`` in int32, modulo 2^32.
    """
    if a.dtype == tl.uint8:
        a = less_128(a)
    if INPUT_PRECISION == "tf32" and a.dtype == tl.float32:
        if ROUND_A or INTERPRETED:  # descriptors can round while they copy, but only on hardware
            a = rounded_to_tf32(a)
        if INTERPRETED:  # what tensor cores see of b
            b = (b.to(tl.int32, bitcast=True) & -0x2000).to(tl.float32, bitcast=True)
    if INTERPRETED and a.dtype == tl.bfloat16:
        # The interpreter keeps bfloat16 as its bits and would multiply those as integers.
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=INPUT_PRECISION, out_dtype=acc.dtype)
