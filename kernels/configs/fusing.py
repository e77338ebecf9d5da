"""What each operator costs by the model, and whether one kernel for several operators pays.

A fused kernel is compared with the fastest other way to the same tensors: all its parts by
themselves, or a smaller fused kernel and the rest by itself.
"""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass, replace

from fastres.kernels.configs.bottleneck import choose_bottleneck, estimate_bottleneck, supports
from fastres.kernels.configs.conv2d import choose_conv2d, estimate_conv2d
from fastres.kernels.configs.cost import (
    LATENCY_S,
    LAUNCH_S,
    MATRIX_SHARE,
    MEMORY_SHARE,
    NOTHING,
    Estimate,
    Loop,
    Work,
    estimate,
    streaming,
)
from fastres.kernels.configs.pooling import choose_pool_linear
from fastres.kernels.configs.traffic import ELEMENT_BYTES, Spec, least_bytes
from fastres.kernels.gpus import Gpu
from fastres.spec import BottleneckSpec, ConvSpec, PoolLinearSpec, StemSpec


@dataclass(frozen=True)
class Modelled:
    """An operator's modelled time.

    Attributes:
        estimate: see :mod:`fastres.kernels.configs.cost`; infinite seconds where nothing fits.
        configuration: in words, or ``library``.
        launches: kernels that it takes.
    """

    estimate: Estimate
    configuration: str
    launches: int = 1


def why_library(gpu: Gpu) -> str | None:
    """Why matrix products are the library's on this GPU, None where they are ours."""
    if gpu.architecture.tensor_core != "none":
        return None
    return (
        f"Triton emits no tensor-core instructions for {gpu.architecture.name}, and the library "
        "has kernels that use them"
    )


def as_if_ours(gpu: Gpu) -> Gpu:
    """The same GPU, and where products are the library's, one whose tensor cores Triton can use."""
    if why_library(gpu) is None:
        return gpu
    return replace(gpu, architecture=replace(gpu.architecture, tensor_core="mma"))


def why_not_fused(spec: Spec, precision: str, gpu: Gpu) -> str | None:
    """Why the fused kernel does not pay for these sizes, as a sentence; None where it does.

    A convolution by itself is nothing fused: None.
    """
    if isinstance(spec, ConvSpec):
        return None
    reason = why_library(gpu)
    if reason is not None:
        return reason
    if isinstance(spec, BottleneckSpec):
        reason = supports(spec)
        if reason is not None:
            return reason
    together = modelled(spec, precision, gpu).estimate.seconds
    if math.isinf(together):
        return f"its tiles do not fit into the registers and shared memory of {gpu.name}"
    apart = seconds_apart(spec, precision, gpu)
    if together <= apart:
        return None
    return (
        f"modelled at {together * 1e6:.1f} us as one kernel on {gpu.name}, {apart * 1e6:.1f} us as "
        "several"
    )


@functools.lru_cache(maxsize=4096)
def modelled(spec: Spec, precision: str, gpu: Gpu, residual: bool = False) -> Modelled:
    """The modelled time of an operator as one kernel, with the configuration that is chosen.

    Where products are the library's, the time is that of our kernels on the same chip if Triton
    could use its tensor cores: a library's are taken to be as good.

    Args:
        residual: whether a convolution's epilogue reads a tensor like its output.
    """
    if isinstance(spec, PoolLinearSpec):
        return _pool_linear(spec, precision, gpu)
    library = why_library(gpu) is not None
    gpu = as_if_ours(gpu)
    if isinstance(spec, BottleneckSpec):
        tail = choose_bottleneck(spec, precision, gpu)
        if tail is None:
            return _impossible(spec, precision)
        return Modelled(estimate_bottleneck(spec, tail, precision, gpu), _words(tail))
    if isinstance(spec, StemSpec):
        return _stem(spec, precision, gpu)
    config = choose_conv2d(spec, precision, gpu)
    found = estimate_conv2d(spec, config, precision, gpu, residual)
    if library:
        return Modelled(found, "library")
    return Modelled(found, _words(config), 1 if config.split_k == 1 else 2)


def pooling(moved_bytes: float, gpu: Gpu) -> Modelled:
    """A pooling, an addition, a change of layout: what reads and writes and computes little."""
    return Modelled(streaming(moved_bytes, 0.0, gpu), "")


