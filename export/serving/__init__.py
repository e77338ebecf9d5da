"""Where a file that was written runs: ONNX Runtime in this process, or a model server."""

from __future__ import annotations
