"""Launches of the stem of int8: checks, grid, constants; and a function that runs them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastres.errors import OptionError
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.launch.checks import check_tensor, wide
from fastres.kernels.launch.conv2d import channels_last
from fastres.kernels.launch.quantized_conv2d import Rescaling, check_exact_activation
from fastres.kernels.launch.stem import (
    geometry,
    grid,
    last_pixel,
    pack_stem,
    sizes,
    stem_spec,
)
from fastres.kernels.packing import pack_quantized_bias
from fastres.kernels.spec import StemSpec
from fastres.kernels.triton.quantized_stem import quantized_stem_kernel
from fastres.kernels.tuning.gpus import Gpu, by_name
from fastres.kernels.tuning.stem import StemConfig, choose_stem, row_layout, supports

PRECISION = "int8"


def quantized_stem_calls(
    x: Tensor,
    packed: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    out: Tensor,
    spec: StemSpec,
    activation: str,
    rescaling: Rescaling,
    config: StemConfig,
) -> list[KernelCall]:
    """Launches of ``quantized.quantized_conv2d_max_pool2d`` into ``out``: one, or none if empty.

    Args:
        x: [N, C, H, W] uint8, channels-last and dense; also on "meta".
        packed: the weight as ``stem.pack_stem`` gives it, int8.
        bias: [K] int32, as ``packing.pack_quantized_bias`` gives it.
        multiplier: [K] float32, as ``Rescaling.multipliers`` gives it.
        out: [N, K, P', Q'] uint8, channels-last and dense.
        spec: the stem, ``quantized``.
        activation: one whose numbers are the definition's on every chip.
        rescaling: scales and zero points, without a residual's.
        config: how to launch.

    Raises:
        InputError: a tensor has another shape, dtype, device or memory format.
        OptionError: no such activation, no scale, a spec of floats, or a stem that
            ``tuning.stem.supports`` refuses.
    """
    refusal = supports(spec)
    if refusal is not None:
        raise OptionError(f"{spec}: {refusal}; run convolution and pool one by one")
    if not spec.quantized or spec.uint8:
        raise OptionError(f"{spec}: expected quantized=True and uint8=False")
    if rescaling.scale is None:
        raise OptionError("scale=None: expected that of the bytes that are pooled")
    check_exact_activation(activation)
    conv = spec.conv
    depth = conv.r * row_layout(spec, 1).size
    for name, tensor, shape, dtype in (
        ("x", x, (conv.n, conv.c, conv.h, conv.w), torch.uint8),
        ("packed weight", packed, (conv.k, depth), torch.int8),
        ("bias", bias, (conv.k,), torch.int32),
        ("multiplier", multiplier, (conv.k,), torch.float32),
        ("out", out, (conv.n, conv.k, spec.p, spec.q), torch.uint8),
    ):
        check_tensor(name, tensor, x, shape, dtype)
    if out.numel() == 0:
        return []
    return [
        KernelCall(
            kernel=quantized_stem_kernel,
            grid=grid(spec, config),
            arguments={
                "x_ptr": x,
                "weight_ptr": packed,
                "bias_ptr": bias,
                "multiplier_ptr": multiplier,
                "out_ptr": out,
                **sizes(spec, config),
                "x_zero_point": float(rescaling.x_zero_point),
                **rescaling.arguments("none", activation),
            },
            constants={
                **geometry(spec, config, 1),
                "PADDING_IS_0": rescaling.x_zero_point == 0,
                "ACTIVATION": activation,
                "INPUT_PRECISION": "ieee",
                "INT64": wide(last_pixel(spec, config), x, packed, out),
            },
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            rounds_each=True,
        )
    ]


def quantized_conv2d_max_pool2d(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    activation: str,
    pool_kernel: Sequence[int],
    pool_stride: Sequence[int],
    pool_padding: Sequence[int],
    x_scale: float,
    x_zero_point: int,
    scale: float,
    zero_point: int,
    *,
    config: StemConfig | None = None,
    gpu: Gpu | None = None,
) -> Tensor:
    """``quantized.quantized_conv2d_max_pool2d`` by this kernel: packs, allocates, chooses and runs.

    Args:
        config: how to launch, or None for what ``choose_stem`` says.
        gpu: whose data sheet the choice is made by; an A100's unless told.

    The others, and the result, are as in
    :func:`fastres.kernels.quantized.quantized_conv2d_max_pool2d`; tensors may have any strides.

    Raises:
        InputError, OptionError: as :func:`quantized_stem_calls`; OptionError where no configuration
            fits the GPU.
    """
    pool = (pool_kernel, pool_stride, pool_padding)
    spec = stem_spec(x, weight, stride, padding, *pool, quantized=True)
    gpu = gpu or by_name("a100")
    config = config or choose_stem(spec, PRECISION, gpu)
    if config is None:
        refusal = supports(spec) or f"nothing fits {gpu.name} in {PRECISION}"
        raise OptionError(f"{spec}: {refusal}; run convolution and pool one by one")
    rescaling = Rescaling(x_scale, x_zero_point, scale, zero_point)
    out = x.new_empty(spec.conv.n, spec.p, spec.q, spec.conv.k).permute(0, 3, 1, 2)
    for call in quantized_stem_calls(
        channels_last(x),
        pack_stem(weight, spec),
        pack_quantized_bias(bias, weight, x_zero_point),
        rescaling.multipliers(weight_scale, "none", activation),
        out,
        spec,
        activation,
        rescaling,
        config,
    ):
        call.run()
    return out
