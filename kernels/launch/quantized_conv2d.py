"""Launches of the quantised convolution kernels; a classifier is one of images of one pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastres.errors import InputError, OptionError
from fastres.kernels.activations import ACTIVATIONS
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.launch.checks import check_activation, check_tensor, wide
from fastres.kernels.launch.conv2d import channels_last, geometry, spec_of
from fastres.kernels.launch.linear import linear_spec
from fastres.kernels.launch.pointwise import tiled, why_no_descriptors
from fastres.kernels.launch.split_sums import (
    SUM_BLOCK,
    checked_counters,
    partial_bytes,
    partial_sums,
)
from fastres.kernels.packing import (
    pack_conv2d,
    pack_linear,
    pack_quantized_bias,
    packed_shape,
    super_groups,
)
from fastres.kernels.quantized import multipliers, output_unit, ratio
from fastres.kernels.spec import ConvSpec
from fastres.kernels.triton.quantized_conv2d import (
    quantized_conv2d_kernel,
    quantized_sum_of_splits_kernel,
)
from fastres.kernels.triton.quantized_pointwise import quantized_pointwise_kernel
from fastres.kernels.tuning.conv2d import Conv2dConfig, choose_conv2d, used_splits
from fastres.kernels.tuning.conv2d import counters as counters_of
from fastres.kernels.tuning.gpus import Gpu, by_name

LEAST_DEPTH = 32
"""Products of a step: matrix units multiply so many bytes at once."""


@dataclass(frozen=True)
class Rescaling:
    """What the numbers of a quantised convolution or classifier count.

    Attributes:
        x_scale, x_zero_point: of the input.
        scale, zero_point: of the result; without a scale it is float32.
        residual_scale, residual_zero_point: of the residual.

    Raises:
        OptionError: a zero point is no uint8.
    """

    x_scale: float
    x_zero_point: int
    scale: float | None
    zero_point: int
    residual_scale: float = 1.0
    residual_zero_point: int = 0

    def __post_init__(self) -> None:
        check_zero_points(
            x_zero_point=self.x_zero_point,
            zero_point=self.zero_point,
            residual_zero_point=self.residual_zero_point,
        )

    def unit(self, *activations: str) -> float:
        """What numbers count in front of the last rounding; see ``quantized.output_unit``."""
        return 1.0 if self.scale is None else output_unit(activations, self.scale)

    def multipliers(self, weight_scale: Tensor, *activations: str) -> Tensor:
        """[K] float32: what sums of products are multiplied by."""
        return multipliers(self.x_scale, weight_scale, self.unit(*activations))

    def arguments(self, *activations: str) -> dict[str, float]:
        """Those of a kernel, by name."""
        unit = self.unit(*activations)
        return {
            "residual_zero_point": float(self.residual_zero_point),
            "residual_ratio": ratio(self.residual_scale, unit),
            "ratio": 1.0 if self.scale is None else ratio(unit, self.scale),
            "zero_point": float(self.zero_point),
        }


def quantized_conv2d_calls(
    x: Tensor,
    packed: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    residual: Tensor | None,
    out: Tensor,
    spec: ConvSpec,
    pre_activation: str,
    activation: str,
    rescaling: Rescaling,
    config: Conv2dConfig,
    workspace: Tensor | None = None,
    counters: Tensor | None = None,
) -> list[KernelCall]:
    """Launches of ``quantized.quantized_conv2d`` into ``out``.

    Args:
        x: [N, C, H, W] uint8, channels-last and dense; also on "meta".
        packed: int8, the weight as ``packing.pack_conv2d`` gives it.
        bias: [K] int32, as ``packing.pack_quantized_bias`` gives it.
        multiplier: [K] float32, of ``rescaling.multipliers``.
        residual: like ``out``, or None. May be ``out`` itself.
        out: [N, K, P, Q], channels-last and dense; uint8, or float32 without a scale.
        spec: the convolution.
        pre_activation, activation: of :data:`fastres.kernels.activations.ACTIVATIONS`, without an
            exponential: that of a GPU is not the definition's.
        rescaling: scales and zero points.
        config: how to launch; of steps of :data:`LEAST_DEPTH` at least, without boxes.
        workspace: one-dimensional, contiguous int32 of at least ``workspace_bytes(...)`` bytes.
        counters: as in ``conv2d_launch.conv2d_calls``.

    Returns:
        No launch for an empty ``out``, two for split sums that are not added in the same launch,
        otherwise one. Where ``config`` asks for tensor descriptors and these tensors cannot have
        them, the launch's ``note`` says why.

    Raises:
        InputError: a tensor has another shape, dtype, device or memory format.
        OptionError: no such activation, or a configuration that these kernels do not take.
    """
    _check(x, packed, bias, multiplier, residual, out, spec, rescaling)
    for name in (pre_activation, activation):
        check_exact_activation(name)
    if config.block_k < LEAST_DEPTH or config.box_w:
        raise OptionError(
            f"{config}: expected steps of block_k={LEAST_DEPTH} bytes or more, and no boxes"
        )
    if out.numel() == 0:
        return []
    epilogue: dict[str, Any] = {
        "bias_ptr": bias,
        "multiplier_ptr": multiplier,
        **rescaling.arguments(pre_activation, activation),
    }
    finish: dict[str, Any] = {
        "PRE_ACTIVATION": pre_activation,
        "ACTIVATION": activation,
        "HAS_RESIDUAL": residual is not None,
    }
    note = ""
    if config.descriptors:
        reason = why_no_descriptors(spec, "int8", x, packed, residual, out)
        if reason is None and rescaling.scale is None:
            reason = "the result is float32"
        if reason is None:
            return [_pointwise_call(x, packed, residual, out, spec, config, epilogue, finish)]
        note = f"by pointers: {reason}"
    splits = used_splits(spec, config)
    partial = None if splits == 1 else partial_sums(workspace, out, splits, torch.int32)
    fused = config.fused_sum and splits > 1
    if fused:
        counters = checked_counters(counters, out, counters_of(spec, config))
    rows = spec.n * spec.p * spec.q
    groups = super_groups(spec.c, spec.k, spec.groups)
    grid_m = math.ceil(rows / config.block_m)
    grid_n = math.ceil(spec.k // groups / config.block_n)
    epilogue |= {"residual_ptr": residual, "out_ptr": out, "partial_ptr": partial}
    finish["SPLIT_K"] = splits
    main = KernelCall(
        kernel=quantized_conv2d_kernel,
        grid=(grid_m * grid_n * groups, splits, 1),
        arguments={
            "x_ptr": x,
            "weight_ptr": packed,
            "counter_ptr": counters if fused else None,
            "M": rows,
            "H": spec.h,
            "W": spec.w,
            "P": spec.p,
            "Q": spec.q,
            "x_zero_point": float(rescaling.x_zero_point),
            **epilogue,
        },
        constants={
            **geometry(spec),
            "PADDING_IS_0": rescaling.x_zero_point == 0,
            **finish,
            "INPUT_PRECISION": "ieee",
            "BLOCK_SIZE_M": config.block_m,
            "BLOCK_SIZE_N": config.block_n,
            "BLOCK_SIZE_K": config.block_k,
            "GROUP_M": config.group_m,
            "FUSED_SUM": fused,
            "INT64": wide(grid_m * config.block_m, x, packed, residual, out, partial),
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        note=note,
        rounds_each=True,
    )
    if splits == 1 or fused:
        return [main]
    blocks = math.ceil(out.numel() / SUM_BLOCK)
    total = KernelCall(
        kernel=quantized_sum_of_splits_kernel,
        grid=(blocks, 1, 1),
        arguments={**epilogue, "SIZE": out.numel()},
        constants={
            **finish,
            "ALL_K": spec.k,
            "BLOCK_SIZE": SUM_BLOCK,
            "INT64": wide(blocks * SUM_BLOCK, residual, out),
        },
        rounds_each=True,
    )
    return [main, total]


def _pointwise_call(
    x: Tensor,
    packed: Tensor,
    residual: Tensor | None,
    out: Tensor,
    spec: ConvSpec,
    config: Conv2dConfig,
    epilogue: dict[str, Any],
    finish: dict[str, Any],
) -> KernelCall:
    """The launch by descriptor; ``epilogue`` and ``finish`` are the kernel's last arguments."""
    rows = spec.n * spec.p * spec.q
    block_m, block_n, block_k = config.block_m, config.block_n, config.block_k
    out_block = [block_m, block_n]
    return KernelCall(
        kernel=quantized_pointwise_kernel,
        grid=(math.ceil(rows / block_m) * math.ceil(spec.k / block_n), 1, 1),
        arguments={
            "x_desc": tiled(x, spec.c, [block_m, block_k]),
            "weight_desc": tiled(packed, spec.c, [block_n, block_k]),
            "residual_desc": None if residual is None else tiled(residual, spec.k, out_block),
            "out_desc": tiled(out, spec.k, out_block),
            "M": rows,
            **epilogue,
        },
        constants={
            "C": spec.c,
            "K": spec.k,
            **finish,
            "INPUT_PRECISION": "ieee",
            "BLOCK_SIZE_M": block_m,
            "BLOCK_SIZE_N": block_n,
            "BLOCK_SIZE_K": block_k,
            "GROUP_M": config.group_m,
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        rounds_each=True,
    )


def quantized_linear_calls(
    x: Tensor,
    packed: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    out: Tensor,
    activation: str,
    rescaling: Rescaling,
    config: Conv2dConfig,
    workspace: Tensor | None = None,
    counters: Tensor | None = None,
) -> list[KernelCall]:
    """Launches of ``quantized.quantized_linear`` into ``out``.

    Args:
        x: [rows, C] uint8, contiguous.
        packed: [K, C] int8, contiguous.
        out: [rows, K] contiguous; uint8, or float32 without a scale.

    The others are as in :func:`quantized_conv2d_calls`; the spec that their sizes depend on is
    ``linear.linear_spec``'s.

    Raises:
        InputError, OptionError: as there.
    """
    if x.dim() != 2 or out.dim() != 2 or packed.dim() != 2:
        raise InputError(
            f"x {list(x.shape)}, weight {list(packed.shape)}, out {list(out.shape)}: expected two "
            "axes of each"
        )
    return quantized_conv2d_calls(
        x[:, :, None, None],
        packed,
        bias,
        multiplier,
        None,
        out[:, :, None, None],
        linear_spec(x.shape[0], x.shape[1], packed.shape[0]),
        "none",
        activation,
        rescaling,
        config,
        workspace,
        counters,
    )


def workspace_bytes(spec: ConvSpec, config: Conv2dConfig) -> int:
    """Size of the int32 partial sums, 0 without split sums."""
    return partial_bytes(spec, config)


def quantized_conv2d(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pre_activation: str,
    activation: str,
    x_scale: float,
    x_zero_point: int,
    residual_scale: float,
    residual_zero_point: int,
    scale: float,
    zero_point: int,
    *,
    config: Conv2dConfig | None = None,
    gpu: Gpu | None = None,
) -> Tensor:
    """``quantized.quantized_conv2d`` by these kernels: packs, allocates, chooses and runs.

    ``config`` and ``gpu`` are as in ``conv2d_launch.conv2d``; tensors may have any strides.

    Raises:
        InputError, OptionError: as :func:`quantized_conv2d_calls`.
    """
    spec = spec_of(x, weight, stride, padding, dilation, groups)
    config = config or choose_conv2d(spec, "int8", gpu or by_name("a100"))
    rescaling = Rescaling(
        x_scale, x_zero_point, scale, zero_point, residual_scale, residual_zero_point
    )
    out = x.new_empty(spec.n, spec.p, spec.q, spec.k).permute(0, 3, 1, 2)
    calls = quantized_conv2d_calls(
        channels_last(x),
        pack_conv2d(weight, groups),
        pack_quantized_bias(bias, weight, x_zero_point),
        rescaling.multipliers(weight_scale, pre_activation, activation),
        None if residual is None else channels_last(residual),
        out,
        spec,
        pre_activation,
        activation,
        rescaling,
        config,
        *_scratch(spec, config, x),
    )
    for call in calls:
        call.run()
    return out


def quantized_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    activation: str,
    x_scale: float,
    x_zero_point: int,
    scale: float | None,
    zero_point: int,
    *,
    config: Conv2dConfig | None = None,
    gpu: Gpu | None = None,
) -> Tensor:
    """``quantized.quantized_linear`` by these kernels; see :func:`quantized_conv2d`."""
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1]:
        raise InputError(
            f"x of shape {list(x.shape)} and weight of shape {list(weight.shape)}: expected "
            "[rows, inputs] and [outputs, inputs]"
        )
    spec = linear_spec(x.shape[0], x.shape[1], weight.shape[0])
    config = config or choose_conv2d(spec, "int8", gpu or by_name("a100"))
    rescaling = Rescaling(x_scale, x_zero_point, scale, zero_point)
    dtype = torch.float32 if scale is None else torch.uint8
    out = x.new_empty(x.shape[0], weight.shape[0], dtype=dtype)
    calls = quantized_linear_calls(
        x.contiguous(),
        pack_linear(weight),
        pack_quantized_bias(bias, weight, x_zero_point),
        rescaling.multipliers(weight_scale, activation),
        out,
        activation,
        rescaling,
        config,
        *_scratch(spec, config, x),
    )
    for call in calls:
        call.run()
    return out


