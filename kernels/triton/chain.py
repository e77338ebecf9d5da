"""Kernels that follow each other without a gap: programmatic dependent launch, from sm_90 on.

The hardware starts the programs of the next launch while the last ones of this are still at work.
Each begins with what needs nothing of its predecessor (addresses, masks), waits in
:func:`await_inputs` until that has ended and its results are in memory, and says with
:func:`let_next_start` that it has only its results left to write. Every kernel launched so waits,
so that by its turn whatever was launched before the predecessor has ended too.

Where CHAINED is false, nothing of this is compiled. CUDA C++ Programming Guide, "Programmatic
Dependent Launch and Synchronization".
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def await_inputs(CHAINED: tl.constexpr):
    """Nothing that an earlier launch wrote is read, and nothing is written, before this."""
    if CHAINED:
        gdc_wait()


@triton.jit
def let_next_start(CHAINED: tl.constexpr):
    """The next launch's programs may come as soon as all of this one's were here."""
    if CHAINED:
        gdc_launch_dependents()
