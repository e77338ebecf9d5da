"""What lets an optimised model leave PyTorch, installed as ``fastres.export``.

``python -m fastres.export --depth 50 --out resnet50.onnx`` writes a file at a prompt.
"""

from __future__ import annotations

if __name__ != "fastres.export":
    # Reached only with the repository's root on sys.path, where the same modules would otherwise
    # be imported a second time under a second name.
    raise ImportError(f"this package is fastres.export, not {__name__}: import it by that name")

from fastres.export.conversion import to_onnx
from fastres.export.report import OnnxReport
from fastres.export.serving.running import Session
from fastres.export.serving.session import session
from fastres.export.serving.triton_repository import TritonReport, triton_server
from fastres.export.standard import to_standard

__all__ = [
    "OnnxReport",
    "Session",
    "TritonReport",
    "session",
    "to_onnx",
    "to_standard",
    "triton_server",
]
