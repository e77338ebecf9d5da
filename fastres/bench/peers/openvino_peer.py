"""OpenVINO on the CPU, straight from the torch model, in the faster of two modes.

Its latency hint runs the whole batch on all threads; its throughput hint runs one stream per
thread, each with its part of the batch. Which is faster depends on the machine and the batch, so
both are tried where the batch can be split, and the table's note says which was taken.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import nn

from fastres.bench import measure
from fastres.bench.peers.peer import Job, Ready

_TRIAL_PLAN = measure.Plan(seconds=0.5, min_rounds=3, max_rounds=20, warmup=1)
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_INTEGERS = frozenset({"u8", "i8"})


def missing(device: str) -> str | None:
    """What to install before it works, or None."""
    return None if find_spec("openvino") else "pip install openvino"


def refuses(precision: str, device: str) -> str | None:
    """Why its CPU plugin does not compute in that precision on this processor, or None."""
    if precision == "fp32":
        return None
    import openvino

    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision.upper() in capabilities:
        return None
    name = {"bf16": "bfloat16", "fp16": "float16"}[precision]
    return f"its CPU plugin has no {name} on this processor"


def prepare(job: Job) -> Ready:
    """Convert, compile, and pick the mode.

    Raises:
        RuntimeError: the plugin compiled the convolutions in another precision than asked for.
    """
    began = time.perf_counter()
    model = converted(job.model, job.example)
    return ready(model, job, time.perf_counter() - began)


def converted(model: nn.Module, example: torch.Tensor) -> Any:
    """OpenVINO's form of a torch model, for any batch and size."""
    import openvino

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about the tracing that the converter does
        return openvino.convert_model(model, example_input=example)


def ready(model: Any, job: Job, export_seconds: float, notes: tuple[str, ...] = ()) -> Ready:
    """Compile what was converted, and pick the mode.

    Raises:
        RuntimeError: as for `prepare`.
    """
    batch = len(job.example)
    modes = {"latency hint, one stream": _one_stream(compile_model(model, job, batch, 1))}
    if job.threads > 1 and batch % job.threads == 0:
        part = batch // job.threads
        compiled = compile_model(model, job, part, job.threads)
        modes[f"throughput hint, {job.threads} streams of {part}"] = _several_streams(
            compiled, job.threads
        )
    name = _faster(modes, job.example)
    return Ready(modes[name], export_seconds, (name, *notes))


def compile_model(model: Any, job: Job, batch: int, streams: int) -> Any:
    """Compile what was converted, for a batch and a number of streams.

    Raises:
        RuntimeError: the plugin compiled the convolutions in another precision than asked for.
    """
    import openvino

    fixed = model.clone()
    fixed.reshape([batch, *job.example.shape[1:]])
    compiled = openvino.Core().compile_model(
        fixed,
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": job.threads,
            **precision_hint(job.precision),
        },
    )
    used = _convolution_precisions(compiled)
    expected = _INTEGERS if job.precision == "int8" else {_HINTS[job.precision]}
    if used - expected:
        wanted = "/".join(sorted(expected))
        raise RuntimeError(f"asked for {wanted}, it compiled convolutions in {sorted(used)}")
    return compiled


def precision_hint(precision: str) -> dict[str, str]:
    """The plugin's option for a precision; of a quantised model it says what the rest is in.

    That is left to the plugin: bfloat16 where the processor has it.
    """
    hint = _HINTS.get(precision)
    return {} if hint is None else {"INFERENCE_PRECISION_HINT": hint}


def _convolution_precisions(compiled: Any) -> set[str]:
    """What its execution graph says that the convolutions compute in."""
    used = set()
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if "layerType" in info and "Convolution" in str(info["layerType"].astype(str)):
            used.add(str(info["runtimePrecision"].astype(str)))
    return used


def _one_stream(compiled: Any) -> Callable[[torch.Tensor], object]:
    request = compiled.create_infer_request()

    def call(images: torch.Tensor) -> object:
        return list(request.infer([images.numpy()], share_inputs=True).values())

    return call


def _several_streams(compiled: Any, count: int) -> Callable[[torch.Tensor], object]:
    requests = [compiled.create_infer_request() for _ in range(count)]

    def call(images: torch.Tensor) -> object:
        for request, part in zip(requests, images.numpy().reshape(count, -1), strict=True):
            shaped = part.reshape(-1, *images.shape[1:])
            request.start_async([shaped], share_inputs=True)
        for request in requests:
            request.wait()
        outputs = [[tensor.data for tensor in request.output_tensors] for request in requests]
        return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]

    return call


def _faster(modes: dict[str, Callable[[torch.Tensor], object]], example: torch.Tensor) -> str:
    if len(modes) == 1:
        return next(iter(modes))
    calls = {name: (lambda call=call: call(example)) for name, call in modes.items()}
    times = measure.interleave(calls, _TRIAL_PLAN)
    return min(modes, key=lambda name: measure.summarise(times[name]).p50_ns)