def why_not_exact(*activations: str) -> str | None:
    """None, or which of these activations no GPU computes as int8's definition does."""
    for name in activations:
        if not ACTIVATIONS[name].exact:
            return f"{name} has an exponential, whose last bit is another on every chip"
    return None


def check_exact_activation(name: str) -> None:
    """Refuse an unknown activation, and one that :func:`why_not_exact` has something against.

    Raises:
        OptionError: as it says.
    """
    check_activation(name)
    reason = why_not_exact(name)
    if reason is not None:
        exact = ", ".join(each for each in ACTIVATIONS if why_not_exact(each) is None)
        raise OptionError(f"activation {name!r}: {reason}; expected one of {exact}")


def check_zero_points(**zero_points: int) -> None:
    """Refuse numbers that uint8 does not hold.

    Raises:
        OptionError: as it says.
    """
    for name, zero_point in zero_points.items():
        if not 0 <= zero_point <= 255:
            raise OptionError(f"{name}={zero_point}: expected 0 to 255")


def _scratch(spec: ConvSpec, config: Conv2dConfig, x: Tensor) -> tuple[Tensor | None, ...]:
    """Workspace and counters, as far as they are needed."""
    size, count = workspace_bytes(spec, config) // 4, counters_of(spec, config)
    return (
        x.new_empty(size, dtype=torch.int32) if size else None,
        x.new_zeros(count, dtype=torch.int32) if count else None,
    )


def _check(
    x: Tensor,
    packed: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    residual: Tensor | None,
    out: Tensor,
    spec: ConvSpec,
    rescaling: Rescaling,
) -> None:
    images = (spec.n, spec.k, spec.p, spec.q)
    shapes: dict[str, tuple[Any, ...]] = {
        "x": (x, (spec.n, spec.c, spec.h, spec.w), torch.uint8),
        "packed weight": (
            packed,
            packed_shape(spec.c, spec.k, spec.r, spec.s, spec.groups),
            torch.int8,
        ),
        "bias": (bias, (spec.k,), torch.int32),
        "multiplier": (multiplier, (spec.k,), torch.float32),
        "out": (out, images, torch.float32 if rescaling.scale is None else torch.uint8),
    }
    if residual is not None:
        shapes["residual"] = (residual, images, torch.uint8)
    for name, (tensor, shape, dtype) in shapes.items():
        check_tensor(name, tensor, x, shape, dtype)
