"""Instructions of either maker's machine code: what kind each is, and which of them are the loop.

The main loop is the loop with the most matrix instructions: what the kernel does nearly all the
time. What its issue slots go to, beside those, is the quality of its address arithmetic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

KINDS: tuple[str, ...] = ("tensor", "integer", "float", "global", "shared", "local", "control")
"""Matrix units; addresses, masks and moves; float arithmetic; memory by level; everything else."""


@dataclass(frozen=True)
class Instruction:
    """One machine instruction.

    Attributes:
        opcode: with its suffixes, e.g. ``LDGSTS.E.BYPASS.128``.
        kind: one of :data:`KINDS`.
        multiply_adds: of a matrix instruction, by one warp; 0 where the code does not tell.
        copied: for ``global``: ``load``, ``store``, ``async`` (straight to shared memory) or
            ``descriptor`` (a tile copied by the hardware's own engine); "" otherwise.
        copied_bytes: for ``global``: by one thread; 0 for a descriptor.
        label: name of the place just before it, if it has one.
        target: the label it may jump to, if it does.
        is_end: whether the kernel ends with it, on no condition.
    """

    opcode: str
    kind: str
    multiply_adds: int = 0
    copied: str = ""
    copied_bytes: int = 0
    label: str | None = None
    target: str | None = None
    is_end: bool = False


@dataclass(frozen=True)
class Mix:
    """How many instructions of each kind a stretch of code has.

    Attributes:
        counts: by kind, see :data:`KINDS`; zeros left out.
        multiply_adds: of its matrix instructions, by one warp.
        opcodes: the matrix instructions' names with their numbers.
    """

    counts: dict[str, int]
    multiply_adds: int
    opcodes: dict[str, int]

    @property
    def total(self) -> int:
        """All instructions."""
        return sum(self.counts.values())

    def of(self, *kinds: str) -> int:
        """Instructions of these kinds."""
        return sum(self.counts.get(kind, 0) for kind in kinds)


def mix(code: Sequence[Instruction]) -> Mix:
    """Count ``code``."""
    counted = Counter(each.kind for each in code)
    return Mix(
        counts={kind: counted[kind] for kind in KINDS if counted[kind]},
        multiply_adds=sum(each.multiply_adds for each in code),
        opcodes=dict(Counter(each.opcode for each in code if each.kind == "tensor")),
    )


def copies(code: Sequence[Instruction]) -> dict[str, dict[int, int]]:
    """How wide global memory is read and written: way of copying -> bytes per thread -> number."""
    found: dict[str, dict[int, int]] = {}
    for each in code:
        if each.copied:
            widths = found.setdefault(each.copied, {})
            widths[each.copied_bytes] = widths.get(each.copied_bytes, 0) + 1
    return {way: dict(sorted(widths.items())) for way, widths in sorted(found.items())}


def loops(code: Sequence[Instruction]) -> list[Sequence[Instruction]]:
    """The stretches between a label and a jump back to it, in order of the jumps.

    Compilers lay code that is rarely needed behind the kernel's end, from where it jumps back to
    where it is from. That closes no loop: a stretch with the end in it is none.
    """
    places = {each.label: index for index, each in enumerate(code) if each.label is not None}
    ends = [index for index, each in enumerate(code) if each.is_end]
    found = []
    for index, each in enumerate(code):
        start = places.get(each.target) if each.target is not None else None
        if start is None or start > index or any(start <= end < index for end in ends):
            continue
        found.append(code[start : index + 1])
    return found


def main_loop(code: Sequence[Instruction]) -> tuple[Sequence[Instruction], str]:
    """Where the kernel spends its time, and in which form: ``loop``, ``unrolled`` or ``none``.

    The loop with the most matrix instructions, the shortest of several. A loop of few steps may
    have been unrolled as a whole: then all from the first matrix instruction to the last, if no
    loop has as many. Where there are none at all, the loop with the most float arithmetic, which
    is what products become without matrix units.
    """
    found = loops(code)
    for kind in ("tensor", "float"):
        best = max(found, key=lambda each: (mix(each).of(kind), -len(each)), default=())
        in_loop = mix(best).of(kind)
        places = [index for index, each in enumerate(code) if each.kind == kind]
        if kind == "tensor" and len(places) > 2 * in_loop:
            return code[places[0] : places[-1] + 1], "unrolled"
        if in_loop:
            return best, "loop"
    return (), "none"
