"""What machine code must not do, each with its bound.

=====================  ============================================================================
budget                 bound
=====================  ============================================================================
local memory           none: everything fits into registers; :data:`SECOND_PATH_BYTES` where groups
                       share a tile
shared memory          within what one block may have, and at least one block fits
matrix units           every product on them, by the architecture's own instruction (``HMMA``,
                       ``HGMMA``, ``UTC*MMA``, ``v_mfma``; of int8 ``IMMA``, ``IGMMA``,
                       ``v_mfma_i32``). Full float32 on NVIDIA has none.
rounding               products of int8 have no fused multiply-adds behind them, which round once
                       where the definition rounds twice. Divisions have some: those of hardswish,
                       and of addresses of 64 bits, which AMD's compiler makes of floats.
address arithmetic     in the main loop, integer instructions take at most :data:`INTEGER_SHARE` of
                       the issue slots that pass while the matrix units are busy; a little more
                       where tiles are narrow or channels straddle taps
=====================  ============================================================================

The last one holds where tiles are large and channels come in 16 bytes: the stem's three channels
are gathered one by one, and a product of few rows (a classifier, one image's late stages) waits for
its weights and not for its instructions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastres.kernels.inspection.finding import Finding
from fastres.kernels.tuning.conv2d import on_matrix_units
from fastres.kernels.tuning.gpus import Architecture
from fastres.kernels.tuning.traffic import ELEMENT_BYTES

INTEGER_SHARE = {"fp16": 0.6, "bf16": 0.6, "tf32": 1.1, "fp32": 0.6, "int8": 1.5}
"""Integer instructions per cycle in which a scheduler's matrix unit is busy, by precision: pixels
are rounded to TF32 in the loop, and made signed for int8, by integer arithmetic. On sm_80 Triton
takes bytes apart between steps and puts them together again: read there, 252 instructions in a loop
of 32 products, and 284 (a share of 1.1) with the pixels made signed; 1.4 in steps of 64 channels.
On sm_90 a share of 0.4."""

NARROW_SHARE = 0.4
"""What is allowed beside that where a tile has 32 filters only, as in grouped convolutions: every
address then serves half as many products as in the narrowest tile otherwise."""

STRADDLING_SHARE = 0.2
"""What is allowed beside that where one step's channels belong to several taps, as with 24 or 72
channels: every column then has a tap of its own. Read on sm_90: 0.73 with 64 filters, 1.02 with
32."""

SECOND_PATH_BYTES = 128
"""Local memory of a thread where groups share a tile: such code holds the products twice, the
second time for tiles with NaN in them, which are rare. Read on sm_80 and sm_90: up to 128."""

SECOND_PATH_SHARE = 0.2
"""What is allowed for address arithmetic beside the others there. Read on sm_90: 1.32."""

_PREFIX = {"mma": "HMMA", "wgmma": "HGMMA", "tcgen05": "UTC", "mfma": "v_mfma"}
_OF_INT8 = {"mma": "IMMA", "wgmma": "IGMMA", "tcgen05": "UTC", "mfma": "v_mfma_i32"}


LARGE_TILE = 64 * 64
"""Pixels times filters from which on a tile is large."""


def violations(finding: Finding, architecture: Architecture, precision: str) -> list[str]:
    """The budgets that a launch breaks, a sentence each; none if all is well.

    None either where products are the library's (sm_75): ours are compiled there to be looked at.

    Args:
        finding: what was read.
        architecture: compiled for.
        precision: that it computes in.
    """
    if architecture.tensor_core == "none" and finding.multiplies:
        return []
    found = []
    if spills(finding.spill_bytes, finding.local_instructions, finding.constants):
        found.append(
            f"{finding.spill_bytes} bytes of local memory per thread, "
            f"{finding.local_instructions} instructions on it"
        )
    if finding.shared_bytes > architecture.shared_bytes_per_block:
        found.append(
            f"{finding.shared_bytes} bytes of shared memory, a block may have "
            f"{architecture.shared_bytes_per_block}"
        )
    if finding.occupancy.blocks == 0:
        found.append("not one block fits on a multiprocessor")
    if precision == "int8" and _rounds_once(finding):
        found.append(f"{finding.fused_multiply_adds} fused multiply-adds, which round only once")
    if finding.multiplies and on_matrix_units(precision, architecture):
        found += _off_matrix_units(finding, architecture, precision)
        share = finding.integer_share
        allowed = INTEGER_SHARE[precision]
        allowed += NARROW_SHARE if _is_narrow(finding) else 0.0
        allowed += STRADDLING_SHARE if _straddles(finding) else 0.0
        allowed += SECOND_PATH_SHARE if _has_second_path(finding.constants) else 0.0
        if _is_large(finding, precision) and share is not None and share > allowed:
            found.append(
                f"{share:.2f} integer instructions per busy cycle of the matrix units, at most "
                f"{allowed:.1f} are allowed"
            )
    return found


def spills(spill_bytes: int, local_instructions: int, constants: Mapping[str, Any]) -> bool:
    """Whether more of a thread lies in local memory than its kernel may have there."""
    if _has_second_path(constants):
        return spill_bytes > SECOND_PATH_BYTES
    return local_instructions > 0  # AMD's compiler reserves some that it never uses


def _rounds_once(finding: Finding) -> bool:
    divides = "hardswish" in finding.constants.values() or finding.constants.get("INT64", False)
    return finding.multiplies and not divides and finding.fused_multiply_adds > 0


def _has_second_path(constants: Mapping[str, Any]) -> bool:
    return bool(constants.get("TOGETHER", 1) > 1)


def _is_large(finding: Finding, precision: str) -> bool:
    """Whether the budget for address arithmetic applies; the stem has no such tile."""
    constants = finding.constants
    tile: int = constants.get("BLOCK_SIZE_M", 0) * constants.get("BLOCK_SIZE_N", 0)
    channels: int = constants.get("C", 8)
    return tile >= LARGE_TILE and channels * ELEMENT_BYTES[precision] % 16 == 0


def _is_narrow(finding: Finding) -> bool:
    """A block's tail makes a whole chunk of filters per step, whatever its BLOCK_SIZE_N."""
    width: int = finding.constants.get("CHUNK", finding.constants["BLOCK_SIZE_N"])
    return width < 64


def _straddles(finding: Finding) -> bool:
    """Whether channels of one step belong to several taps; a block's tail takes tap by tap."""
    constants = finding.constants
    taps: int = constants.get("R", 1) * constants.get("S", 1)
    step: int = constants.get("BLOCK_SIZE_K", 1)
    return taps > 1 and "CHUNK" not in constants and constants.get("C", step) % step != 0


def _off_matrix_units(finding: Finding, architecture: Architecture, precision: str) -> list[str]:
    prefix = (_OF_INT8 if precision == "int8" else _PREFIX)[architecture.tensor_core]
    others = [name for name in finding.whole.opcodes if not name.startswith(prefix)]
    if others or not finding.whole.opcodes:
        return [f"products by {', '.join(others) or 'no matrix instruction'} instead of {prefix}"]
    return []
