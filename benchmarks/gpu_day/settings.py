"""What all stages share: where caches lie, for which GPU, and whether this is a rehearsal."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from fastres.dtypes import PRECISIONS

ROOT = Path("/tmp/fastres-gpu-day")
"""Triton's cache holds absolute paths, so it is packed and unpacked at one place everywhere."""

TRITON, INDUCTOR, TUNING = ROOT / "triton", ROOT / "inductor", ROOT / "tuning"

GPU, ARCHITECTURE = "h100", "sm_90"
"""What kernels are prepared for, and whose data sheet the cost model reads."""

REHEARSAL = "FASTRES_GPU_DAY_REHEARSAL"
"""Set in the stages of a rehearsal: everything but CUDA, on the CPU."""

REHEARSED = os.environ.get(REHEARSAL) == "1"
DEVICE = "cpu" if REHEARSED else "cuda"

DTYPES = {name: PRECISIONS[name].dtype for name in ("fp16", "bf16", "tf32", "fp32")}


def allow_tf32(precision: str) -> None:
    """Let torch compute float32 in TF32 where that is the precision, and nowhere else."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


def synchronise() -> None:
    """Wait for the GPU, if there is one."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
