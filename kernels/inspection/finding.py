"""What was read about one launch: resources, matrix instructions, copies, the main loop.

Two figures judge the main loop. ``tensor_cycles`` is how long the matrix units are busy with one
pass of it, for one warp on its scheduler; ``issue_cycles`` how many of that scheduler's slots its
other instructions take, one each. A scheduler issues one instruction per cycle while matrix
instructions run on, so that a loop whose ``issue_ratio = issue_cycles / tensor_cycles`` is below 1
can keep the matrix units busy, and one above 1 cannot.

Kernels of grouped convolutions have a second loop of products, for tiles that NaN or infinity fell
into, which hardly ever runs and is no part of these figures. The main loop is therefore read from
the same launch compiled without it (:data:`WITHOUT_RARE_LOOP`), and everything else - registers,
local and shared memory, occupancy, the whole kernel's instructions and copies - from what runs.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from fastres.errors import TargetError
from fastres.kernels.inspection import amdgcn, sass
from fastres.kernels.inspection.instructions import Instruction, Mix, copies, main_loop, mix
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.tuning.gpus import GPUS, Architecture
from fastres.kernels.tuning.occupancy import Occupancy, occupancy

if TYPE_CHECKING:
    from fastres.kernels.inspection.compiling import Binary

WITHOUT_RARE_LOOP = {"TOGETHER": 1}
"""Constants with which kernels are compiled without the loop that they hardly ever run."""

_FUSED = re.compile(r"FFMA|v_(?:pk_)?(?:fma|mac|mad)\w*_f32")

_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass(frozen=True)
class Finding:
    """One launch on one architecture.

    Attributes:
        kernel: its name.
        architecture: compiled for.
        grid: programs along three axes.
        constants: compile-time parameters.
        num_warps, num_stages: of the launch.
        registers: of a thread; on AMD vector registers, accumulators included.
        spill_bytes: local memory of a thread: what did not fit into registers.
        local_instructions: reads and writes of local memory.
        shared_bytes: shared memory of a block.
        occupancy: what fits on a multiprocessor.
        whole: the kernel's instructions.
        loop: those of the main loop; empty where there is none. This, and what follows, without
            the loop that hardly ever runs; see above.
        loop_form: ``loop``, ``unrolled`` or ``none``; see :func:`instructions.main_loop`.
        copies: way of copying -> bytes per thread -> instructions, in the whole kernel as it runs.
        loop_copies: the same for the main loop.
        issue_ratio: see above; None where the code does not tell the products' sizes.
        integer_share: the same for integer instructions alone.
        fused_multiply_adds: of float32, in the whole kernel beside matrix instructions.
    """

    kernel: str
    architecture: str
    grid: tuple[int, int, int]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int
    registers: int
    spill_bytes: int
    local_instructions: int
    shared_bytes: int
    occupancy: Occupancy
    whole: Mix
    loop: Mix
    loop_form: str
    copies: dict[str, dict[int, int]]
    loop_copies: dict[str, dict[int, int]]
    issue_ratio: float | None
    integer_share: float | None
    fused_multiply_adds: int = 0

    @property
    def multiplies(self) -> bool:
        """Whether the kernel is one for matrix products."""
        return "INPUT_PRECISION" in self.constants

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def inspect_call(call: KernelCall, architecture: Architecture) -> Finding:
    """Compile one launch and read its machine code; where it has a rare loop, once more without it.

    Raises:
        TargetError: it cannot be compiled; see :func:`compiling.compile_call`.
    """
    from fastres.kernels.inspection.compiling import compile_call

    binary = compile_call(call, architecture)
    shared = binary.shared_bytes
    code = _parsed(binary, architecture)
    if architecture.backend == "hip":
        resources = amdgcn.resources(binary.code)
        registers = resources["vgpr_count"]  # one file: the accumulators are counted in
        spilled = resources["private_segment_fixed_size"]
    else:
        usage = _USAGE.search(binary.usage)
        if usage is None:
            raise TargetError(f"cuobjdump says nothing about {call.name}: {binary.usage!r}")
        registers, stack, _, local = map(int, usage.groups())
        spilled = stack + local
    usual = without_rare_loop(call)
    body, form = main_loop(
        code if usual is call else _parsed(compile_call(usual, architecture), architecture)
    )
    whole, loop = mix(code), mix(body)
    return Finding(
        kernel=call.name,
        architecture=architecture.name,
        grid=call.grid,
        constants=dict(call.constants),
        num_warps=call.num_warps,
        num_stages=call.num_stages,
        registers=registers,
        spill_bytes=spilled,
        local_instructions=whole.of("local"),
        shared_bytes=shared,
        occupancy=occupancy(architecture, call.num_warps, registers, shared),
        whole=whole,
        loop=loop,
        loop_form=form,
        copies=copies(code),
        loop_copies=copies(body),
        issue_ratio=_per_busy_cycle(loop, loop.total - loop.of("tensor"), architecture),
        integer_share=_per_busy_cycle(loop, loop.of("integer"), architecture),
        fused_multiply_adds=sum(bool(_FUSED.match(each.opcode)) for each in code),
    )


def without_rare_loop(call: KernelCall) -> KernelCall:
    """The launch whose main loop is read: the same one if it has but that loop."""
    changed = {
        name: value
        for name, value in WITHOUT_RARE_LOOP.items()
        if call.constants.get(name, value) != value
    }
    return replace(call, constants={**call.constants, **changed}) if changed else call


def _parsed(binary: Binary, architecture: Architecture) -> list[Instruction]:
    parse = amdgcn.parse if architecture.backend == "hip" else sass.parse
    return parse(binary.code)


def _per_busy_cycle(loop: Mix, instructions: int, architecture: Architecture) -> float | None:
    if not loop.multiply_adds:
        return None
    busy = loop.multiply_adds / rate(next(iter(loop.opcodes)), architecture)
    return instructions / busy


def rate(opcode: str, architecture: Architecture) -> float:
    """Multiply-adds per cycle of the matrix unit behind one scheduler, with float32 sums.

    From the makers' figures: FLOP/s over multiprocessors, clock, schedulers and two. Of products
    with one architecture the fastest counts: GeForce cards run at half the rate of the others,
    which can only make a loop look worse.
    """
    precision = "fp16"
    if "TF32" in opcode or opcode.endswith("xf32"):
        precision = "tf32"
    elif re.search(r"mfma_f32_\w+f32$", opcode):
        precision = "fp32"
    elif re.search(r"^(IMMA|IGMMA|UTCIMMA|v_mfma_i32)", opcode):
        precision = "int8"
    return max(
        gpu.flops[precision] / (2 * gpu.multiprocessors * gpu.clock_hz * architecture.schedulers)
        for gpu in GPUS.values()
        if gpu.architecture == architecture
    )
