"""TensorRT on an NVIDIA GPU: its own builder on an ONNX file, and through Torch-TensorRT.

Both follow the documentation of TensorRT 10 and 11 and of Torch-TensorRT 2.9 and later
(https://docs.nvidia.com/deeplearning/tensorrt, https://docs.pytorch.org/TensorRT); neither was ever
run where this was written, for want of a GPU.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from fastres.bench.gate import leaves
from fastres.bench.peers import onnx_file
from fastres.bench.peers.peer import DTYPES, Job, Ready


def missing(device: str) -> str | None:
    """What to install before TensorRT works, or None."""
    packages = ("tensorrt", "onnx", "onnxscript")
    absent = [name for name in packages if find_spec(name) is None]
    return f"pip install {' '.join(absent)}" if absent else None


def missing_in_torch(device: str) -> str | None:
    """What to install before Torch-TensorRT works, or None."""
    return None if find_spec("torch_tensorrt") else "pip install torch-tensorrt"


def prepare(job: Job) -> Ready:
    """Build an engine whose types are those of the file, for this one shape.

    Raises:
        RuntimeError: the file was not understood, or no engine could be built.
    """
    import tensorrt as trt

    path, export_seconds = onnx_file.write(job)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    # Before release 11, types were hints unless one asked; since then there is no other way.
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        raise RuntimeError(f"its parser refused the file: {parser.get_error(0)}")
    config = builder.create_builder_config()
    if job.precision == "tf32":
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("its builder gave no engine")
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    return Ready(_call(trt, engine, job.device), export_seconds, (f"TensorRT {trt.__version__}",))


def _call(trt: Any, engine: Any, device: torch.device) -> Callable[[torch.Tensor], object]:
    context = engine.create_execution_context()
    stream = torch.cuda.Stream(device)  # TensorRT warns of extra waits on the default one
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
    outputs = {n: tuple(engine.get_tensor_shape(n)) for n in names if n not in inputs}
    (image_input,) = inputs

    def call(images: torch.Tensor) -> object:
        results = [
            torch.empty(shape, dtype=torch.float32, device=device) for shape in outputs.values()
        ]
        stream.wait_stream(torch.cuda.current_stream(device))
        context.set_tensor_address(image_input, images.data_ptr())
        for name, result in zip(outputs, results, strict=True):
            context.set_tensor_address(name, result.data_ptr())
        if not context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("TensorRT did not start")
        torch.cuda.current_stream(device).wait_stream(stream)
        return results

    return call


def prepare_in_torch(job: Job) -> Ready:
    """Let Torch-TensorRT convert the exported program, for this one shape."""
    import torch_tensorrt

    dtype = DTYPES[job.precision]
    model = copy.deepcopy(job.model).to(job.device, dtype)
    example = job.example.to(dtype)
    program = torch.export.export(model, (example,))
    converted = torch_tensorrt.dynamo.compile(
        program, [example], disable_tf32=job.precision != "tf32", min_block_size=1
    )

    def call(images: torch.Tensor) -> object:
        with torch.inference_mode():
            outputs = leaves(converted(images.to(dtype)))
            return [tensor.to(torch.float32, copy=True) for tensor in outputs]

    return Ready(call, notes=(f"Torch-TensorRT {torch_tensorrt.__version__}",))
