"""Run as a program: compiles kernels for GPUs that are not here, and prints what it read of each.

    python -m tests.support.codegen blocks          # bottleneck tails and stems
    python -m tests.support.codegen convolutions
    python -m tests.support.codegen quantized       # what int8 needs
    python -m tests.support.codegen quantized_blocks
    python -m tests.support.codegen simple          # element-wise kernels, pooling, layouts

Not in the tests' own process, where kernels are interpreted and Triton's compiler is off. One line
of JSON for each launch. Shapes of convolutions are those that no layer of a ResNet has: what the
interpreter takes, the compiler may still refuse.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastres.dtypes import PRECISIONS
from fastres.kernels.inspection.budgets import violations
from fastres.kernels.inspection.compiling import compiled
from fastres.kernels.inspection.finding import inspect_call
from fastres.kernels.launch.bottleneck import bottleneck_calls
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.launch.conv2d import conv2d_calls, workspace_bytes
from fastres.kernels.launch.elementwise import add_relu_calls, scale_shift_calls
from fastres.kernels.launch.layout import convert_calls
from fastres.kernels.launch.pool_linear import pool_linear_calls
from fastres.kernels.launch.pooling import (
    avg_pool2d_calls,
    global_avg_pool_calls,
    max_pool2d_calls,
)
from fastres.kernels.launch.quantized_bottleneck import (
    BlockRescaling,
    Filters,
    quantized_bottleneck_calls,
)
from fastres.kernels.launch.quantized_conv2d import Rescaling, quantized_conv2d_calls
from fastres.kernels.launch.quantized_simple import (
    dequantize_calls,
    quantize_calls,
    quantized_add_calls,
    quantized_global_avg_pool_calls,
)
from fastres.kernels.launch.quantized_stem import quantized_stem_calls
from fastres.kernels.launch.split_sums import partial_bytes
from fastres.kernels.launch.stem import stem_calls
from fastres.kernels.packing import packed_shape
from fastres.kernels.spec import BottleneckSpec, ConvSpec, PoolLinearSpec, StemSpec
from fastres.kernels.tuning import bottleneck, stem
from fastres.kernels.tuning.bottleneck import BottleneckConfig
from fastres.kernels.tuning.conv2d import Conv2dConfig, counters
from fastres.kernels.tuning.gpus import ARCHITECTURES, Architecture, Gpu, by_name
from fastres.kernels.tuning.pooling import choose_pool_linear
from fastres.kernels.tuning.stem import StemConfig
from tests.support import ROOT

Line = dict[str, Any]

SAME = (1, 1, 1, 1)


def read(program: str) -> list[Line]:
    """What a program of this file prints, from a process in which Triton compiles."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.codegen", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def images(n: int, c: int, h: int, w: int, dtype: torch.dtype) -> Tensor:
    """Channels-last."""
    return torch.empty((n, h, w, c), dtype=dtype, device="meta").permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Case:
    """A launch. Without a configuration, that which is chosen for the GPU."""

    spec: BottleneckSpec | StemSpec
    config: BottleneckConfig | StemConfig | None = None
    precision: str = "fp16"
    gpus: tuple[str, ...] = ("a100", "h100")


def resnet(width: int, next_k: int | None, shortcut: bool) -> BottleneckSpec:
    """A block of ResNet-50's stage of that width; with a shortcut, the stage's first."""
    side = 56 * 64 // width
    step = (1 if width == 64 else 2) if shortcut else 1
    conv = ConvSpec(
        *(32, width, side * step, side * step, width, 3, 3),
        stride=(step, step),
        padding=SAME,
    )
    beside = None
    if shortcut:
        channels = 64 if width == 64 else 2 * width
        beside = ConvSpec(32, channels, side * step, side * step, 4 * width, 1, 1, conv.stride)
    return BottleneckSpec(conv, 4 * width, beside, next_k)


def resnext(width: int, next_k: int | None, shortcut: bool) -> BottleneckSpec:
    """A block of ResNeXt-50's (32x4d) second or third stage, as :func:`resnet`."""
    side = 56 * 128 // width
    step = (1 if width == 128 else 2) if shortcut else 1
    conv = ConvSpec(
        *(32, width, side * step, side * step, width, 3, 3),
        stride=(step, step),
        padding=SAME,
        groups=32,
    )
    beside = None
    if shortcut:
        channels = 64 if width == 128 else width
        beside = ConvSpec(32, channels, side * step, side * step, 2 * width, 1, 1, conv.stride)
    return BottleneckSpec(conv, 2 * width, beside, next_k)


