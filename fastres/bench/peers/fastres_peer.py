"""fastres itself, with the engine that it chooses or with one by name."""

from __future__ import annotations

import contextlib
import warnings

from fastres.bench.peers.peer import DTYPES, Job, Ready
from fastres.bench.peers.torch_peers import environment_variable
from fastres.errors import FastresWarning
from fastres.runtime.integers import is_wholly_quantized
from fastres.system import target


def prepare(job: Job) -> Ready:
    """Optimise for the precision, with the first batch as the example."""
    return _prepare(job, "auto")


def prepare_onednn(job: Job) -> Ready:
    """As :func:`prepare`, with the oneDNN engine."""
    return _prepare(job, "onednn")


def prepare_native(job: Job) -> Ready:
    """As :func:`prepare`, with the native engine."""
    return _prepare(job, "native")


def onednn_refuses(precision: str, device: str) -> str | None:
    """Why torch's oneDNN does not compute in that precision on this processor, or None."""
    dtype = DTYPES[precision]
    if target.onednn_supports(dtype):
        return None
    return f"oneDNN has no {str(dtype).removeprefix('torch.')} kernels on this machine"


def _prepare(job: Job, engine: str) -> Ready:
    import fastres

    kernel_cache: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if job.device.type == "cuda":
        kernel_cache = environment_variable("TRITON_CACHE_DIR", str(job.cache))
    with kernel_cache, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FastresWarning)
        fast = fastres.optimize(
            job.model,
            job.example,
            device=job.device,
            engine=engine,
            # "fp32" by name means no TF32; left open, it is as torch's flags say, which are set.
            precision=None if job.precision == "tf32" else job.precision,
            threads=job.threads,
            calibration=job.calibration,
        )
    messages = [str(warning.message) for warning in caught]
    notes = (f"engine {fast.engine}", *messages)
    if not fast.is_quantized:
        return Ready(fast, notes=notes)
    is_exact = is_wholly_quantized(fast.graph_module.graph)
    return Ready(fast, notes=notes, definition=fast.by_definition, is_exact=is_exact)
