"""The check of a written file: ONNX Runtime's outputs against the model's."""

from __future__ import annotations
