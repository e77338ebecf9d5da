"""NVIDIA's machine code, from the text that ``nvdisasm -c`` prints.

Opcodes are those of NVIDIA, "CUDA Binary Utilities", the tables of instruction sets. The shape of a
matrix product is part of its name: ``HMMA.16816`` is 16x8x16, and so of integers ``IMMA.16832``;
``HGMMA.64x128x16`` what it says, by four warps together. ``UTCHMMA`` keeps its shape in a
descriptor, where text does not show it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from fastres.kernels.inspection.instructions import Instruction

_LINE = re.compile(
    r"^\s*/\*[0-9a-f]{4,}\*/\s+(?P<guard>@!?U?P[0-9T]+\s+)?(?P<opcode>[A-Z][A-Z0-9_.a-z]*)"
    r"(?P<operands>[^;]*)"
)
_LABEL = re.compile(r"^(?P<label>\.L_[\w.]+):")
_JUMP = re.compile(r"`\((?P<label>\.L_[\w.]+)\)")
_WARP_SHAPES = {
    "16832": 16 * 8 * 32,
    "16816": 16 * 8 * 16,
    "1688": 16 * 8 * 8,
    "1684": 16 * 8 * 4,
}
_GROUP_SHAPE = re.compile(r"\.(\d+)x(\d+)x(\d+)")
_WARPS_PER_GROUP = 4

_TENSOR = re.compile(r"(?:HMMA|IMMA|QMMA|OMMA|DMMA|\w*GMMA|UTC\w*MMA)$")
_INTEGER = re.compile(
    r"U?(?:I?ADD3?|IADD\w*|IMAD\w*|ILEA|LEA|LOP3?|PLOP3|SHF|SHL|SHR|ISETP|SEL|PRMT|MOV\w*|SGXT|"
    r"BMSK|BREV|FLO|POPC|ISCADD|IMNMX|VIADD\w*|VIMNMX\w*|IABS|P2R|R2P|I2F\w*|F2I\w*|I2I\w*|I2IP|"
    r"CS2R|S2R|S2U?R|R2UR|LDC|LDCU|CSEL|VOTE\w*|SHFL|IDP\w*|CLMAD)$"
)
_FLOAT = re.compile(
    r"U?(?:FADD\w*|FMUL\w*|FFMA\w*|FSEL|FSETP?|FMNMX\w*|FCHK|MUFU|F2F\w*|FRND|FSWZADD|"
    r"H(?:ADD|MUL|FMA)2\w*|HSETP?2|HMNMX2|D(?:ADD|MUL|FMA)|DSETP)$"
)
_GLOBAL = {
    **{"LDG": "load", "LD": "load", "STG": "store", "ST": "store", "RED": "store", "REDG": "store"},
    **{"ATOM": "store", "ATOMG": "store", "LDGSTS": "async"},
    **{"UTMALDG": "descriptor", "UTMASTG": "descriptor", "UTMAREDG": "descriptor"},
    **{"UBLKCP": "descriptor"},
}
_SHARED = {"LDS", "LDSM", "STS", "STSM", "ATOMS", "LDT", "LDTM", "STT", "STTM"}
_LOCAL = {"LDL", "STL"}


def parse(text: str) -> list[Instruction]:
    """The instructions of the one kernel in ``nvdisasm``'s text, in order."""
    return list(_instructions(text))


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
        yield _instruction(found, label)
        label = None


def _instruction(found: re.Match[str], label: str | None) -> Instruction:
    opcode, operands = found["opcode"].rstrip("."), found["operands"]
    base, _, suffixes = opcode.partition(".")
    jump = _JUMP.search(operands)
    copied = _GLOBAL.get(base, "")
    return Instruction(
        opcode=opcode,
        kind=_kind(base),
        multiply_adds=_multiply_adds(base, opcode),
        copied=copied,
        copied_bytes=_width(suffixes) if copied not in ("", "descriptor") else 0,
        label=label,
        target=jump["label"] if jump and base == "BRA" else None,
        is_end=base == "EXIT" and not found["guard"],
    )


def _kind(base: str) -> str:
    if _TENSOR.match(base):
        return "tensor"
    if base in _GLOBAL:
        return "global"
    if base in _SHARED:
        return "shared"
    if base in _LOCAL:
        return "local"
    if _INTEGER.match(base) or base in ("ULDC", "UR2UP", "ELECT"):
        return "integer"
    if _FLOAT.match(base):
        return "float"
    return "control"


def _width(suffixes: str) -> int:
    parts = suffixes.split(".")
    for bits in (256, 128, 64):
        if str(bits) in parts:
            return bits // 8
    if any(part in ("U8", "S8") for part in parts):
        return 1
    if any(part in ("U16", "S16") for part in parts):
        return 2
    return 4


def _multiply_adds(base: str, opcode: str) -> int:
    if base in ("HMMA", "IMMA"):
        return _WARP_SHAPES.get(opcode.split(".")[1], 0)
    shape = _GROUP_SHAPE.search(opcode)
    if base.endswith("GMMA") and shape:
        m, n, k = (int(side) for side in shape.groups())
        return m * n * k // _WARPS_PER_GROUP
    return 0
