"""AMD's assembly, as the compiler writes it: instructions, and the resources in its metadata.

Opcodes are those of AMD, "CDNA3 Instruction Set Architecture". ``v_mfma_f32_32x32x8_f16``
multiplies 32x8 by 8x32 and adds to 32x32, by one wave.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from fastres.kernels.inspection.instructions import Instruction

_LABEL = re.compile(r"^(?P<label>\.LBB\w+):")
_LINE = re.compile(r"^\s+(?P<opcode>(?:v|s|ds|buffer|global|flat|scratch)_\w+)\s*(?P<operands>.*)")
_MATRIX = re.compile(r"v_mfma_\w+?_(\d+)x(\d+)x(\d+)(?:_(\d+)b)?_?\w*$")
_VALUE = re.compile(r"^\s+\.(?P<name>\w+):\s+(?P<value>\d+)\s*$", re.MULTILINE)
_FLOAT = re.compile(r"v_(?:pk_)?(?:add|sub|mul|fma|mac|fmac|max|min|exp|rcp|log|rsq|cvt)\w*_f\d+")
_BYTES = {
    **{"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4},
    **{"short": 2, "ushort": 2, "sshort": 2, "ubyte": 1, "sbyte": 1, "byte": 1},
}


def parse(text: str) -> list[Instruction]:
    """The instructions of the one kernel in the assembly, in order."""
    return list(_instructions(text))


def resources(text: str) -> dict[str, int]:
    """The numbers of the kernel's metadata, e.g. ``vgpr_count``, ``vgpr_spill_count``."""
    return {found["name"]: int(found["value"]) for found in _VALUE.finditer(text)}


def _instructions(text: str) -> Iterator[Instruction]:
    label = None
    for line in text.splitlines():
        place = _LABEL.match(line)
        if place:
            label = place["label"]
            continue
        found = _LINE.match(line)
        if not found:
            continue
        yield _instruction(found["opcode"], found["operands"], label)
        label = None


def _instruction(opcode: str, operands: str, label: str | None) -> Instruction:
    kind = _kind(opcode)
    jumps = opcode.startswith(("s_branch", "s_cbranch"))
    copied = ""
    if kind == "global":
        copied = "store" if "_store" in opcode or "_atomic" in opcode else "load"
        if operands.rstrip().endswith(" lds") or "_lds_" in opcode:
            copied = "async"
    return Instruction(
        opcode=opcode,
        kind=kind,
        multiply_adds=_multiply_adds(opcode),
        copied=copied,
        copied_bytes=_width(opcode) if copied else 0,
        label=label,
        target=operands.split()[0] if jumps and operands else None,
        is_end=opcode == "s_endpgm",
    )


def _kind(opcode: str) -> str:
    unit, _, name = opcode.partition("_")
    if unit == "ds":
        return "shared"
    if unit == "scratch":
        return "local"
    if unit in ("buffer", "global", "flat"):
        return "global" if re.search("load|store|atomic", name) else "control"
    if name.startswith(("mfma", "smfmac")):
        return "tensor"
    if _FLOAT.match(opcode):
        return "float"
    if unit == "s" and re.match("waitcnt|nop|barrier|branch|cbranch|endpgm|setprio|sleep", name):
        return "control"
    return "integer"


def _width(opcode: str) -> int:
    return next((size for name, size in _BYTES.items() if opcode.endswith(f"_{name}")), 4)


def _multiply_adds(opcode: str) -> int:
    shape = _MATRIX.match(opcode)
    if not shape:
        return 0
    m, n, k, blocks = (int(side or 1) for side in shape.groups())
    return m * n * k * blocks
