"""Launches of the bottleneck's tail of int8; what it saves is told in :mod:`.bottleneck`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastres.errors import InputError, OptionError
from fastres.kernels.launch.bottleneck import (
    bottleneck_spec,
    check_or_none,
    geometry,
    pack_bottleneck,
    pack_pointwise,
)
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.launch.checks import wide
from fastres.kernels.launch.conv2d import channels_last
from fastres.kernels.launch.quantized_conv2d import Rescaling
from fastres.kernels.packing import pack_quantized_bias
from fastres.kernels.spec import BottleneckSpec
from fastres.kernels.triton.quantized_bottleneck import quantized_bottleneck_kernel
from fastres.kernels.tuning.bottleneck import (
    BottleneckConfig,
    choose_bottleneck,
    chunks_of,
    least_depth,
    supports,
)
from fastres.kernels.tuning.gpus import Gpu, by_name

PRECISION = "int8"


class Filters(NamedTuple):
    """What a kernel reads of one of the block's convolutions.

    Attributes:
        weight: int8, packed.
        bias: [K] int32, as ``packing.pack_quantized_bias`` gives it.
        multiplier: [K] float32, as ``Rescaling.multipliers`` gives it.
    """

    weight: Tensor
    bias: Tensor
    multiplier: Tensor


@dataclass(frozen=True)
class BlockRescaling:
    """What the numbers of the block's four convolutions count.

    Attributes:
        conv, expand, shortcut, following: of each; those of convolutions that there are not count
            for nothing.
    """

    conv: Rescaling
    expand: Rescaling
    shortcut: Rescaling
    following: Rescaling

    @staticmethod
    def of(
        scales: Sequence[float], zero_points: Sequence[int], has_shortcut: bool
    ) -> BlockRescaling:
        """Of the operator's ``scales`` and ``zero_points``, six each.

        Raises:
            OptionError: they are not six each, or a zero point is no uint8.
        """
        if len(scales) != 6 or len(zero_points) != 6:
            raise OptionError(
                f"{len(scales)} scales and {len(zero_points)} zero points: expected six each, of "
                "x, narrow, residual, the shortcut's result, wide and next"
            )
        x, narrow, residual, beside, last, following = zip(scales, zero_points, strict=True)
        identity = beside if has_shortcut else residual
        return BlockRescaling(
            conv=Rescaling(*x, *narrow),
            expand=Rescaling(*narrow, *last, *identity),
            shortcut=Rescaling(*residual, *beside),
            following=Rescaling(*last, *following),
        )

    def arguments(self) -> dict[str, float]:
        """Those of the kernel, by name."""
        expand = self.expand.arguments("none", "relu")
        return {
            "x_zero_point": float(self.conv.x_zero_point),
            "narrow_zero_point": float(self.conv.zero_point),
            "identity_zero_point": expand["residual_zero_point"],
            "identity_ratio": expand["residual_ratio"],
            "zero_point": expand["zero_point"],
            "next_zero_point": float(self.following.zero_point),
        }


def quantized_bottleneck_calls(
    x: Tensor,
    conv: Filters,
    expand: Filters,
    residual: Tensor,
    shortcut: Filters | None,
    following: Filters | None,
    out: Tensor,
    next_out: Tensor | None,
    spec: BottleneckSpec,
    rescaling: BlockRescaling,
    config: BottleneckConfig,
) -> list[KernelCall]:
    """Launches of ``quantized.quantized_bottleneck`` into ``out`` and ``next_out``: one, or none.

    Args:
        x: [N, C, H, W] uint8, channels-last and dense; also on "meta".
        conv: its weight as ``bottleneck.pack_bottleneck`` gives it.
        expand, shortcut, following: weights [K2, K], [K2, C2], [K3, K2], contiguous; the last two
            may be None.
        residual: like ``out``, and may be ``out`` itself; with a shortcut the block's input
            [N, C2, H2, W2], which may not.
        out: [N, K2, P, Q] uint8, channels-last and dense.
        next_out: [N, K3, P, Q] likewise, None without ``following``.
        spec: the block; with a shortcut or a next head exactly where there are such filters.
        rescaling: scales and zero points.
        config: how to launch; of steps and blocks of 32 at least.

    Raises:
        InputError: a tensor is missing or has another shape, dtype, device or memory format.
        OptionError: a block that ``tuning.bottleneck.supports`` refuses, or a configuration of too
            short steps.
    """
    refusal = supports(spec)
    if refusal is not None:
        raise OptionError(f"{spec}: {refusal}; run its convolutions one by one")
    least = least_depth(PRECISION)
    if config.block_k < least or config.block_n < least:
        raise OptionError(f"{config}: expected block_k and block_n of {least} bytes or more")
    images, k = spec.conv, spec.expand_k
    results = (images.n, k, images.p, images.q)
    beside, next_k = spec.shortcut, spec.next_k
    identity = results if beside is None else (beside.n, beside.c, beside.h, beside.w)
    depth = images.r * images.s * chunks_of(images).channels
    for name, tensor, shape in (
        ("x", x, (images.n, images.c, images.h, images.w)),
        ("residual", residual, identity),
        ("out", out, results),
        ("next_out", next_out, None if next_k is None else (images.n, next_k, *results[2:])),
    ):
        check_or_none(name, tensor, x, shape, torch.uint8)
    for name, filters, matrix in (
        ("conv", conv, (images.k, depth)),
        ("expand", expand, (k, images.k)),
        ("shortcut", shortcut, None if beside is None else (k, beside.c)),
        ("following", following, None if next_k is None else (next_k, k)),
    ):
        weight, bias, multiplier = (None, None, None) if filters is None else filters
        vector = None if matrix is None else matrix[:1]
        check_or_none(f"{name}.weight", weight, x, matrix, torch.int8)
        check_or_none(f"{name}.bias vector", bias, x, vector, torch.int32)
        check_or_none(f"{name}.multiplier", multiplier, x, vector, torch.float32)
    rows = results[0] * results[2] * results[3]
    if rows == 0:
        return []
    none = (None, None, None)
    products = {
        "": conv,
        "expand_": expand,
        "shortcut_": shortcut or none,
        "next_": following or none,
    }
    tensors = {}
    for name, (weight, bias, multiplier) in products.items():
        tensors[{"": "weight_ptr", "next_": "next_weight_ptr"}.get(name, f"{name}ptr")] = weight
        tensors[f"{name}bias_ptr"], tensors[f"{name}multiplier_ptr"] = bias, multiplier
    return [
        KernelCall(
            kernel=quantized_bottleneck_kernel,
            grid=(math.ceil(rows / config.block_m), 1, 1),
            arguments={
                "x_ptr": x,
                **tensors,
                "residual_ptr": residual,
                "out_ptr": out,
                "next_out_ptr": next_out,
                "M": rows,
                "H": images.h,
                "W": images.w,
                "P": images.p,
                "Q": images.q,
                "RESIDUAL_H": identity[2],
                "RESIDUAL_W": identity[3],
                **rescaling.arguments(),
            },
            constants={
                **geometry(spec, config, PRECISION),
                "PADDING_IS_0": rescaling.conv.x_zero_point == 0,
                "INT64": wide(
                    rows + config.block_m,
                    *(x, residual, out, next_out),
                    *(product[0] for product in products.values()),
                ),
            },
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            rounds_each=True,
        )
    ]


def quantized_bottleneck(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    expand_weight: Tensor,
    expand_weight_scale: Tensor,
    expand_bias: Tensor,
    residual: Tensor,
    shortcut_weight: Tensor | None,
    shortcut_weight_scale: Tensor | None,
    shortcut_bias: Tensor | None,
    shortcut_stride: Sequence[int],
    next_weight: Tensor | None,
    next_weight_scale: Tensor | None,
    next_bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    scales: Sequence[float],
    zero_points: Sequence[int],
    *,
    config: BottleneckConfig | None = None,
    gpu: Gpu | None = None,
) -> list[Tensor]:
    """``quantized.quantized_bottleneck`` by this kernel: packs, allocates, chooses and runs.

    Args:
        config: how to launch, or None for what ``choose_bottleneck`` says.
        gpu: whose data sheet the choice is made by; an A100's unless told.

    The others, and the result, are as in :func:`fastres.kernels.quantized.quantized_bottleneck`;
    tensors may have any strides.

    Raises:
        InputError, OptionError: as :func:`quantized_bottleneck_calls`; OptionError where no
            configuration fits the GPU.
    """
    spec = bottleneck_spec(
        *(x, weight, expand_weight, residual, shortcut_weight, shortcut_stride, next_weight),
        *(stride, padding, dilation, groups, True),
    )
    gpu = gpu or by_name("a100")
    refusal = supports(spec)
    if refusal is not None:
        raise OptionError(f"{spec}: {refusal}; run its convolutions one by one")
    config = config or choose_bottleneck(spec, PRECISION, gpu)
    if config is None:
        raise OptionError(
            f"{spec}: too wide for one kernel on {gpu.name}; run its convolutions one by one"
        )
    rescaling = BlockRescaling.of(scales, zero_points, shortcut_weight is not None)
    conv = spec.conv

    def images(k: int) -> Tensor:
        return x.new_empty(conv.n, conv.p, conv.q, k).permute(0, 3, 1, 2)

    def pointwise(
        what: str, weight: Tensor | None, scale: Tensor | None, bias: Tensor | None, unit: Rescaling
    ) -> Filters | None:
        if weight is None:
            return None
        if scale is None or bias is None:
            raise InputError(f"{what}_weight without its scale and bias: pass all three or none")
        packed = pack_quantized_bias(bias, weight, unit.x_zero_point)
        # Behind ReLU and behind nothing, numbers count the same.
        return Filters(pack_pointwise(weight), packed, unit.multipliers(scale, "none", "relu"))

    expand = pointwise("expand", expand_weight, expand_weight_scale, expand_bias, rescaling.expand)
    assert expand is not None
    out = images(spec.expand_k)
    next_out = None if spec.next_k is None else images(spec.next_k)
    for call in quantized_bottleneck_calls(
        channels_last(x),
        Filters(
            pack_bottleneck(weight, groups),
            pack_quantized_bias(bias, weight, rescaling.conv.x_zero_point),
            rescaling.conv.multipliers(weight_scale, "none", "relu"),
        ),
        expand,
        channels_last(residual),
        pointwise(
            "shortcut", shortcut_weight, shortcut_weight_scale, shortcut_bias, rescaling.shortcut
        ),
        pointwise("next", next_weight, next_weight_scale, next_bias, rescaling.following),
        out,
        next_out,
        spec,
        rescaling,
        config,
    ):
        call.run()
    return [out] if next_out is None else [out, next_out]