def choosing(spec: BottleneckSpec, precision: str) -> tuple[str, ...]:
    """GPUs on which some configuration fits."""
    return tuple(
        name
        for name in ("a100", "h100")
        if bottleneck.choose_bottleneck(spec, precision, by_name(name)) is not None
    )


def resnext_cases() -> dict[str, Case]:
    """Every grouped tail that a ResNeXt-50 can have, into the next stage too."""
    return {
        f"ResNeXt, width {width}, next {next_k}, {'shortcut' if shortcut else 'residual'}, "
        f"{precision}": Case(spec, precision=precision, gpus=gpus)
        for precision in ("fp16", "bf16", "tf32")
        for width in (128, 256)
        for next_k, shortcut in (
            *((None, True), (None, False), (width, True), (width, False), (2 * width, False)),
        )
        for spec in [resnext(width, next_k, shortcut)]
        for gpus in [choosing(spec, precision)]
    }


AWKWARD = ConvSpec(2, 40, 5, 7, 24, 3, 3, padding=SAME)
SMALL = BottleneckConfig(64, 32, 32, 4, 3)
IMAGE = ConvSpec(32, 3, 224, 224, 64, 7, 7, (2, 2), (3, 3, 3, 3))


def pooled(conv: ConvSpec, uint8: bool = False) -> StemSpec:
    return StemSpec(conv, (3, 3), (2, 2), (1, 1), uint8)


def channels(c: int, w: int = 224, uint8: bool = False) -> StemSpec:
    return pooled(ConvSpec(32, c, 224, w, 64, 7, 7, (2, 2), (3, 3, 3, 3)), uint8)


BLOCKS = {
    **{
        f"width {width}, next {next_k}, {'shortcut' if shortcut else 'residual'}": Case(
            resnet(width, next_k, shortcut),
            gpus=("a100", "h100", "mi300x") if next_k else ("a100", "h100"),
        )
        for width in (64, 128, 256)
        for next_k in (None, width)
        for shortcut in (False, True)
    },
    "into the next stage": Case(resnet(128, 256, False)),
    "width 512": Case(resnet(512, None, False)),
    "tf32": Case(resnet(128, 128, False), precision="tf32"),
    "bf16": Case(resnet(128, 128, True), precision="bf16"),
    **resnext_cases(),
    "awkward": Case(BottleneckSpec(AWKWARD, 40, None, 24), SMALL),
    "awkward, shortcut": Case(
        BottleneckSpec(AWKWARD, 40, ConvSpec(2, 72, 5, 7, 40, 1, 1), 70), SMALL
    ),
    "past 2^31": Case(
        BottleneckSpec(ConvSpec(1024, 64, 112, 112, 64, 3, 3, padding=SAME), 256, None, 64)
    ),
    "stem": Case(channels(3), gpus=("a100", "h100", "mi300x")),
    "stem of bytes": Case(channels(3, uint8=True)),
    "stem of one channel": Case(channels(1)),
    "stem of four channels": Case(channels(4)),
    "stem of four channels of bytes": Case(channels(4, uint8=True)),
    "stem of odd width": Case(channels(3, 223)),
    "stem in tf32": Case(channels(3), precision="tf32"),
    "awkward stem": Case(
        pooled(ConvSpec(2, 3, 17, 14, 20, 7, 7, (2, 2), (3, 3, 3, 3))), StemConfig(8, 16, 16, 4, 2)
    ),
}


