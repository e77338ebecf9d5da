"""How long a launch takes, by a model: never a measurement, good for ranking and for orders.

A kernel is programs that each run a few loops (:class:`Loop`) and then write. For each program::

    matrix  = sum over loops of steps * flops / (one multiprocessor's FLOP/s)
    issue   = sum of steps * instructions * warps / (schedulers * clock)
    L2      = sum of steps * fetched bytes / (one multiprocessor's share of L2 bandwidth)
    memory  = bytes that must come from and go to device memory / (its share of bandwidth)
    chain   = what one program takes alone: filling the pipeline, its steps one after the other,
              none faster than ``latency / (stages - 1)``, and writing

``b`` programs share a multiprocessor (occupancy), and together take
``max(chain, b * (matrix^3 + issue^3 + L2^3 + memory^3)^(1/3))``: resources overlap, though not
perfectly. Programs come in waves of ``b * multiprocessors``; the last one may hold fewer, and costs
what its fullest multiprocessor takes (tile and wave quantisation). The launch itself costs a fixed
time, and the whole is never shorter than the FLOPs and the bytes allow.

What is assumed, and from where:

- The constants below were fitted to ResNet-50's 23 convolutions in fp16 on an H100, at batches of
  1, 32 and 256 and in 867 configurations (``benchmarks/results/gpu_day``): of the times measured,
  the model is off by 18 % in the root mean square, and what it chooses takes 3 % longer than the
  fastest of those configurations at batch 256, 5 % at 32 and 8 % at 1. For other GPUs they are
  assumed.
- ``MATRIX_SHARE``, ``MEMORY_SHARE``, ``ISSUE_SHARE``: shares of the data sheet's peaks, and of the
  schedulers' issue slots, that long kernels sustain.
- ``L2_BYTES_PER_CYCLE``: what L2 gives each multiprocessor.
- ``LATENCY_S``, ``LAUNCH_S``: a tile's way from L2 or device memory, and one kernel after another
  inside a CUDA graph.
- ``SHORT_ROWS``, ``LOW_TILES``: see :func:`fetch_factor`.
- Issue slots and registers: read off the machine code of ``conv2d_kernel`` (Triton 3.8, sm_80 and
  sm_90) by ``fastres.kernels.inspection``, and fitted: see :func:`loop_instructions`,
  :func:`instructions_around` and :func:`registers`. ``tests/kernels/test_budgets.py`` compares
  them with what is compiled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fastres.kernels.tuning.gpus import Architecture, Gpu
from fastres.kernels.tuning.occupancy import occupancy

MATRIX_SHARE = 0.70
MEMORY_SHARE = 0.76
ISSUE_SHARE = 0.74
L2_BYTES_PER_CYCLE = 36.0
LATENCY_S = 0.3e-6
LAUNCH_S = 1.2e-6
SHORT_ROWS = 1.1
LOW_TILES = 1.6

_OVERLAP = 3.0
"""Exponent of the norm that adds resources up: 1 were no overlap, infinity a perfect one."""


@dataclass(frozen=True)
class Loop:
    """A loop of every program.

    Attributes:
        steps: how often it runs.
        flops: of one step, padding of tiles included.
        fetched_bytes: that one step asks L2 for.
        instructions: of one step and warp, beside the matrix instructions.
        stages: depth of the software pipeline; 1 means that every step waits for its data.
    """

    steps: int
    flops: float
    fetched_bytes: float
    instructions: float
    stages: int


@dataclass(frozen=True)
class Work:
    """A launch, as the model sees it.

    Attributes:
        programs: of the grid.
        num_warps: of a program.
        registers: of a thread.
        shared_bytes: of a program.
        loops: run one after the other.
        bytes: that come from or go to device memory at least: each tensor once.
        flops: that are asked for, without padding.
        instructions: of one warp before and after the loops.
    """

    programs: int
    num_warps: int
    registers: int
    shared_bytes: int
    loops: tuple[Loop, ...]
    bytes: float
    flops: float
    instructions: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """A modelled time and where it comes from.

    Attributes:
        seconds: modelled, launches included.
        bytes: to and from device memory.
        flops: asked for.
        waves: programs over how many the GPU holds at once; the largest of several kernels'.
        limit: what the time goes to: ``matrix``, ``issue``, ``L2``, ``memory``, ``latency`` (one
            program after the other, with too few of them to hide it), ``launch``, or ``does not
            fit`` with infinite seconds.
    """

    seconds: float
    bytes: float
    flops: float
    waves: float
    limit: str

    def __add__(self, other: Estimate) -> Estimate:
        longer = self if self.seconds >= other.seconds else other
        return Estimate(
            self.seconds + other.seconds,
            self.bytes + other.bytes,
            self.flops + other.flops,
            max(self.waves, other.waves),
            longer.limit,
        )


def longer(found: Estimate, factor: float) -> Estimate:
    """The same work, taking ``factor`` times as long beside the launch."""
    return replace(found, seconds=LAUNCH_S + (found.seconds - LAUNCH_S) * factor)


NOTHING = Estimate(0.0, 0.0, 0.0, 0.0, "launch")
"""Of a tensor without elements."""


def floor_seconds(flops: float, moved_bytes: float, precision: str, gpu: Gpu) -> float:
    """What the data sheet allows: the longer of FLOPs over peak and bytes over bandwidth."""
    return max(flops / gpu.flops[precision], moved_bytes / gpu.memory_bytes_per_s)


def estimate(work: Work, precision: str, gpu: Gpu) -> Estimate:
    """The model of one launch; see the top of this file."""
    if work.programs == 0:
        return NOTHING
    resident = occupancy(gpu.architecture, work.num_warps, work.registers, work.shared_bytes).blocks
    if resident == 0:
        return Estimate(math.inf, work.bytes, work.flops, math.inf, "does not fit")
    slots = gpu.multiprocessors * resident
    full, rest = divmod(work.programs, slots)
    seconds, limit = 0.0, "launch"
    if full:
        each, limit = _wave(work, precision, gpu, resident, gpu.multiprocessors)
        seconds = full * each
    if rest:
        together = -(-rest // gpu.multiprocessors)
        tail, limit_of_tail = _wave(work, precision, gpu, together, min(rest, gpu.multiprocessors))
        if tail > seconds:
            limit = limit_of_tail
        seconds += tail
    least = {
        "memory": work.bytes / (gpu.memory_bytes_per_s * MEMORY_SHARE),
        "matrix": work.flops / (gpu.flops[precision] * MATRIX_SHARE),
    }
    binding = max(least, key=lambda name: least[name])
    if least[binding] > seconds:
        seconds, limit = least[binding], binding
    if seconds < LAUNCH_S:
        limit = "launch"
    return Estimate(seconds + LAUNCH_S, work.bytes, work.flops, work.programs / slots, limit)


def _wave(work: Work, precision: str, gpu: Gpu, together: int, active: int) -> tuple[float, str]:
    """Seconds for ``together`` programs on each of ``active`` multiprocessors, and their limit."""
    fetch_rate = L2_BYTES_PER_CYCLE * gpu.clock_hz
    memory_rate = min(gpu.memory_bytes_per_s * MEMORY_SHARE / active, fetch_rate)
    matrix_rate = gpu.flops[precision] * MATRIX_SHARE / gpu.multiprocessors
    issue_rate = gpu.architecture.schedulers * gpu.clock_hz * ISSUE_SHARE / work.num_warps
    bytes_of_program = work.bytes / work.programs
    around = work.instructions / issue_rate
    used = {"matrix": 0.0, "issue": around, "L2": 0.0, "memory": bytes_of_program / memory_rate}
    # Filling the pipeline, and the way back of what is written.
    chain = 2 * LATENCY_S + bytes_of_program / fetch_rate + around
    for loop in work.loops:
        parts = {
            "matrix": loop.flops / matrix_rate,
            "issue": loop.instructions / issue_rate,
            "L2": loop.fetched_bytes / fetch_rate,
        }
        for name, seconds in parts.items():
            used[name] += loop.steps * seconds
        step = _overlapped(list(parts.values()))
        if loop.stages > 1:
            step = max(step, LATENCY_S / (loop.stages - 1))
        else:
            step += LATENCY_S
        chain += loop.steps * step
    throughput = together * _overlapped(list(used.values()))
    if chain >= throughput:
        return chain, "latency"
    return throughput, max(used, key=lambda name: used[name])


def _overlapped(parts: Sequence[float]) -> float:
    largest = max(parts)
    if largest == 0.0:
        return 0.0
    return float(largest * sum((part / largest) ** _OVERLAP for part in parts) ** (1 / _OVERLAP))


def fetch_factor(tile: tuple[int, int, int], element_bytes: int) -> float:
    """How much dearer a step's bytes from L2 are than those of whole cache lines and square tiles.

    Args:
        tile: (m, n, k) of one step.

    Rows of less than 128 bytes fill shared memory's banks by halves. Tiles of 16 filters bring the
    same pixels to many multiprocessors at once.
    """
    factor = SHORT_ROWS if tile[2] * element_bytes < 128 else 1.0
    return factor * (LOW_TILES if min(tile[:2]) <= 16 else 1.0)


def streaming(moved_bytes: float, flops: float, gpu: Gpu) -> Estimate:
    """A kernel that reads and writes once and computes little: element-wise, pooling, layout."""
    programs = math.ceil(moved_bytes / 16384)  # a thread moves a few times 16 bytes
    loop = Loop(1, 0.0, moved_bytes / max(programs, 1), 64.0, 1)
    return estimate(Work(programs, 4, 32, 0, (loop,), moved_bytes, flops), "fp32", gpu)


def registers(
    architecture: Architecture, accumulators: int, element_bytes: int, narrow_copies: float = 0.0
) -> int:
    """Registers of a thread that holds so many float32 sums, and adds a residual to them.

    Args:
        architecture: whose.
        accumulators: sums of a thread.
        element_bytes: of an activation.
        narrow_copies: loads of less than 16 bytes that a thread has in flight: each has an address
            and a result of its own (read on sm_80: 64 sums and 48 loads of two bytes, 236).

    ``mma`` keeps operands beside the sums (read on sm_80: 16 sums 72-80, 32 sums 110-128, 64 sums
    142-219, 128 sums 254; in int8 16 sums 111, 32 sums 161-202, 64 sums 236-250, and 128 spill).
    ``wgmma`` reads them from shared memory, and needs most where a residual
    is added (sm_90, 128 sums: 170 in the loop, 244 with a residual of 16 bits, spills with one of
    32; sm_100 spills with either). The result may exceed what a thread can have: such a kernel
    would spill, and is not chosen.
    """
    per_sum = {"wgmma": 1.6, "tcgen05": 1.8, "mfma": 1.1}.get(architecture.tensor_core, 1.9)
    if element_bytes == 4 and architecture.tensor_core in ("wgmma", "tcgen05"):
        per_sum = 2.1
    if element_bytes == 1 and architecture.tensor_core == "mma":
        per_sum = 3.0
    return round(48 + per_sum * accumulators + 1.5 * narrow_copies)


def loop_instructions(
    architecture: Architecture,
    tile: tuple[int, int, int],
    element_bytes: int,
    num_warps: int,
    *,
    gathered: bool,
    descriptors: bool = False,
    copy_bytes: int = 16,
) -> float:
    """Instructions of one step and warp of a matrix product's loop, beside the matrix ones.

    Args:
        tile: (m, n, k) of one step.
        gathered: whether rows are gathered under a mask, as for a convolution with padding; by
            descriptors, whether there is a box under each tap.
        descriptors: whether the hardware copies whole tiles.
        copy_bytes: that one thread can load at a time: 16 unless channels are few or odd.

    Read on sm_80, as m, n, k, warps: instructions. 128, 128, 64, 8: 121. 128, 64, 64, 4: 166. 64,
    128, 64, 4: 138. 64, 64, 64, 4: 113. 64, 32, 64, 4: 108. On sm_90: 128, 128, 32, 4: 119. 128,
    64, 64, 4: 154, by descriptors 88, by boxes 88 to 97. Loops that the compiler unrolls as a
    whole take a third of that, which is not counted on. In int8 on sm_80: 128, 128, 128, 8: 447.
    64, 64, 128, 4: 320. 64, 32, 128, 4: 266. On sm_90: 128, 128, 64, 4: 135.
    """
    m, n, k = tile
    by_descriptor, by_box = 80.0, 90.0
    if descriptors:
        return by_box if gathered else by_descriptor
    per_copy = copy_bytes * num_warps * architecture.warp_size
    copies_m = m * k * element_bytes / per_copy
    copies_n = n * k * element_bytes / per_copy
    fixed, loads = 72.0, 0.0
    if architecture.tensor_core not in ("wgmma", "tcgen05"):
        # Operands go through registers: 16x16 values of 16 bits per instruction, for a warp's
        # share of the tile, which is about square.
        side = math.sqrt(m * n / num_warps)
        fixed, loads = 45.0, 2 * side / 16 * (k * element_bytes / 32)
        if element_bytes == 1:  # and are made signed there, some of them byte by byte
            fixed += 1.6 * side * k / 32
    elif element_bytes == 1:  # pixels go through registers, where four at a time are made signed
        fixed += m * k / (4.0 * num_warps * architecture.warp_size)
    if element_bytes == 4:  # pixels are rounded to TF32 on their way
        fixed += 4.0 * m * k / (num_warps * architecture.warp_size)
    if copy_bytes < 16:  # each with an address and a mask of its own
        return fixed + 10.0 * copies_m + 5.0 * copies_n + loads
    return fixed + (8.0 if gathered else 4.0) * copies_m + 4.0 * copies_n + loads


def instructions_around(
    accumulators: int,
    *,
    gathered: bool,
    descriptors: bool = False,
    residual: bool = False,
    rescaled: bool = False,
    narrow_copies: float = 0.0,
) -> float:
    """Instructions of one warp of a matrix product before and after its loop.

    Addresses and masks of rows, filling the pipeline, and per sum: bias, activation, rounding, its
    way through shared memory, storing. Arguments are as in :func:`registers`; ``rescaled`` is of
    int8, whose sums are converted, multiplied, rounded and cut off: not measured.

    Read as: sums of a thread: instructions. Gathered, sm_86 and sm_89: 32: 644-831, 64: 972-1183;
    sm_90: 128: 1189-1648. With a residual 100 to 350 more. By descriptors, sm_90: 32: 542, 128:
    828-998; by boxes with a residual, 64: 820, 128: 1210. The stem's three channels, 48 narrow
    copies, 64 sums: 2236-2345.
    """
    if descriptors:
        around = 400 + 4.0 * accumulators
    else:
        around = (400 if gathered else 250) + 8.0 * accumulators
    around += 5.0 * accumulators if rescaled else 0.0
    return around + (2.5 * accumulators if residual else 0.0) + 27.0 * narrow_copies
