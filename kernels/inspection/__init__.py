"""Reading machine code without a GPU: what a launch compiles to for a given architecture.

================  ==========================================================================
module            subject
================  ==========================================================================
``compiling``     a :class:`~fastres.kernels.launch.call.KernelCall` becomes a binary
``sass``          NVIDIA's machine code as text, becomes instructions
``amdgcn``        AMD's assembly, becomes instructions
``instructions``  instructions are sorted and counted, the main loop is found
``finding``       all of that about one launch, as a record
================  ==========================================================================

Compiling needs Triton's compiler, which steps aside when ``TRITON_INTERPRET`` is set: inspection
says so and stops. The other modules only read text and count.
"""

from __future__ import annotations
