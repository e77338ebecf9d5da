"""Run as a program: compiles the simple kernels for GPUs that are not here, each a line of JSON.

Not in the tests' own process, where kernels are interpreted and Triton's compiler is off.
"""

from __future__ import annotations

import json

import torch
from torch import Tensor

from fastres.kernels.inspection.budgets import violations
from fastres.kernels.inspection.finding import inspect_call
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.launch.elementwise import add_relu_calls, scale_shift_calls
from fastres.kernels.launch.layout import convert_calls
from fastres.kernels.launch.pool_linear import pool_linear_calls
from fastres.kernels.launch.pooling import (
    avg_pool2d_calls,
    global_avg_pool_calls,
    max_pool2d_calls,
)
from fastres.kernels.spec import PoolLinearSpec
from fastres.kernels.tuning.gpus import ARCHITECTURES, by_name
from fastres.kernels.tuning.pooling import choose_pool_linear

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}

# A layer of a ResNet, channels of 16 bytes on odd images, one number of everything, and images of
# more than 2**31 numbers.
SHAPES = {
    "layer": (32, 64, 56, 56),
    "16 bytes": (3, 8, 7, 7),
    "one": (1, 1, 1, 1),
    "large": (2**14, 64, 48, 48),
}
CASES = [
    *(("layer", "fp16", target) for target in ("sm_75", "sm_80", "sm_90", "gfx942")),
    *(("layer", precision, "sm_80") for precision in ("bf16", "fp32")),
    *((shape, "fp16", "sm_80") for shape in ("16 bytes", "one", "large")),
]
"""Shape, precision, architecture."""


def images(dtype: torch.dtype, n: int, c: int, h: int, w: int) -> Tensor:
    return torch.empty(n, h, w, c, dtype=dtype, device="meta").permute(0, 3, 1, 2)


def calls(shape: tuple[int, int, int, int], dtype: torch.dtype) -> dict[str, KernelCall]:
    """One launch of every kernel."""
    n, c, h, w = shape
    x, vector = images(dtype, *shape), torch.empty(c, device="meta")
    nchw = torch.empty(shape, dtype=torch.float32, device="meta")
    pooled = images(dtype, n, c, (h + 1) // 2, (w + 1) // 2)
    weight = torch.empty(1000, c, dtype=dtype, device="meta")
    config = choose_pool_linear(PoolLinearSpec(n, c, h, w, 1000), by_name("a100"))
    found = {
        "add_relu": add_relu_calls(x, x, x),
        "scale_shift": scale_shift_calls(x, vector, vector, x, "hardswish"),
        "max_pool2d": max_pool2d_calls(x, pooled, (3, 3), (2, 2), (1, 1), (1, 1), False),
        "avg_pool2d": avg_pool2d_calls(x, pooled, (3, 3), (2, 2), (1, 1), False, False, None),
        "global_avg_pool": global_avg_pool_calls(x, torch.empty(n, c, dtype=dtype, device="meta")),
        "pool_linear": pool_linear_calls(
            *(x, weight, torch.empty(1000, device="meta")),
            *(torch.empty(n, 1000, dtype=dtype, device="meta"), "silu", config),
        ),
        "to channels-last": convert_calls(nchw, x),
        "to NCHW": convert_calls(x, nchw),
        "cast": convert_calls(images(torch.uint8, *shape), x),
    }
    return {name: call for name, (call,) in found.items()}


def main() -> None:
    for shape, precision, target in CASES:
        for name, call in calls(SHAPES[shape], DTYPES[precision]).items():
            finding = inspect_call(call, ARCHITECTURES[target])
            line = {
                "name": name,
                "case": [shape, precision, target],
                "int64": call.constants["INT64"],
                "wrong": violations(finding, ARCHITECTURES[target], precision),
                "copies": finding.copies,
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
