"""The packages that ONNX needs: whether they are installed, and ONNX Runtime only once.

``onnxruntime`` and ``onnxruntime-gpu`` hold the same module. Installed side by side, the files of
one overwrite those of the other, and removing either leaves a broken rest; pip does not notice.
"""

from __future__ import annotations

import re
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from fastres.errors import TargetError
from fastres.system import target

_VARIANTS = re.compile(r"onnxruntime([-_](gpu|directml|openvino|rocm|migraphx|qnn|cann|training))?")

INSTALL = "pip install 'fastres[onnx]'"


def need_onnx() -> None:
    """Make sure that ``onnx`` can be imported.

    Raises:
        TargetError: it is not installed.
    """
    if find_spec("onnx") is None:
        raise TargetError(f"writing and reading ONNX files needs the package onnx: {INSTALL}")


def onnxruntime_packages() -> list[str]:
    """Names of the installed distributions that hold the module ``onnxruntime``."""
    names = {str(each.metadata["Name"] or "").lower() for each in metadata.distributions()}
    return sorted(name for name in names if _VARIANTS.fullmatch(name))


def need_onnxruntime() -> Any:
    """The module ``onnxruntime``.

    Raises:
        TargetError: no distribution of it is installed, or several are.
    """
    found = onnxruntime_packages()
    if len(found) > 1:
        listed = " and ".join(found)
        raise TargetError(
            f"{listed} are installed side by side, and each overwrites the other's files: "
            f"pip uninstall {' '.join(found)}, then {INSTALL}, or 'fastres[onnx-gpu]' for a GPU"
        )
    if find_spec("onnxruntime") is None:
        raise TargetError(f"running ONNX files needs ONNX Runtime: {INSTALL}")
    import onnxruntime

    return onnxruntime


def keep_sums_whole(settings: Any) -> None:
    """Let ONNX Runtime's session options not trade the sums of int8 products for time.

    On x86 without VNNI it adds products of uint8 and int8 in pairs of 16 bits, which overflow,
    unless it is told to turn weights into uint8 (its documentation on quantisation, about
    "reduce_range"). With VNNI nothing overflows, and the setting would only make it slower.
    """
    processor = target.cpu()
    x86 = processor.architecture.lower() in ("x86_64", "amd64")
    if x86 and not {"avx_vnni", "avx512_vnni"} & set(processor.isa):
        settings.add_session_config_entry("session.x64quantprecision", "1")
