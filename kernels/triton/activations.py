"""Element-wise functions inside kernels; NaN stays NaN on every GPU.

``tl.maximum`` drops NaN unless told otherwise, and what it is told costs an instruction that older
GPUs lack. A comparison with NaN is false everywhere, so a select that keeps the value by default
keeps NaN as well.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """An activation of a float32 block, as ``reference.activate``; nothing for ``none``."""
    if ACTIVATION == "relu":
        x = tl.where(x < 0.0, 0.0, x)
    elif ACTIVATION == "relu6":
        x = tl.where(x < 0.0, 0.0, x)
        x = tl.where(x > 6.0, 6.0, x)
    elif ACTIVATION == "silu":
        x = x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "hardswish":
        gate = tl.where(x + 3.0 < 0.0, 0.0, x + 3.0)
        gate = tl.where(gate > 6.0, 6.0, gate)
        x = x * gate / 6.0
    return x
