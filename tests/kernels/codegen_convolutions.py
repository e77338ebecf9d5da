"""Run as a program: compiles convolutions for GPUs that are not here, one line of JSON for each.

Not in the tests' own process, where kernels are interpreted and Triton's compiler is off. Shapes
are those that no layer of a ResNet has: what the interpreter takes, the compiler may still refuse.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace

import torch
from torch import Tensor

from fastres.dtypes import PRECISIONS
from fastres.kernels.inspection.budgets import violations
from fastres.kernels.inspection.compiling import compiled
from fastres.kernels.inspection.finding import inspect_call
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.launch.conv2d import conv2d_calls, workspace_bytes
from fastres.kernels.packing import packed_shape
from fastres.kernels.spec import ConvSpec
from fastres.kernels.tuning.conv2d import Conv2dConfig, counters
from fastres.kernels.tuning.gpus import ARCHITECTURES, Architecture

PLAIN = Conv2dConfig(64, 32, 32)
SPLIT = Conv2dConfig(64, 32, 16, split_k=3)
FUSED = Conv2dConfig(64, 32, 16, split_k=3, fused_sum=True)
DESCRIPTORS = Conv2dConfig(64, 32, 32, descriptors=True)
BOXES = Conv2dConfig(128, 64, 64, descriptors=True, box_h=4, box_w=8)
TF32_BOXES = replace(BOXES, block_k=32)
SMALL_BOXES = replace(BOXES, block_m=32, block_k=16)
SAME = (1, 1, 1, 1)
LAYER = ConvSpec(32, 256, 14, 14, 256, 3, 3, padding=SAME)
LARGE = Conv2dConfig(128, 128, 64, num_warps=8, num_stages=4)

CONVOLUTIONS = {
    "partial tiles": (ConvSpec(2, 40, 5, 7, 20, 3, 3, padding=SAME), PLAIN, "fp16"),
    "partial tiles, tf32": (ConvSpec(2, 40, 5, 7, 20, 3, 3, padding=SAME), PLAIN, "tf32"),
    "one pixel": (ConvSpec(1, 16, 1, 1, 16, 3, 3, padding=SAME), SPLIT, "bf16"),
    "one channel": (ConvSpec(2, 1, 6, 5, 3, 3, 3, padding=SAME), PLAIN, "fp16"),
    "long filter": (ConvSpec(1, 2, 3, 20, 3, 1, 17, padding=(0, 8, 0, 8)), PLAIN, "fp16"),
    "odd groups": (ConvSpec(2, 15, 4, 3, 25, 3, 3, padding=SAME, groups=5), PLAIN, "fp16"),
    "past 2^31": (ConvSpec(1024, 64, 224, 224, 64, 3, 3, padding=SAME), PLAIN, "fp16"),
    "past 2^31, split": (ConvSpec(1024, 64, 224, 224, 64, 1, 1), SPLIT, "tf32"),
    "pixels past 2^31": (ConvSpec(1, 1, 2**16, 2**15, 1, 1, 1), PLAIN, "fp16"),
    "sum in one": (ConvSpec(1, 512, 7, 7, 512, 3, 3, padding=SAME), FUSED, "fp16"),
    "sum in one, past 2^31": (ConvSpec(1024, 64, 224, 224, 64, 1, 1), FUSED, "tf32"),
    "sum in one, groups": (ConvSpec(1, 128, 7, 7, 128, 3, 3, groups=32), FUSED, "bf16"),
    "descriptors": (ConvSpec(3, 72, 5, 5, 40, 1, 1), DESCRIPTORS, "fp16"),
    "descriptors, tf32": (ConvSpec(3, 72, 5, 5, 40, 1, 1), DESCRIPTORS, "tf32"),
    "boxes": (ConvSpec(3, 72, 7, 7, 40, 3, 3, padding=SAME), BOXES, "fp16"),
    "boxes, tf32": (
        ConvSpec(3, 96, 13, 29, 40, 3, 3, padding=SAME),
        TF32_BOXES,
        "tf32",
    ),
    "boxes, few channels": (ConvSpec(1, 8, 1, 21, 24, 3, 3, padding=SAME), SMALL_BOXES, "bf16"),
    "boxes past 2^31": (ConvSpec(1024, 64, 224, 224, 64, 3, 3, padding=SAME), BOXES, "fp16"),
    "a layer by pointers": (LAYER, LARGE, "fp16"),
    "a layer by boxes": (LAYER, replace(LARGE, descriptors=True, box_h=4, box_w=4), "fp16"),
}


def targets(config: Conv2dConfig) -> list[str]:
    """Names of the architectures that a configuration is meant for."""
    return [
        name
        for name in ("sm_80", "sm_90")
        if ARCHITECTURES[name].tensor_descriptors or not config.descriptors
    ]


def order(call: KernelCall, architecture: Architecture) -> str:
    """What the assembly does with memory around the counting, a letter each, in order.

    ``s`` stores to global memory, ``b`` waits for the other warps, ``c`` counts (and releases and
    acquires), ``l`` loads from behind the first-level cache.
    """
    text = compiled(call, architecture).asm["ptx"]
    letters = {
        r"st\.global": "s",
        r"bar\.sync": "b",
        r"atom\.(?=.*global)(?=.*gpu)(?=.*acq_rel)(?=.*add)": "c",
        r"ld\.global\.cg": "l",
    }
    found = []
    for line in text.splitlines():
        found += [letter for pattern, letter in letters.items() if re.search(pattern, line)]
    return "".join(found)


def main() -> None:
    for name, (spec, config, precision) in CONVOLUTIONS.items():
        dtype = PRECISIONS[precision].dtype

        def images(c: int, h: int, w: int, n: int = spec.n, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty(n, h, w, c, dtype=dtype, device="meta").permute(0, 3, 1, 2)

        shape = packed_shape(spec.c, spec.k, spec.r, spec.s, spec.groups)
        out = images(spec.k, spec.p, spec.q)
        workspace = workspace_bytes(spec, config, precision) // 4
        calls = conv2d_calls(
            images(spec.c, spec.h, spec.w),
            torch.empty(shape, dtype=dtype, device="meta"),
            torch.empty(spec.k, device="meta"),
            out,
            out,
            spec,
            "hardswish",
            "silu",
            config,
            precision,
            torch.empty(workspace, device="meta"),
            torch.empty(counters(spec, config), dtype=torch.int32, device="meta"),
        )
        for architecture in map(ARCHITECTURES.__getitem__, targets(config)):
            for call in calls:
                finding = inspect_call(call, architecture)
                line = {
                    "name": name,
                    "architecture": architecture.name,
                    "kernel": call.name,
                    "matrix": sorted(finding.whole.opcodes),
                    "copies": finding.copies,
                    "integer": finding.whole.of("integer"),
                    "loop": None if finding.loop is None else finding.loop.counts,
                    "wrong": violations(finding, architecture, precision),
                    "order": order(call, architecture) if config.fused_sum else None,
                }
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
