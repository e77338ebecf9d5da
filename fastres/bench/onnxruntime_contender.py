"""ONNX Runtime on the CPU, from the file that torch's own exporter writes."""

from __future__ import annotations

import time
import warnings
from importlib.util import find_spec

import torch

from fastres.bench.contender import Job, Ready

_NEEDED = ("onnx", "onnxruntime", "onnxscript")


def missing() -> str | None:
    """What to install."""
    absent = [name for name in _NEEDED if find_spec(name) is None]
    return f"pip install {' '.join(absent)}" if absent else None


def refuses(precision: str) -> str | None:
    """Its CPU provider registers Conv for float32 (and float16 on some processors) only."""
    if precision == "fp32":
        return None
    return "its CPU provider has no bfloat16 convolution"


def prepare(job: Job) -> Ready:
    """Export for this one shape and load it, all graph optimisations on."""
    import onnxruntime

    path = job.folder / "model.onnx"
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, about itself
        torch.onnx.export(job.model, (job.example,), str(path), dynamo=True, verbose=False)
    export_seconds = time.perf_counter() - began
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (name,) = (node.name for node in session.get_inputs())

    def call(images: torch.Tensor) -> object:
        return session.run(None, {name: images.numpy()})

    return Ready(call, export_seconds)