def seconds_apart(spec: Spec, precision: str, gpu: Gpu) -> float:
    """The modelled time of the fastest way to the same tensors other than as one kernel."""
    if isinstance(spec, BottleneckSpec):
        ways = [_alone(part, precision, gpu, residual) for part, residual in _parts(spec)]
        found = [sum(ways)]
        if spec.next_k is not None:
            rest = replace(spec, next_k=None)
            found.append(_fastest(rest, precision, gpu) + _alone(_next(spec), precision, gpu))
        if spec.shortcut is not None:
            rest = replace(spec, shortcut=None)
            found.append(_fastest(rest, precision, gpu) + _alone(spec.shortcut, precision, gpu))
        return min(found)
    if isinstance(spec, StemSpec):
        conv = spec.conv
        between = conv.n * conv.k * conv.p * conv.q
        pooled = conv.n * conv.k * spec.p * spec.q
        moved = (between + pooled) * ELEMENT_BYTES[precision]
        return _alone(conv, precision, gpu) + streaming(moved, 0.0, gpu).seconds
    if isinstance(spec, PoolLinearSpec):
        size = ELEMENT_BYTES[precision]
        moved = spec.n * spec.c * (spec.h * spec.w + 1) * size
        product = ConvSpec(spec.n, spec.c, 1, 1, spec.k, 1, 1)
        return streaming(moved, 0.0, gpu).seconds + _alone(product, precision, gpu)
    return _alone(spec, precision, gpu)


def _parts(spec: BottleneckSpec) -> list[tuple[ConvSpec, bool]]:
    """Its convolutions by themselves, each with whether it adds the residual."""
    conv = spec.conv
    parts = [
        (conv, False),
        (ConvSpec(conv.n, conv.k, conv.p, conv.q, spec.expand_k, 1, 1), True),
    ]
    if spec.shortcut is not None:
        parts.append((spec.shortcut, False))
    if spec.next_k is not None:
        parts.append((_next(spec), False))
    return parts


def _next(spec: BottleneckSpec) -> ConvSpec:
    assert spec.next_k is not None
    conv = spec.conv
    return ConvSpec(conv.n, spec.expand_k, conv.p, conv.q, spec.next_k, 1, 1)


def _fastest(spec: BottleneckSpec, precision: str, gpu: Gpu) -> float:
    together = modelled(spec, precision, gpu).estimate.seconds
    return min(together, seconds_apart(spec, precision, gpu))


def _alone(spec: ConvSpec, precision: str, gpu: Gpu, residual: bool = False) -> float:
    return modelled(spec, precision, gpu, residual).estimate.seconds


def _stem(spec: StemSpec, precision: str, gpu: Gpu) -> Modelled:
    """As the convolution alone, with what its tiles share computed twice and only maxima written.

    A tile of 8 x 8 pooled pixels needs its windows' rows and columns, one more on each side.
    """
    side = 8
    rows, columns = (
        ((side - 1) * step + size) / (side * step)
        for step, size in zip(spec.pool_stride, spec.pool_kernel, strict=True)
    )
    config = choose_conv2d(spec.conv, precision, gpu)
    alone = estimate_conv2d(spec.conv, config, precision, gpu)
    moved = float(least_bytes(spec, precision))
    products = alone.flops * max(1.0, rows * columns)
    seconds = LAUNCH_S + max(
        products / (gpu.flops[precision] * MATRIX_SHARE),
        moved / (gpu.memory_bytes_per_s * MEMORY_SHARE),
        2 * LATENCY_S,
    )
    return Modelled(replace(alone, seconds=seconds, bytes=moved), "")


def _pool_linear(spec: PoolLinearSpec, precision: str, gpu: Gpu) -> Modelled:
    """Every program reads its image anew, through L2; products are plain float32 arithmetic."""
    config = choose_pool_linear(spec, gpu)
    size = ELEMENT_BYTES[precision]
    programs = spec.n * math.ceil(spec.k / config.block_n)
    if programs == 0:
        return Modelled(NOTHING, _words(config))
    pixels = spec.h * spec.w
    rows = config.block_n + math.ceil(pixels / config.block_p) * config.block_p
    numbers = config.block_k * rows
    loop = Loop(
        steps=math.ceil(spec.c / config.block_k),
        flops=2.0 * numbers,
        fetched_bytes=config.block_k * (pixels + config.block_n) * size,
        instructions=40 + 3.0 * numbers / (config.num_warps * gpu.architecture.warp_size),
        stages=1,
    )
    work = Work(
        programs=programs,
        num_warps=config.num_warps,
        registers=64,
        shared_bytes=2048,
        loops=(loop,),
        bytes=least_bytes(spec, precision),
        flops=float(2 * spec.n * spec.c * (spec.k + pixels)),
    )
    return Modelled(estimate(work, "fp32", gpu), _words(config))


def _impossible(spec: Spec, precision: str) -> Modelled:
    moved = float(least_bytes(spec, precision))
    return Modelled(Estimate(math.inf, moved, 0.0, math.inf, "does not fit"), "")


def _words(config: object) -> str:
    """``block_m=128 block_n=64 ...`` without what has its usual value."""
    given = asdict(config)  # type: ignore[call-overload]
    usual = {"split_k": 1, "group_m": 8, "descriptors": False}
    return " ".join(f"{k}={v}" for k, v in given.items() if usual.get(k, "") != v)
