"""What each operator costs by the model, and whether one kernel for several operators pays.

A fused kernel is compared with the fastest other way to the same tensors: all its parts by
themselves, or a smaller fused kernel and the rest by itself.
"""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass, replace

from fastres.kernels.spec import BottleneckSpec, ConvSpec, PoolLinearSpec, StemSpec
from fastres.kernels.tuning import bottleneck, stem
from fastres.kernels.tuning.bottleneck import choose_bottleneck, estimate_bottleneck
from fastres.kernels.tuning.conv2d import choose_conv2d, estimate_conv2d
from fastres.kernels.tuning.cost import Estimate, streaming
from fastres.kernels.tuning.gpus import Gpu
from fastres.kernels.tuning.pooling import choose_pool_linear, estimate_pool_linear
from fastres.kernels.tuning.stem import choose_stem, estimate_stem
from fastres.kernels.tuning.traffic import ELEMENT_BYTES, Spec, least_bytes

TOSS_UP = 1.05
"""Modelled times this close are equal; then one kernel is taken, which moves fewer bytes."""


@dataclass(frozen=True)
class Modelled:
    """An operator's modelled time.

    Attributes:
        estimate: see :mod:`fastres.kernels.tuning.cost`; infinite seconds where nothing fits.
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
        reason = bottleneck.supports(spec)
    elif isinstance(spec, StemSpec):
        reason = stem.supports(spec)
    if reason is not None:
        return reason
    together = modelled(spec, precision, gpu).estimate.seconds
    if math.isinf(together):
        return f"its tiles do not fit into the registers and shared memory of {gpu.name}"
    unfused = seconds_unfused(spec, precision, gpu)
    if together <= TOSS_UP * unfused:
        return None
    return (
        f"modelled at {together * 1e6:.1f} us as one kernel on {gpu.name}, {unfused * 1e6:.1f} us "
        "as several"
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
        head = choose_pool_linear(spec, gpu)
        return Modelled(estimate_pool_linear(spec, head, precision, gpu), _words(head))
    library = why_library(gpu) is not None
    gpu = as_if_ours(gpu)
    if isinstance(spec, BottleneckSpec):
        tail = choose_bottleneck(spec, precision, gpu)
        if tail is None:
            return _impossible(spec, precision)
        return Modelled(estimate_bottleneck(spec, tail, precision, gpu), _words(tail))
    if isinstance(spec, StemSpec):
        tile = choose_stem(spec, precision, gpu)
        if tile is None:
            return _impossible(spec, precision)
        return Modelled(estimate_stem(spec, tile, precision, gpu), _words(tile))
    config = choose_conv2d(spec, precision, gpu)
    found = estimate_conv2d(spec, config, precision, gpu, residual)
    if library:
        return Modelled(found, "library")
    return Modelled(found, _words(config), 1 if config.split_k == 1 else 2)


def pooling(moved_bytes: float, gpu: Gpu) -> Modelled:
    """A pooling, an addition, a change of layout: what reads and writes and computes little."""
    return Modelled(streaming(moved_bytes, 0.0, gpu), "")


def seconds_unfused(spec: Spec, precision: str, gpu: Gpu) -> float:
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
    if isinstance(spec, StemSpec) and spec.uint8:
        # The image cast by torch, then normalised, then what a stem of numbers takes.
        image = spec.conv.n * spec.conv.c * spec.conv.h * spec.conv.w
        size = ELEMENT_BYTES[precision]
        before = (image * (1 + size), image * 2 * size)
        numbers = replace(spec, uint8=False)
        return sum(streaming(moved, 0.0, gpu).seconds for moved in before) + min(
            modelled(numbers, precision, gpu).estimate.seconds,
            seconds_unfused(numbers, precision, gpu),
        )
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
    return min(together, seconds_unfused(spec, precision, gpu))


def _alone(spec: ConvSpec, precision: str, gpu: Gpu, residual: bool = False) -> float:
    return modelled(spec, precision, gpu, residual).estimate.seconds


def _impossible(spec: Spec, precision: str) -> Modelled:
    moved = float(least_bytes(spec, precision))
    return Modelled(Estimate(math.inf, moved, 0.0, math.inf, "does not fit"), "")


def _words(config: object) -> str:
    """``block_m=128 block_n=64 ...`` without what has its usual value."""
    fields_of = asdict(config)  # type: ignore[call-overload]
    usual = {"split_k": 1, "group_m": 8, "descriptors": False, "fused_sum": False}
    usual |= {"box_h": 0, "box_w": 0}
    return " ".join(f"{k}={v}" for k, v in fields_of.items() if usual.get(k, "") != v)
