"""torch without fastres: eager, channels-last, CUDA graph, and torch.compile with freezing."""

from __future__ import annotations

import copy
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import nn

from fastres.bench.gate import leaves
from fastres.bench.peers.peer import DTYPES, Job, Ready


def eager(job: Job) -> Ready:
    """The model as its user has it; in bfloat16, ``model.to(torch.bfloat16)``."""
    dtype = DTYPES[job.precision]
    model = job.model
    if dtype != torch.float32 or job.device.type != "cpu":
        model = copy.deepcopy(model).to(job.device, dtype)
    return Ready(_inference(model, lambda images: images.to(dtype)))


def channels_last(job: Job) -> Ready:
    """Weights and images in channels-last order, as torch's own advice for convolutions goes."""
    dtype = DTYPES[job.precision]
    call = _inference(
        _channels_last_copy(job),
        lambda images: images.to(dtype, memory_format=torch.channels_last),
    )
    if job.device.type != "cuda":
        return Ready(call)

    def call_with_benchmark(images: torch.Tensor) -> object:
        with _cudnn_benchmark():
            return call(images)

    call_with_benchmark(job.example)
    return Ready(call_with_benchmark, notes=("cuDNN's kernels are chosen by timing",))


def cuda_graph(job: Job) -> Ready:
    """As :func:`channels_last`, recorded once and replayed as a CUDA graph.

    The usual way to remove the host's launch overhead without a compiler.
    """
    dtype = DTYPES[job.precision]
    model = _channels_last_copy(job)
    with torch.cuda.device(job.device), torch.inference_mode():
        images = job.example.to(dtype, memory_format=torch.channels_last, copy=True)
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), _cudnn_benchmark():
            for _ in range(3):  # chooses kernels, and allocates what they need
                model(images)
            with torch.cuda.graph(graph, stream=stream):
                outputs = leaves(model(images))
        torch.cuda.current_stream().wait_stream(stream)

    def call(new_images: torch.Tensor) -> object:
        images.copy_(new_images)
        graph.replay()
        return [tensor.to(torch.float32, copy=True) for tensor in outputs]

    return Ready(call, notes=("cuDNN's kernels are chosen by timing",))


def compiled(job: Job) -> Ready:
    """torch.compile with its weights frozen, for this one shape.

    In another precision the model is converted first, as for eager.

    Raises:
        RuntimeError: nothing was compiled, so that eager would be timed under another name.
    """
    return _compiled(job, None)


def compiled_reduce_overhead(job: Job) -> Ready:
    """As :func:`compiled` with ``mode="reduce-overhead"``: replayed as a CUDA graph.

    Raises:
        RuntimeError: as for `compiled`.
    """
    return _compiled(job, "reduce-overhead")


def compiled_max_autotune(job: Job) -> Ready:
    """As :func:`compiled` with ``mode="max-autotune"``: kernels chosen by timing, CUDA graph.

    Raises:
        RuntimeError: as for `compiled`.
    """
    return _compiled(job, "max-autotune")


def _compiled(job: Job, mode: str | None) -> Ready:
    from torch._dynamo.utils import counters
    from torch._inductor import config

    dtype = DTYPES[job.precision]
    call = _inference(
        torch.compile(_channels_last_copy(job), dynamic=False, mode=mode),
        lambda images: images.to(dtype, memory_format=torch.channels_last),
        # A CUDA graph's next replay overwrites its answers.
        copy_outputs=mode is not None,
    )
    before = counters["stats"]["unique_graphs"]
    compiler_cache = environment_variable("TORCHINDUCTOR_CACHE_DIR", str(job.cache))
    with config.patch(freezing=True), compiler_cache, without_cuda_warnings():
        call(job.example)
    if counters["stats"]["unique_graphs"] == before:
        raise RuntimeError("torch.compile compiled nothing and ran the model eagerly")
    return Ready(call)


def missing_compiler(device: str) -> str | None:
    """What torch.compile needs for a kind of device and this machine lacks, or None."""
    if device == "cuda":
        return None if find_spec("triton") else "pip install triton"
    from torch._inductor import config

    configured = config.cpp.cxx if isinstance(config.cpp.cxx, tuple) else (config.cpp.cxx,)
    names = [name for name in configured if name]
    if any(shutil.which(name) for name in names):
        return None
    return f"a C++ compiler ({', '.join(names)}), which torch.compile calls for a CPU's code"


def reset_compiler() -> None:
    """Drop what torch.compile compiled before, so that another shape is compiled from scratch.

    Otherwise torch makes the batch size symbolic at the second one, and gives up compiling the
    model's code after eight.
    """
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def _channels_last_copy(job: Job) -> nn.Module:
    model = copy.deepcopy(job.model).to(job.device, DTYPES[job.precision])
    return model.to(memory_format=torch.channels_last)


def _inference(
    model: Callable[..., object] | nn.Module,
    convert: Callable[[torch.Tensor], torch.Tensor],
    copy_outputs: bool = False,
) -> Callable[[torch.Tensor], object]:
    def call(images: torch.Tensor) -> object:
        with torch.inference_mode():
            outputs = model(convert(images))
            if copy_outputs:
                return [tensor.to(torch.float32, copy=True) for tensor in leaves(outputs)]
            return outputs if _is_float32(outputs) else _to_float32(outputs)

    return call


def _is_float32(outputs: object) -> bool:
    return isinstance(outputs, torch.Tensor) and outputs.dtype == torch.float32


def _to_float32(outputs: object) -> list[torch.Tensor]:
    return [tensor.float() for tensor in leaves(outputs)]


@contextmanager
def _cudnn_benchmark() -> Iterator[None]:
    """Let cuDNN time its kernels for each shape, and take the fastest."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def environment_variable(name: str, value: str) -> Iterator[None]:
    """A context in which a variable of the environment has a value.

    Compilers thus keep their caches in the bench's folder: the user's cache may be warm already.
    """
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def without_cuda_warnings() -> Iterator[None]:
    """Silence torch's warning that it found no CUDA compiler, on machines without a GPU."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
