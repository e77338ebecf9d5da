"""The stage ``layers``: ResNet-50's convolutions in many configurations, beside the library's.

And ``ncu``: the profiler's account of the layers that are farthest above what memory and matrix
units allow.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import shapes
from benchmarks.gpu_day.answers import relative_error
from benchmarks.gpu_day.faults import spoilt
from benchmarks.gpu_day.fit import assumed, constants
from benchmarks.gpu_day.results import REPOSITORY, Job, Record, Results
from benchmarks.gpu_day.settings import DEVICE, DTYPES, GPU, REHEARSED
from benchmarks.gpu_day.timing import graph_time
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.launch.conv2d import conv2d_calls, workspace_bytes
from fastres.kernels.packing import packed_shape
from fastres.kernels.spec import ConvSpec
from fastres.kernels.tuning.boxes import box_candidates, by_model
from fastres.kernels.tuning.conv2d import (
    Conv2dConfig,
    candidates,
    choose_conv2d,
    counters,
    estimate_conv2d,
    tuned_candidates,
)
from fastres.kernels.tuning.cost import floor_seconds
from fastres.kernels.tuning.gpus import Gpu, by_name
from fastres.kernels.tuning.traffic import flops, least_bytes
from fastres.runtime.triton.fill_channels import filled

BATCHES = (256, 32, 1)
CUDNN, WITH_EPILOGUE, CUBLAS = "cudnn", "cudnn bias relu", "cublas"
CHOSEN, BOXES = "chosen", "boxes"

ACCURATE = 5e-3
"""Relative root-mean-square error that fp16 answers of two ways to compute them may differ by."""

REAL = {"LAUNCH_S": 1.3, "LATENCY_S": 1.3, "L2_BYTES_PER_CYCLE": 0.8, "MATRIX_SHARE": 0.8}
"""Factors on the cost model's constants, for the made-up times of a rehearsal."""


def specs() -> list[tuple[str, ConvSpec]]:
    """ResNet-50's distinct convolutions at each batch, by key; the first on a filled image too."""
    found = []
    every = sorted(shapes.of_model("resnet50"), reverse=True)
    wider = [replace(shape, channels=filled(shape.channels)) for shape in every]
    both = [each for pair in zip(every, wider, strict=True) for each in dict.fromkeys(pair)]
    for batch, shape in itertools.product(BATCHES, both):
        spec = ConvSpec(
            batch,
            shape.channels,
            shape.height,
            shape.width,
            shape.filters,
            shape.kernel,
            shape.kernel,
            stride=(shape.stride,) * 2,
            padding=(shape.padding,) * 4,
        )
        found.append((f"{batch} x {shape}", spec))
    return found


def variants(spec: ConvSpec) -> dict[str, Conv2dConfig]:
    """The configuration chosen, and what its cost model may have been wrong about."""
    gpu = by_name(GPU)
    scored = [
        (estimate_conv2d(spec, config, "fp16", gpu).seconds, config)
        for config in candidates(spec, "fp16", gpu)
    ]
    scored = [each for each in scored if each[0] < math.inf]
    scored.sort(key=lambda each: each[0])
    tuned = tuned_candidates(spec, "fp16", gpu)

    def best(holds: Callable[[Conv2dConfig], bool]) -> Conv2dConfig | None:
        return next((config for _, config in scored if holds(config)), None)

    configurations: dict[str, Conv2dConfig | None] = {
        CHOSEN: choose_conv2d(spec, "fp16", gpu),
        "block_k=64": best(lambda c: c.block_k == 64 and c.num_stages >= 3),
        "8 warps": best(lambda c: c.num_warps == 8 and c.block_k == 64),
        "wide": best(lambda c: c.block_n == 256 and c.block_k == 64),
        "pointers": best(lambda c: not c.descriptors and c.block_k == 64),
        "no split": best(lambda c: c.split_k == 1),
        "sum in the launch": next((c for c in tuned if c.fused_sum), None),
    }
    configurations |= {f"sweep {number}": config for number, config in enumerate(_sweep(scored))}
    configurations |= {
        f"{BOXES} {number}" if number else BOXES: config
        for number, config in enumerate(_boxes(spec, gpu))
    }
    names: dict[Conv2dConfig, str] = {}
    for name, config in configurations.items():
        if config is not None:
            names.setdefault(config, name)
    return {name: config for config, name in names.items()}


def _boxes(spec: ConvSpec, gpu: Gpu) -> list[Conv2dConfig]:
    """The best by boxes, and others of the same product: what is known of them is the model's."""
    kinds: dict[Any, Conv2dConfig] = {}
    for config in by_model(box_candidates(spec, "fp16", gpu), spec, "fp16", gpu):
        tile = (config.block_m, config.block_n, config.box_h, config.box_w)
        kinds.setdefault((*tile, config.num_warps), config)
    return list(kinds.values())[:4]


