"""torch by itself: eager as it comes, eager in channels-last, and torch.compile with freezing."""

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

    def by_timing(images: torch.Tensor) -> object:
        with _chosen_by_timing():
            return call(images)

    by_timing(job.example)
    return Ready(by_timing, notes=("cuDNN's kernels are chosen by timing",))


def graphed(job: Job) -> Ready:
    """The same, cuDNN's kernels chosen by timing, recorded once and replayed as a CUDA graph.

    What a user of torch does who wants the host out of the way and nothing compiled.
    """
    dtype = DTYPES[job.precision]
    model = _channels_last_copy(job)
    with torch.cuda.device(job.device), torch.inference_mode():
        images = job.example.to(dtype, memory_format=torch.channels_last, copy=True)
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), _chosen_by_timing():
            for _ in range(3):  # chooses kernels, and allocates what they need
                model(images)
            with torch.cuda.graph(graph, stream=stream):
                answers = leaves(model(images))
        torch.cuda.current_stream().wait_stream(stream)

    def call(given: torch.Tensor) -> object:
        images.copy_(given)
        graph.replay()
        return [tensor.to(torch.float32, copy=True) for tensor in answers]

    return Ready(call, notes=("cuDNN's kernels are chosen by timing",))


def compiled(job: Job) -> Ready:
    """torch.compile with its weights frozen, for this one shape.

    In another precision the model is converted first, as for eager.

    Raises:
        RuntimeError: nothing was compiled, so that eager would be timed under another name.
    """
    return _compiled(job, None)


def compiled_replayed(job: Job) -> Ready:
    """The same with ``mode="reduce-overhead"``: replayed as a CUDA graph.

    Raises:
        RuntimeError: as for `compiled`.
    """
    return _compiled(job, "reduce-overhead")


def compiled_max(job: Job) -> Ready:
    """The same with ``mode="max-autotune"``: kernels chosen by timing, replayed as a CUDA graph.

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
        own_answers=mode is not None,
    )
    before = counters["stats"]["unique_graphs"]
    cached = environment("TORCHINDUCTOR_CACHE_DIR", str(job.cache))
    with config.patch(freezing=True), cached, _fewer_log_lines():
        call(job.example)
    if counters["stats"]["unique_graphs"] == before:
        raise RuntimeError("torch.compile compiled nothing and ran the model eagerly")
    return Ready(call)


def no_compiler(device: str) -> str | None:
    """What torch.compile needs for a kind of device and this machine lacks."""
    if device == "cuda":
        return None if find_spec("triton") else "pip install triton"
    from torch._inductor import config

    configured = config.cpp.cxx if isinstance(config.cpp.cxx, tuple) else (config.cpp.cxx,)
    names = [name for name in configured if name]
    if any(shutil.which(name) for name in names):
        return None
    return f"a C++ compiler ({', '.join(names)}), which torch.compile calls for a CPU's code"


def forget_compiled() -> None:
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
    own_answers: bool = False,
) -> Callable[[torch.Tensor], object]:
    def call(images: torch.Tensor) -> object:
        with torch.inference_mode():
            answers = model(convert(images))
            if own_answers:
                return [tensor.to(torch.float32, copy=True) for tensor in leaves(answers)]
            return answers if _is_float32(answers) else _to_float32(answers)

    return call


def _is_float32(answers: object) -> bool:
    return isinstance(answers, torch.Tensor) and answers.dtype == torch.float32


def _to_float32(answers: object) -> list[torch.Tensor]:
    return [tensor.float() for tensor in leaves(answers)]


@contextmanager
def _chosen_by_timing() -> Iterator[None]:
    """Let cuDNN time its kernels for each shape, and take the fastest."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """A variable of the environment, as long as the block runs.

    For a compiler's cache in the bench's own folder: among the user's files it may be warm, and
    would grow.
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
def _fewer_log_lines() -> Iterator[None]:
    """Without a GPU, torch.compile's look for CUDA's compiler is worth no line in the table."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
