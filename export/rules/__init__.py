"""What each operator of the graph becomes in ONNX; ``table`` collects the rules."""

from __future__ import annotations
