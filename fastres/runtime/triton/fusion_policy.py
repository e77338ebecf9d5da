"""Which blocks become one kernel, and which images get channels of zeros: by the cost model."""

from __future__ import annotations

from fastres.kernels.spec import BottleneckSpec, ConvSpec, StemSpec
from fastres.kernels.tuning import bottleneck, stem
from fastres.kernels.tuning.fusing import modelled, why_library, why_not_fused
from fastres.kernels.tuning.gpus import Gpu
from fastres.kernels.tuning.traffic import ELEMENT_BYTES
from fastres.runtime.triton.fill_channels import Pays
from fastres.runtime.triton.fuse_blocks import BlockSpec, FusionPolicy


def by_model(precision: str, gpu: Gpu) -> FusionPolicy:
    """By the modelled time on a GPU, of blocks of floats in ``precision``."""

    possible = if_it_fits(precision, gpu)

    def why_not(spec: BlockSpec) -> str | None:
        return (
            why_library(gpu)
            or possible(spec)
            or why_not_fused(spec, _precision(spec, precision), gpu)
        )

    return why_not


def wherever_it_fits(precision: str, gpu: Gpu) -> FusionPolicy:
    """As :func:`if_it_fits`, and on a GPU whose products are the library's nowhere."""

    possible = if_it_fits(precision, gpu)

    def why_not(spec: BlockSpec) -> str | None:
        return why_library(gpu) or possible(spec)

    return why_not


def if_it_fits(precision: str, gpu: Gpu) -> FusionPolicy:
    """Wherever a kernel can on a GPU, also where the model finds several kernels faster.

    The fewest launches and bytes that there can be.
    """

    def why_not(spec: BlockSpec) -> str | None:
        reason = if_supported(spec)
        if reason is None and not _fits(spec, precision, gpu):
            reason = f"its tiles do not fit on {gpu.name}"
        return reason

    return why_not


def _fits(spec: BlockSpec, precision: str, gpu: Gpu) -> bool:
    if isinstance(spec, BottleneckSpec):
        return bottleneck.fits(spec, _precision(spec, precision), gpu.architecture)
    if isinstance(spec, StemSpec):
        return stem.choose_stem(spec, _precision(spec, precision), gpu) is not None
    return True


def _precision(spec: BlockSpec, of_floats: str) -> str:
    quantized = isinstance(spec, (BottleneckSpec, StemSpec)) and spec.quantized
    return "int8" if quantized else of_floats


def if_supported(spec: BlockSpec) -> str | None:
    """Wherever a kernel can: under the interpreter, where time means nothing."""
    if isinstance(spec, BottleneckSpec):
        return bottleneck.supports(spec)
    if isinstance(spec, StemSpec):
        return stem.supports(spec)
    return None


def filling_pays(precision: str, gpu: Gpu) -> Pays:
    """Where the model finds the convolution faster on filled channels, the copy of more included.

    Of a stem both ways, as one kernel and as convolution and pool, gain alike, so that the
    convolution alone can tell.
    """

    def pays(narrow: ConvSpec, wide: ConvSpec) -> bool:
        if why_library(gpu) is not None or not wide.n * wide.k * wide.p * wide.q:
            return False
        more = wide.n * (wide.c - narrow.c) * wide.h * wide.w * ELEMENT_BYTES[precision]
        copied = more / gpu.memory_bytes_per_s
        unfilled, filled = (modelled(s, precision, gpu).estimate.seconds for s in (narrow, wide))
        return filled + copied < unfilled

    return pays


def pays_wherever(narrow: ConvSpec, wide: ConvSpec) -> bool:
    """Wherever it can be done: under the interpreter, where time means nothing."""
    return True


def never(spec: BlockSpec) -> str | None:
    """Each operator by itself: what fusing is compared with."""
    return "not asked for"