def bottleneck_launch(
    spec: BottleneckSpec, config: BottleneckConfig, precision: str
) -> list[KernelCall]:
    conv, beside, k, next_k = spec.conv, spec.shortcut, spec.expand_k, spec.next_k
    dtype = PRECISIONS[precision].dtype

    def matrix(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def bias(size: int) -> Tensor:
        return torch.empty(size, device="meta")

    wide = images(conv.n, k, conv.p, conv.q, dtype)
    return bottleneck_calls(
        images(conv.n, conv.c, conv.h, conv.w, dtype),
        matrix(conv.k, conv.r * conv.s * bottleneck.chunks_of(conv).channels),
        bias(conv.k),
        matrix(k, conv.k),
        bias(k),
        wide if beside is None else images(beside.n, beside.c, beside.h, beside.w, dtype),
        None if beside is None else matrix(k, beside.c),
        None if next_k is None else matrix(next_k, k),
        None if next_k is None else bias(next_k),
        wide,
        None if next_k is None else images(conv.n, next_k, conv.p, conv.q, dtype),
        *(spec, config, precision),
    )


def stem_launch(spec: StemSpec, config: StemConfig, precision: str) -> list[KernelCall]:
    conv, dtype, uint8 = spec.conv, PRECISIONS[precision].dtype, spec.uint8
    x = images(conv.n, conv.c, conv.h, conv.w, torch.uint8 if uint8 else dtype)
    layout = stem.row_layout(spec, x.element_size())
    vectors = [torch.empty(conv.c, device="meta")] * 2 if uint8 else []
    return stem_calls(
        x.permute(0, 2, 3, 1) if uint8 else x,
        torch.empty((conv.k, conv.r * layout.size), dtype=dtype, device="meta"),
        torch.empty(conv.k, device="meta"),
        images(conv.n, conv.k, spec.p, spec.q, dtype),
        *(spec, "relu", config, precision),
        *vectors,
    )


def launch(case: Case, gpu: Gpu) -> tuple[KernelCall, int]:
    """The launch, and the bound on its shared memory."""
    spec, precision, target = case.spec, case.precision, gpu.architecture
    config: Any = case.config
    if isinstance(spec, BottleneckSpec):
        config = config or bottleneck.choose_bottleneck(spec, precision, gpu)
        (call,) = bottleneck_launch(spec, config, precision)
        return call, bottleneck.shared_bytes(spec, config, precision, target)
    config = config or stem.choose_stem(spec, precision, gpu)
    (call,) = stem_launch(spec, config, precision)
    return call, stem.shared_bytes(spec, config, precision, target)


def blocks() -> Iterator[Line]:
    for name, case in BLOCKS.items():
        for gpu in map(by_name, case.gpus):
            call, bound = launch(case, gpu)
            found = inspect_call(call, gpu.architecture)
            yield {
                "name": name,
                "gpu": gpu.name,
                "kernel": found.kernel,
                "wrong": violations(found, gpu.architecture, case.precision),
                "matrix": sorted(found.whole.opcodes),
                "local": found.spill_bytes + found.local_instructions,
                "shared_bytes": found.shared_bytes,
                "bound": bound,
                "registers": found.registers,
                "copies": found.copies,
                "together": call.constants.get("TOGETHER", 1),
                "int64": call.constants["INT64"],
            }


PLAIN = Conv2dConfig(64, 32, 32)
SPLIT = Conv2dConfig(64, 32, 16, split_k=3)
FUSED = Conv2dConfig(64, 32, 16, split_k=3, fused_sum=True)
DESCRIPTORS = Conv2dConfig(64, 32, 32, descriptors=True)
BOXES = Conv2dConfig(128, 64, 64, descriptors=True, box_h=4, box_w=8)
TF32_BOXES = replace(BOXES, block_k=32)
SMALL_BOXES = replace(BOXES, block_m=32, block_k=16)
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


def calls_of(spec: ConvSpec, config: Conv2dConfig, precision: str) -> list[KernelCall]:
    """The launches of one convolution."""
    dtype = PRECISIONS[precision].dtype
    out = images(spec.n, spec.k, spec.p, spec.q, dtype)
    packed = packed_shape(spec.c, spec.k, spec.r, spec.s, spec.groups)
    workspace = workspace_bytes(spec, config, precision) // 4
    return conv2d_calls(
        images(spec.n, spec.c, spec.h, spec.w, dtype),
        torch.empty(packed, dtype=dtype, device="meta"),
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


def convolutions() -> Iterator[Line]:
    for name, (spec, config, precision) in CONVOLUTIONS.items():
        for architecture in map(ARCHITECTURES.__getitem__, targets(config)):
            for call in calls_of(spec, config, precision):
                found = inspect_call(call, architecture)
                yield {
                    "name": name,
                    "architecture": architecture.name,
                    "kernel": call.name,
                    "matrix": sorted(found.whole.opcodes),
                    "copies": found.copies,
                    "integer": found.whole.of("integer"),
                    "loop": None if found.loop is None else found.loop.counts,
                    "wrong": violations(found, architecture, precision),
                    "order": order(call, architecture) if config.fused_sum else None,
                }


# A layer of a ResNet, channels of 16 bytes on odd images, one number of everything, and images of
# more than 2**31 numbers.
SHAPES = {
    "layer": (32, 64, 56, 56),
    "16 bytes": (3, 8, 7, 7),
    "one": (1, 1, 1, 1),
    "large": (2**14, 64, 48, 48),
}
SIMPLE = [
    *(("layer", "fp16", target) for target in ("sm_75", "sm_80", "sm_90", "gfx942")),
    *(("layer", precision, "sm_80") for precision in ("bf16", "fp32")),
    *((shape, "fp16", "sm_80") for shape in ("16 bytes", "one", "large")),
]
"""Shape, precision, architecture."""


def simple_calls(shape: tuple[int, int, int, int], dtype: torch.dtype) -> dict[str, KernelCall]:
    """One launch of every kernel."""
    n, c, h, w = shape
    x, vector = images(*shape, dtype), torch.empty(c, device="meta")
    nchw = torch.empty(shape, dtype=torch.float32, device="meta")
    pooled = images(n, c, (h + 1) // 2, (w + 1) // 2, dtype)
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
        "cast": convert_calls(images(*shape, torch.uint8), x),
    }
    return {name: call for name, (call,) in found.items()}


def simple() -> Iterator[Line]:
    for shape, precision, target in SIMPLE:
        for name, call in simple_calls(SHAPES[shape], PRECISIONS[precision].dtype).items():
            found = inspect_call(call, ARCHITECTURES[target])
            yield {
                "name": name,
                "case": [shape, precision, target],
                "int64": call.constants["INT64"],
                "wrong": violations(found, ARCHITECTURES[target], precision),
                "copies": found.copies,
            }


PADDED_INT8 = Rescaling(0.1, 131, 0.3, 7, 0.2, 5)
BEHIND_RELU = Rescaling(0.1, 0, 0.3, 0, 0.2, 5)
INT8 = Conv2dConfig(64, 32, 32)
QUANTIZED: dict[str, tuple[ConvSpec, Conv2dConfig, Rescaling, str]] = {
    "partial tiles": (
        ConvSpec(2, 40, 5, 7, 20, 3, 3, padding=SAME),
        INT8,
        PADDED_INT8,
        "hardswish",
    ),
    "a layer": (LAYER, replace(LARGE, block_k=128, num_stages=3), BEHIND_RELU, "relu"),
    "a layer behind no ReLU": (
        LAYER,
        replace(LARGE, block_k=128, num_stages=3),
        PADDED_INT8,
        "relu6",
    ),
    "a small tile": (LAYER, Conv2dConfig(64, 64, 128, num_stages=4), BEHIND_RELU, "none"),
    "stem": (
        ConvSpec(8, 4, 224, 224, 64, 7, 7, (2, 2), (3, 3, 3, 3)),
        Conv2dConfig(128, 64, 64),
        PADDED_INT8,
        "none",
    ),
    "groups": (
        ConvSpec(8, 128, 14, 14, 128, 3, 3, padding=SAME, groups=32),
        INT8,
        BEHIND_RELU,
        "none",
    ),
    "split": (
        ConvSpec(1, 512, 7, 7, 512, 3, 3, padding=SAME),
        Conv2dConfig(64, 32, 128, split_k=4),
        BEHIND_RELU,
        "none",
    ),
    "sum in one": (
        ConvSpec(1, 512, 7, 7, 512, 3, 3, padding=SAME),
        Conv2dConfig(64, 32, 128, split_k=4, fused_sum=True),
        BEHIND_RELU,
        "none",
    ),
    "past 2^31": (ConvSpec(1024, 64, 224, 224, 64, 3, 3, padding=SAME), INT8, PADDED_INT8, "none"),
    "descriptors": (
        ConvSpec(3, 80, 5, 5, 48, 1, 1),
        replace(INT8, descriptors=True),
        BEHIND_RELU,
        "none",
    ),
}
QUANTIZED_TARGETS = ("sm_80", "sm_89", "sm_90", "gfx942")


@dataclass(frozen=True)
class QuantizedBlock:
    """A launch of a tail or a stem. Without a configuration, that chosen for the GPU."""

    spec: BottleneckSpec | StemSpec
    config: BottleneckConfig | StemConfig | None = None
    gpus: tuple[str, ...] = ("a100", "l4", "h100", "mi300x")


QUANTIZED_BLOCKS = {
    **{
        f"width {width}, next {next_k}, {'shortcut' if shortcut else 'residual'}": QuantizedBlock(
            replace(resnet(width, next_k, shortcut), quantized=True),
            # The largest fits into the registers of an L4 in no way.
            gpus=("a100", "h100", "mi300x")
            if (width, next_k, shortcut) == (256, 256, True)
            else ("a100", "l4", "h100", "mi300x"),
        )
        for width in (64, 128, 256)
        for next_k in (None, width)
        for shortcut in (False, True)
    },
    "width 512": QuantizedBlock(replace(resnet(512, None, False), quantized=True), gpus=("h100",)),
    "awkward": QuantizedBlock(BottleneckSpec(AWKWARD, 40, None, 24, quantized=True), SMALL),
    "awkward, shortcut": QuantizedBlock(
        BottleneckSpec(AWKWARD, 40, ConvSpec(2, 72, 5, 7, 40, 1, 1), 70, quantized=True), SMALL
    ),
    "past 2^31": QuantizedBlock(
        BottleneckSpec(
            *(ConvSpec(1024, 64, 112, 112, 64, 3, 3, padding=SAME), 256, None, 64),
            quantized=True,
        ),
        gpus=("a100", "h100"),
    ),
    "stem": QuantizedBlock(replace(channels(3), quantized=True)),
    "stem of one channel": QuantizedBlock(replace(channels(1), quantized=True)),
    "stem of four channels": QuantizedBlock(replace(channels(4), quantized=True)),
    "stem of odd width": QuantizedBlock(replace(channels(3, 223), quantized=True)),
    "awkward stem": QuantizedBlock(
        replace(pooled(ConvSpec(2, 5, 17, 14, 20, 7, 7, (2, 2), (3, 3, 3, 3))), quantized=True),
        StemConfig(8, 8, 16, 4, 2),
    ),
    "stem past 2^31": QuantizedBlock(
        replace(
            pooled(ConvSpec(4096, 4, 448, 448, 64, 7, 7, (2, 2), (3, 3, 3, 3))), quantized=True
        ),
        gpus=("a100", "h100"),
    ),
}


def quantized_stem_launch(spec: StemSpec, config: StemConfig, zero_point: int = 0) -> KernelCall:
    """The launch of a stem whose image has this zero point."""
    conv = spec.conv
    depth = conv.r * stem.row_layout(spec, 1).size
    (call,) = quantized_stem_calls(
        images(conv.n, conv.c, conv.h, conv.w, torch.uint8),
        torch.empty(conv.k, depth, dtype=torch.int8, device="meta"),
        torch.empty(conv.k, dtype=torch.int32, device="meta"),
        torch.empty(conv.k, device="meta"),
        images(conv.n, conv.k, spec.p, spec.q, torch.uint8),
        *(spec, "relu", Rescaling(0.1, zero_point, 0.3, 0), config),
    )
    return call


def quantized_block_launch(
    spec: BottleneckSpec, config: BottleneckConfig, zero_point: int = 0
) -> KernelCall:
    """The launch of a tail whose image has this zero point."""
    conv, beside, k, next_k = spec.conv, spec.shortcut, spec.expand_k, spec.next_k

    def filters(rows: int | None, depth: int) -> Filters | None:
        if rows is None:
            return None
        return Filters(
            torch.empty(rows, depth, dtype=torch.int8, device="meta"),
            torch.empty(rows, dtype=torch.int32, device="meta"),
            torch.empty(rows, device="meta"),
        )

    first = filters(conv.k, conv.r * conv.s * bottleneck.chunks_of(conv).channels)
    expand = filters(k, conv.k)
    assert first is not None and expand is not None
    wide = images(conv.n, k, conv.p, conv.q, torch.uint8)
    scales, zero_points = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), (zero_point, 0, 0, 130, 0, 0)
    (call,) = quantized_bottleneck_calls(
        images(conv.n, conv.c, conv.h, conv.w, torch.uint8),
        first,
        expand,
        wide if beside is None else images(beside.n, beside.c, beside.h, beside.w, torch.uint8),
        None if beside is None else filters(k, beside.c),
        filters(next_k, k),
        wide,
        None if next_k is None else images(conv.n, next_k, conv.p, conv.q, torch.uint8),
        *(spec, BlockRescaling.of(scales, zero_points, beside is not None), config),
    )
    return call


def quantized_blocks() -> Iterator[Line]:
    for name, case in QUANTIZED_BLOCKS.items():
        for gpu in map(by_name, case.gpus):
            target, spec = gpu.architecture, case.spec
            config: Any = case.config
            zero_point = 131 if config else 0
            if isinstance(spec, StemSpec):
                config = config or stem.choose_stem(spec, "int8", gpu)
                call = quantized_stem_launch(spec, config, zero_point)
                bound = stem.shared_bytes(spec, config, "int8", target)
            else:
                config = config or bottleneck.choose_bottleneck(spec, "int8", gpu)
                call = quantized_block_launch(spec, config, zero_point)
                bound = bottleneck.shared_bytes(spec, config, "int8", target)
            found = inspect_call(call, target)
            yield {
                "name": name,
                "gpu": gpu.name,
                "kernel": found.kernel,
                "config": str(config),
                "wrong": violations(found, target, "int8"),
                "matrix": sorted(found.whole.opcodes),
                "local": found.spill_bytes + found.local_instructions,
                "shared_bytes": found.shared_bytes,
                "bound": bound,
                "registers": found.registers,
                "copies": found.copies,
                "fused": found.fused_multiply_adds,
                "int64": call.constants["INT64"],
            }


def quantized_targets(config: Conv2dConfig) -> list[str]:
    """Names of the architectures that a configuration is meant for."""
    return [
        name
        for name in QUANTIZED_TARGETS
        if ARCHITECTURES[name].tensor_descriptors or not config.descriptors
    ]


def quantized_of(
    spec: ConvSpec, config: Conv2dConfig, rescaling: Rescaling, activation: str
) -> list[KernelCall]:
    """The launches of one convolution in int8, with a residual."""
    out = images(spec.n, spec.k, spec.p, spec.q, torch.uint8)
    packed = packed_shape(spec.c, spec.k, spec.r, spec.s, spec.groups)
    whole: dict[str, Any] = {"dtype": torch.int32, "device": "meta"}
    return quantized_conv2d_calls(
        images(spec.n, spec.c, spec.h, spec.w, torch.uint8),
        torch.empty(packed, dtype=torch.int8, device="meta"),
        torch.empty(spec.k, **whole),
        torch.empty(spec.k, device="meta"),
        out,
        out,
        spec,
        "none",
        activation,
        rescaling,
        config,
        torch.empty(partial_bytes(spec, config) // 4, **whole),
        torch.empty(counters(spec, config), **whole),
    )


def quantized_simple_calls() -> dict[str, KernelCall]:
    """One launch of every other kernel of int8."""
    x = images(32, 64, 56, 56, torch.uint8)
    numbers = images(32, 64, 56, 56, torch.float32)
    flat = torch.empty(32, 64, dtype=torch.uint8, device="meta")
    pooled = images(32, 64, 28, 28, torch.uint8)
    found = {
        "quantize": quantize_calls(numbers, x, 0.1, 131),
        "dequantize": dequantize_calls(x, numbers, 0.1, 131),
        "add": quantized_add_calls(x, x, x, "relu", 0.1, 131, 0.2, 7, 0.3, 5),
        "mean": quantized_global_avg_pool_calls(x, flat, 0.1, 131, 0.2, 7),
        "max_pool2d": max_pool2d_calls(x, pooled, (3, 3), (2, 2), (1, 1), (1, 1), False),
    }
    return {name: call for name, (call,) in found.items()}


def quantized() -> Iterator[Line]:
    cases = [
        (name, target, call)
        for name, (spec, config, rescaling, activation) in QUANTIZED.items()
        for target in quantized_targets(config)
        for call in quantized_of(spec, config, rescaling, activation)
    ]
    cases += [
        (name, target, call)
        for target in QUANTIZED_TARGETS
        for name, call in quantized_simple_calls().items()
    ]
    for name, target, call in cases:
        found = inspect_call(call, ARCHITECTURES[target])
        yield {
            "name": name,
            "architecture": target,
            "kernel": call.name,
            "int64": call.constants.get("INT64"),
            "matrix": sorted(found.whole.opcodes),
            "copies": found.copies,
            "fused": found.fused_multiply_adds,
            "wrong": violations(found, ARCHITECTURES[target], "int8"),
        }


PROGRAMS = {
    "quantized": quantized,
    "quantized_blocks": quantized_blocks,
    "blocks": blocks,
    "convolutions": convolutions,
    "simple": simple,
}


if __name__ == "__main__":
    for line in PROGRAMS[sys.argv[1]]():
        print(json.dumps(line), flush=True)
