"""The check of a file that was written: the model and ONNX Runtime on the same inputs."""

from __future__ import annotations
