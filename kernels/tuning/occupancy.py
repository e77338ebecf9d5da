"""How many blocks of a kernel fit on one multiprocessor, and what keeps more from fitting.

``blocks = min(by warps, by registers, by shared memory, by the limit of blocks)``; registers are
handed out per warp in units (NVIDIA, "CUDA C++ Programming Guide", on multiprocessor occupancy).
"""

from __future__ import annotations

from dataclasses import dataclass

from fastres.kernels.tuning.gpus import Architecture


@dataclass(frozen=True)
class Occupancy:
    """Attributes:
    blocks: blocks resident on one multiprocessor; 0 where not even one fits.
    warps: their warps.
    share: of the warps that the multiprocessor holds at most.
    limit: what keeps another block out: ``warps``, ``registers``, ``shared`` or ``blocks``.
    """

    blocks: int
    warps: int
    share: float
    limit: str


def occupancy(
    architecture: Architecture, num_warps: int, registers: int, shared_bytes: int
) -> Occupancy:
    """Resident blocks of a kernel.

    Args:
        architecture: whose multiprocessor.
        num_warps: warps of a block.
        registers: 32-bit registers of a thread.
        shared_bytes: shared memory of a block.
    """
    unit = architecture.register_unit
    per_warp = -(-max(registers, 1) // unit) * unit * architecture.warp_size
    # A warp's registers come from its own scheduler's quarter of them.
    warps = architecture.schedulers * (
        architecture.registers // architecture.schedulers // per_warp
    )
    if registers > architecture.registers_per_thread:
        warps = 0
    fitting = {
        "warps": architecture.max_warps // num_warps,
        "registers": warps // num_warps,
        "shared": architecture.shared_bytes
        // max(shared_bytes + architecture.reserved_shared_bytes, 1),
        "blocks": architecture.max_blocks,
    }
    if shared_bytes > architecture.shared_bytes_per_block:
        fitting["shared"] = 0
    limit = min(fitting, key=lambda name: fitting[name])
    blocks = fitting[limit]
    resident = blocks * num_warps
    return Occupancy(blocks, resident, resident / architecture.max_warps, limit)
