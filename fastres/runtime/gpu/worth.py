"""Which blocks become one kernel: where there is one, it fits, and the cost model says so."""

from __future__ import annotations

from fastres.kernels.configs import bottleneck, stem
from fastres.kernels.configs.fusing import why_not_fused
from fastres.kernels.gpus import Gpu
from fastres.passes.fuse_blocks import BlockSpec, Worth
from fastres.spec import BottleneckSpec, StemSpec


def by_model(precision: str, gpu: Gpu) -> Worth:
    """By the modelled time on a GPU."""

    def worth(spec: BlockSpec) -> str | None:
        reason = if_supported(spec)
        if reason is None and isinstance(spec, StemSpec):
            fits = stem.choose_stem(spec, precision, gpu) is not None
            reason = None if fits else f"its tiles do not fit on {gpu.name}"
        return reason or why_not_fused(spec, precision, gpu)

    return worth


def if_supported(spec: BlockSpec) -> str | None:
    """Wherever a kernel can: under the interpreter, where time means nothing."""
    if isinstance(spec, BottleneckSpec):
        return bottleneck.supports(spec)
    if isinstance(spec, StemSpec):
        return stem.supports(spec)
    return None


def never(spec: BlockSpec) -> str | None:
    """Each operator by itself: what fusing is compared with."""
    return "not asked for"