def _sweep(scored: Sequence[tuple[float, Conv2dConfig]]) -> list[Conv2dConfig]:
    """A broad choice, which the constants of the cost model can be fitted to."""
    kinds: dict[Any, tuple[float, Conv2dConfig]] = {}
    for seconds, c in scored:
        tile = (c.block_m, c.block_n, c.block_k)
        kinds.setdefault((*tile, c.num_warps, c.descriptors, c.split_k > 1), (seconds, c))
    ranked = list(kinds.values())
    nearby = [config for seconds, config in ranked if seconds <= 1.8 * ranked[0][0]]
    return nearby[:5] + nearby[5 :: max(1, len(nearby) // 6)]


Launches = Callable[[], list[KernelCall]]


def conv_calls(
    spec: ConvSpec, config: Conv2dConfig, device: str = "meta", copies: int = 1
) -> tuple[Launches, list[tuple[Tensor, ...]]]:
    """Launches of a convolution with bias and ReLU, over sets of tensors in turn; and the sets."""
    half: dict[str, Any] = {"dtype": DTYPES["fp16"], "device": device}
    sets: list[tuple[Tensor, ...]] = []
    calls = []
    for _ in range(copies):
        x = torch.randn(spec.n, spec.h, spec.w, spec.c, **half)
        packed = torch.randn(packed_shape(spec.c, spec.k, spec.r, spec.s, spec.groups), **half)
        packed /= (spec.c * spec.r * spec.s / spec.groups) ** 0.5
        bias = torch.randn(spec.k, dtype=torch.float32, device=device)
        out = torch.full((spec.n, spec.p, spec.q, spec.k), torch.nan, **half)
        size = workspace_bytes(spec, config, "fp16") // 4
        scratch = torch.empty(max(size, 1), dtype=torch.float32, device=device)
        counting = torch.zeros(counters(spec, config), dtype=torch.int32, device=device)
        images, answer = x.permute(0, 3, 1, 2), out.permute(0, 3, 1, 2)
        calls.append(
            conv2d_calls(
                images,
                packed,
                bias,
                None,
                answer,
                spec,
                "none",
                "relu",
                config,
                "fp16",
                scratch,
                counting,
            )
        )
        sets.append((images, packed, bias, answer))
    turns = itertools.cycle(calls)
    return lambda: next(turns), sets


def copies_of(spec: ConvSpec) -> int:
    """Sets of tensors: more than L2 keeps where a network's would not be in it either."""
    return min(8, max(1, int(1.5e8 // least_bytes(spec, "fp16")))) if spec.n >= 32 else 1


def layer(key: str, spec: ConvSpec, config: Conv2dConfig) -> Record:
    """One convolution in one configuration: right, measured, modelled, and its floor."""
    gpu, moved, work = by_name(GPU), least_bytes(spec, "fp16"), flops(spec)
    launches, sets = conv_calls(spec, config, "meta" if REHEARSED else DEVICE, copies_of(spec))

    def run() -> None:
        for call in launches():
            call.run()

    modelled = estimate_conv2d(spec, config, "fp16", gpu).seconds * 1e6
    found: Record = {"config": str(config), "modelled_us": modelled}
    if REHEARSED:
        launches()
        found |= {"us": _simulated_time(key, spec, config), "rehearsed": True}
    else:
        run()
        x, packed, bias, answer = sets[0]
        error = relative_error(spoilt(answer[-1:]), _by_library(spec, x[-1:], packed, bias))
        found |= {"ok": error <= ACCURATE, "error": error}
        if not found["ok"]:
            return found
        found["us"] = graph_time(run)
    return found | {
        "floor_us": floor_seconds(work, moved, "fp16", gpu) * 1e6,
        "TFLOP/s": work / found["us"] / 1e6,
        "TB/s": moved / found["us"] / 1e6,
    }


def _simulated_time(key: str, spec: ConvSpec, config: Conv2dConfig) -> float:
    """A time as of a GPU that the cost model's constants are wrong about."""
    now = constants()
    with assumed({name: now[name] * factor for name, factor in REAL.items() if name in now}):
        us = estimate_conv2d(spec, config, "fp16", by_name(GPU)).seconds * 1e6
    return us * random.Random(key).uniform(0.97, 1.03)


def _by_library(spec: ConvSpec, x: Tensor, packed: Tensor, bias: Tensor) -> Tensor:
    """The answer for ungrouped filters as they are packed: [K, R, S, C] in rows."""
    weight = packed.reshape(spec.k, spec.r, spec.s, spec.c).permute(0, 3, 1, 2)
    y = F.conv2d(x.float(), weight.float(), bias, list(spec.stride), list(spec.padding[:2]))
    return torch.relu(y)


def library(spec: ConvSpec, way: str) -> Record:
    """cuDNN's convolution alone, with bias and ReLU in its epilogue, or cuBLAS for a product."""
    torch.backends.cudnn.benchmark = True
    copies = copies_of(spec)
    half: dict[str, Any] = {"dtype": DTYPES["fp16"], "device": DEVICE}
    if REHEARSED:
        return {"us": 1.2e6 * estimate_conv2d(
            spec, choose_conv2d(spec, "fp16", by_name(GPU)), "fp16", by_name(GPU)
        ).seconds, "rehearsed": True}  # fmt: skip
    xs = [
        torch.randn(spec.n, spec.h, spec.w, spec.c, **half).permute(0, 3, 1, 2)
        for _ in range(copies)
    ]
    weight = torch.randn(spec.k, spec.r, spec.s, spec.c, **half).permute(0, 3, 1, 2)
    bias, turns = torch.randn(spec.k, **half), itertools.cycle(xs)
    sides, stride = list(spec.padding[:2]), list(spec.stride)
    rows = weight.permute(0, 2, 3, 1).reshape(spec.k, -1)
    with_epilogue = torch.ops.aten.cudnn_convolution_relu

    ways: dict[str, Callable[[], object]] = {
        CUDNN: lambda: F.conv2d(next(turns), weight, None, stride, sides),
        WITH_EPILOGUE: lambda: with_epilogue(
            next(turns), weight, bias, stride, sides, [1, 1], spec.groups
        ),
        CUBLAS: lambda: F.linear(next(turns).permute(0, 2, 3, 1).reshape(-1, spec.c), rows),
    }
    return {"us": graph_time(ways[way])}


def ways_of(spec: ConvSpec) -> list[str]:
    """The library's that there are."""
    product = (spec.r, spec.stride) == (1, (1, 1))
    return [CUDNN, WITH_EPILOGUE, *([CUBLAS] if product else [])]


def layers(most: int | None = None) -> list[Job]:
    """First what is chosen, boxes and the library's for all shapes, then our other configurations.

    Args:
        most: shapes at most.
    """
    first: list[Job] = []
    rest: list[Job] = []
    for key, spec in specs()[:most]:
        for name, config in variants(spec).items():
            each = f"{key}: {name}"
            job = Job(each, functools.partial(layer, each, spec, config), {"config": str(config)})
            (first if name in (CHOSEN, BOXES) else rest).append(job)
        first += [
            Job(f"{key}: {way}", functools.partial(library, spec, way)) for way in ways_of(spec)
        ]
    return first + rest


SECTIONS = (
    "SpeedOfLight",
    "WarpStateStats",
    "MemoryWorkloadAnalysis",
    "Occupancy",
    "InstructionStats",
)


def ncu(folder: Path) -> list[Job]:
    """The chosen launches farthest above their floor, at the largest batch, one each."""
    records = Results(folder, "layers").records
    mine = {
        key: each["us"] / each["floor_us"]
        for key, each in records.items()
        if re.match(rf"{BATCHES[0]} x .*: {CHOSEN}$", key) and "us" in each
    }

    def profiled(key: str) -> Record:
        command = [sys.executable, "-m", "benchmarks.gpu_day", "one", key.rsplit(":", 1)[0]]
        if not REHEARSED:
            profiler = ["ncu", "--clock-control", "none", "-c", "1"]
            profiler += ["-k", "regex:conv2d_kernel|pointwise_kernel"]
            profiler += [word for section in SECTIONS for word in ("--section", section)]
            command = profiler + command
        process = subprocess.run(
            command, capture_output=True, text=True, cwd=REPOSITORY, check=False
        )
        output = process.stdout if process.returncode == 0 else process.stdout + process.stderr
        return {"ok": process.returncode == 0, "text": output[-6000:]}

    slowest = sorted(mine, key=lambda key: -mine[key])[: 1 if REHEARSED else 3]
    return [Job(key, functools.partial(profiled, key)) for key in slowest]


def one(key: str) -> None:
    """Launch the chosen configuration of one layer."""
    spec = dict(specs())[key]
    config = choose_conv2d(spec, "fp16", by_name(GPU))
    launches, _ = conv_calls(spec, config, "meta" if REHEARSED else DEVICE)
    for call in launches():
        if REHEARSED:
            print(call.name, call.grid)
        else:
            call.run()
    if not REHEARSED:
        torch.cuda.synchronize()
