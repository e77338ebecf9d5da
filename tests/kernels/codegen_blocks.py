"""Run as a program: compiles bottleneck tails and stems for GPUs that are not here.

Not in the tests' own process, where kernels are interpreted and Triton's compiler is off. One line
of JSON for each launch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastres.dtypes import PRECISIONS
from fastres.kernels.inspection.budgets import violations
from fastres.kernels.inspection.finding import inspect_call
from fastres.kernels.launch.bottleneck import bottleneck_calls
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.launch.stem import stem_calls
from fastres.kernels.spec import BottleneckSpec, ConvSpec, StemSpec
from fastres.kernels.tuning import bottleneck, stem
from fastres.kernels.tuning.bottleneck import BottleneckConfig
from fastres.kernels.tuning.gpus import Gpu, by_name
from fastres.kernels.tuning.stem import StemConfig

SAME = (1, 1, 1, 1)


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


CASES = {
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


def images(n: int, c: int, h: int, w: int, dtype: torch.dtype) -> Tensor:
    return torch.empty((n, h, w, c), dtype=dtype, device="meta").permute(0, 3, 1, 2)


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


def main() -> None:
    for name, case in CASES.items():
        for gpu in map(by_name, case.gpus):
            call, bound = launch(case, gpu)
            found = inspect_call(call, gpu.architecture)
            print(
                json.dumps(
                    {
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
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
