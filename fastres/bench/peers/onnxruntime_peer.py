"""ONNX Runtime, from the file that torch's own exporter writes; in int8 quantised by its tools."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastres.bench.peers import onnx_file
from fastres.bench.peers.peer import Job, Ready
from fastres.system import target

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
    path, export_seconds = onnx_file.write(job)
    return Ready(_call(path, job), export_seconds)


def prepare_quantized(job: Job) -> Ready:
    """Quantise the exported file as ONNX Runtime's documentation advises, and load the result.

    Its preprocessing folds BatchNorm, then ``quantize_static`` puts QuantizeLinear and
    DequantizeLinear in: activations in uint8 by the least and the largest value of the calibration
    images (its default), weights in int8 with a scale for each channel. Where a processor adds up
    products of bytes in sixteen bits, weights have seven bits, as advised there, too
    (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).
    """
    import onnxruntime
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path, seconds = onnx_file.write(job, one_file=True)  # its preprocessing loses track of two
    began = time.perf_counter()
    folded, quantized = job.folder / "folded.onnx", job.folder / "quantized.onnx"
    quant_pre_process(str(path), str(folded), skip_symbolic_shape=True)
    reduce_range = not can_sum_bytes()
    quantization.quantize_static(
        str(folded),
        str(quantized),
        _reader(folded, calibration_batches(job)),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        reduce_range=reduce_range,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    notes = [f"quantised by ONNX Runtime {onnxruntime.__version__}"]
    if reduce_range:
        notes.append("weights of seven bits, without instructions for eight")
    seconds += time.perf_counter() - began
    return Ready(_call(quantized, job), seconds, tuple(notes))


def calibration_batches(job: Job) -> list[torch.Tensor]:
    """The calibration images in batches like the job's example; the last repeats some."""
    assert job.calibration is not None
    size = len(job.example)
    count = -(-len(job.calibration) // size) * size
    repeated = torch.arange(count, dtype=torch.int64, device="cpu") % len(job.calibration)
    return list(job.calibration[repeated].split(size))


def can_sum_bytes() -> bool:
    """Whether instructions add up products of uint8 and int8 without cutting sums off."""
    cpu = target.cpu()
    return cpu.architecture != "x86_64" or not _VNNI.isdisjoint(cpu.isa)


_VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


def _reader(path: Path, batches: list[torch.Tensor]) -> Any:
    """Calibration data as ``quantize_static`` asks for it."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader

    (image_input,) = onnx.load(path, load_external_data=False).graph.input
    left = iter(batches)

    class Reader(CalibrationDataReader):  # type: ignore[misc] # a class of Any
        def get_next(self) -> dict[str, Any] | None:
            batch = next(left, None)
            return None if batch is None else {image_input.name: batch.numpy()}

    return Reader()


def _call(path: Path, job: Job) -> Callable[[torch.Tensor], object]:
    """Load a file, all graph optimisations on."""
    import onnxruntime

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
        return lambda images: session.run(None, {name: images.numpy()})
    if session.get_providers()[:1] != ["CUDAExecutionProvider"]:
        raise RuntimeError(f"asked for its CUDA provider, it loaded {session.get_providers()}")
    return _with_io_binding(session, job.device)


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
