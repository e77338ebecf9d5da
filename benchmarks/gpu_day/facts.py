"""The stage ``facts``: the machine, what it reaches at best, and if the cache fits."""

from __future__ import annotations

import shutil
import subprocess
import time
from typing import Any

import torch
import triton

from benchmarks.gpu_day.layers import CHOSEN, conv_calls, specs, variants
from benchmarks.gpu_day.results import Job, Record
from benchmarks.gpu_day.settings import ARCHITECTURE, DEVICE, REHEARSED, TRITON, allow_tf32
from benchmarks.gpu_day.timing import graph_time
from fastres.bench import revision
from fastres.kernels.inspection.compiling import compiled
from fastres.kernels.tuning.gpus import architecture
from fastres.system import target

TOOLS = ("ncu", "compute-sanitizer", "gcc", "nvcc", "nvidia-smi")


def machine() -> Record:
    """Versions, clocks, tools."""
    found: Record = {
        "torch": torch.__version__,
        "triton": str(triton.__version__),
        "revision": revision.of_fastres(),
        "environment": target.environment(),
        "tools": {name: shutil.which(name) for name in TOOLS},
    }
    if REHEARSED:
        return found | {"gpu": "none: a rehearsal", "rehearsed": True}
    properties = torch.cuda.get_device_properties(0)
    query = "--query-gpu=driver_version,clocks.sm,clocks.mem,power.limit"
    process = subprocess.run(
        ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return found | {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "l2": getattr(properties, "L2_cache_size", None),
        "cudnn": torch.backends.cudnn.version(),
        "smi": process.stdout.strip(),
    }


def ceilings() -> Record:
    """Products, a copy, and one launch after the other."""
    side, count = (64, 2**16) if REHEARSED else (8192, 2**31)
    work, found = 2 * side**3 / 1e6, dict[str, Any]()
    a = torch.randn(side, side, dtype=torch.float32, device=DEVICE)
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        b = a.to(dtype)
        found[f"{name} TFLOP/s"] = work / graph_time(lambda b=b: b @ b, 5)  # type: ignore[misc]
    allow_tf32("tf32")
    found["tf32 TFLOP/s"] = work / graph_time(lambda: a @ a, 5)
    x, y = (torch.empty(count, dtype=torch.uint8, device=DEVICE) for _ in range(2))
    found["copy TB/s"] = 2 * count / graph_time(lambda: y.copy_(x), 3) / 1e6
    tiny = torch.zeros(1, dtype=torch.float32, device=DEVICE)
    found["launch in a graph, us"] = graph_time(lambda: tiny.add_(1), 200)
    return found | ({"rehearsed": True} if REHEARSED else {})


def first_kernel() -> Record:
    """Hit or miss: whether the cache that was brought along fits this Triton."""
    _, spec = specs()[0]
    config = variants(spec)[CHOSEN]
    before = len(list(TRITON.glob("*/*.cubin")))
    began = time.perf_counter()
    launches, _ = conv_calls(spec, config, "meta" if REHEARSED else DEVICE)
    for call in launches():
        if REHEARSED:
            compiled(call, architecture(ARCHITECTURE))
        else:
            call.run()
    if not REHEARSED:
        torch.cuda.synchronize()
    after = len(list(TRITON.glob("*/*.cubin")))
    took = time.perf_counter() - began
    return {"entries": [before, after], "hit": before == after, "first_launch_s": took}


FIRST_KERNEL = "first kernel"


def facts() -> list[Job]:
    """In a minute at most."""
    return [Job("machine", machine), Job("ceilings", ceilings), Job(FIRST_KERNEL, first_kernel)]
