"""ONNX Runtime, from the file that torch's own exporter writes."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from fastres.bench.peers import onnx_file
from fastres.bench.peers.peer import Job, Ready

_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def missing(device: str, packages: tuple[str, ...] = _PACKAGES) -> str | None:
    """What to install before it works, or None."""
    absent = [name for name in packages if find_spec(name) is None]
    if device == "cuda":
        absent = [{"onnxruntime": "onnxruntime-gpu"}.get(name, name) for name in absent]
    if absent:
        return f"pip install {' '.join(absent)}"
    if device == "cuda" and "CUDAExecutionProvider" not in _providers():
        return "pip install onnxruntime-gpu in place of onnxruntime, which has no CUDA provider"
    return None


def _providers() -> list[str]:
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def refuses(precision: str, device: str) -> str | None:
    """Its CPU provider registers Conv for float32 (and float16 on some processors) only."""
    names = {"bf16": "bfloat16", "fp16": "float16"}
    if device != "cpu" or precision not in names:
        return None
    return f"its CPU provider has no {names[precision]} convolution"


def prepare(job: Job) -> Ready:
    """Export for this one shape and load it, all graph optimisations on.

    On a GPU, images and answers stay there, and nothing may fall back to the CPU. That part follows
    ONNX Runtime's documentation (https://onnxruntime.ai/docs/api/python/api_summary) and was never
    run where it was written.

    Raises:
        RuntimeError: the CUDA provider did not load.
    """
    import onnxruntime

    path, export_seconds = onnx_file.write(job)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    if job.device.type == "cpu":
        providers: list[Any] = ["CPUExecutionProvider"]
    else:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        details = {"device_id": job.device.index, "use_tf32": int(job.precision == "tf32")}
        providers = [("CUDAExecutionProvider", details)]
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()  # CUDA's libraries from torch's packages
    session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    if job.device.type == "cpu":
        (name,) = (node.name for node in session.get_inputs())
        return Ready(lambda images: session.run(None, {name: images.numpy()}), export_seconds)
    if session.get_providers()[:1] != ["CUDAExecutionProvider"]:
        raise RuntimeError(f"asked for its CUDA provider, it loaded {session.get_providers()}")
    return Ready(_with_io_binding(session, job.device), export_seconds)


def _with_io_binding(session: Any, device: torch.device) -> Callable[[torch.Tensor], object]:
    """Calls that read torch's memory on the GPU and write into new memory there."""
    (image_input,) = session.get_inputs()
    output_nodes = session.get_outputs()

    def call(images: torch.Tensor) -> object:
        torch.cuda.current_stream(device).synchronize()  # the session has a stream of its own
        binding = session.io_binding()
        shape = tuple(images.shape)
        binding.bind_input(
            image_input.name, "cuda", device.index, np.float32, shape, images.data_ptr()
        )
        outputs = [
            torch.empty(tuple(node.shape), dtype=torch.float32, device=device)
            for node in output_nodes
        ]
        for node, output in zip(output_nodes, outputs, strict=True):
            destination = tuple(output.shape), output.data_ptr()
            binding.bind_output(node.name, "cuda", device.index, np.float32, *destination)
        session.run_with_iobinding(binding)
        return outputs

    return call
