"""What lets an optimised model leave PyTorch, installed as ``fastres.export``.

``python -m fastres.export --depth 50 --out resnet50.onnx`` writes a file at a prompt.
"""

from __future__ import annotations

if __name__ != "fastres.export":
    # Reached only with the repository's root on sys.path, where the same modules would otherwise
    # be imported a second time under a second name.
    raise ImportError(f"this package is fastres.export, not {__name__}: import it by that name")

from fastres.export.onnx_export import to_onnx
from fastres.export.onnx_report import OnnxReport
from fastres.export.onnx_running import Session
from fastres.export.onnx_session import session
from fastres.export.standard import to_standard
from fastres.export.triton_repository import TritonReport, triton_server

__all__ = [
    "OnnxReport",
    "Session",
    "TritonReport",
    "session",
    "to_onnx",
    "to_standard",
    "triton_server",
]
