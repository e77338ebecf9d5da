"""ONNX Runtime on the file that `fastres.export` writes, in the session that it prepares."""

from __future__ import annotations

import time

import torch

from fastres.bench.peers import onnxruntime_peer
from fastres.bench.peers.peer import Job, Ready


def missing(device: str) -> str | None:
    """What to install before it works, or None."""
    return onnxruntime_peer.missing(device, ("onnx", "onnxruntime"))


def refuses(precision: str, device: str) -> str | None:
    """Why neither the file nor ONNX Runtime on this device computes in a precision, or None."""
    if precision == "bf16":
        return "fastres.export writes float32 and float16"
    if precision == "tf32":
        return "left to the row of torch's exporter, which sets it as an option of CUDA's provider"
    return onnxruntime_peer.refuses(precision, device)


def prepare(job: Job) -> Ready:
    """Export for the example's image size, checks included, and load the file.

    Inputs and answers are float32 whatever the file computes in.
    """
    from fastres.export import session, to_onnx

    path = job.folder / "fastres.onnx"
    began = time.perf_counter()
    report = to_onnx(
        job.model,
        path,
        example_input=job.example[:1].cpu(),
        precision=job.precision,
        float32_io=True,
        device="cpu",
    )
    seconds = time.perf_counter() - began
    ready = session(
        path,
        providers="cpu" if job.device.type == "cpu" else "cuda",
        strict=True,
        threads=job.threads,
        options=None if job.device.type == "cpu" else {"cuda": {"device_id": job.device.index}},
    )
    check = report.seconds["check"]
    notes = (f"{check:.1f} s of its export are the comparison with the model",)

    def call(images: torch.Tensor) -> object:
        outputs = ready(images)
        return outputs if isinstance(outputs, torch.Tensor) else list(outputs.values())

    return Ready(call, seconds, notes)
