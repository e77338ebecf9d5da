"""Launches of the stem: checks, grid, constants; and a function that runs them.

Where the image is given as pixels, ``uint8`` [N, H, W, C], it is normalised on the way in: per
channel ``x * scale + shift`` (see ``reference.normalise``), and zeros around it, as a convolution
of the normalised image has them. Folding scale and shift into the weights instead would be wrong
at the border, where the shift must not count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastres.dtypes import GPU_PRECISIONS
from fastres.errors import InputError, OptionError
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.launch.checks import check_activation, check_tensor, described, wide
from fastres.kernels.launch.conv2d import channels_last, precision_of
from fastres.kernels.packing import rounded
from fastres.kernels.spec import ConvSpec, StemSpec
from fastres.kernels.triton.stem import stem_kernel
from fastres.kernels.tuning.gpus import Gpu, by_name
from fastres.kernels.tuning.stem import (
    StemConfig,
    choose_stem,
    image_bytes,
    row_layout,
    supports,
    tiles,
)


def pack_stem(weight: Tensor, spec: StemSpec, precision: str | None = None) -> Tensor:
    """[K, C, R, S] -> [K, R * ROW] as ``stem_calls`` takes it; a copy.

    Args:
        weight: the convolution's.
        spec: the stem; how many numbers a row takes depends on the image's width, padding and
            bytes.
        precision: what it is multiplied in; as in ``packing.pack_conv2d``.
    """
    weight = rounded(weight, precision)
    layout = row_layout(spec, image_bytes(spec, weight.element_size()))
    k, c, r, s = weight.shape
    packed = weight.new_zeros(k, r, layout.size)
    packed[:, :, layout.lead : layout.lead + s * c] = weight.permute(0, 2, 3, 1).flatten(2)
    return packed.flatten(1)


def stem_calls(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    out: Tensor,
    spec: StemSpec,
    activation: str,
    config: StemConfig,
    precision: str,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> list[KernelCall]:
    """Launches of ``max_pool2d(activation(conv(x) + bias))`` into ``out``: one, or none if empty.

    Args:
        x: [N, C, H, W], channels-last and dense, in ``precision``'s dtype; also on "meta". Of a
            stem of bytes: uint8 [N, H, W, C], contiguous.
        packed: the weight as :func:`pack_stem` gives it, in ``precision``'s dtype.
        bias: [K] float32, or None.
        out: [N, K, P', Q'], channels-last and dense, in ``precision``'s dtype.
        spec: the stem.
        activation: of :data:`fastres.kernels.activations.ACTIVATIONS`.
        config: how to launch.
        precision: ``fp16``, ``bf16``, ``tf32`` or ``fp32``.
        scale, shift: [C] float32, of a stem of bytes.

    Raises:
        InputError: a tensor has another shape, dtype, device or memory format.
        OptionError: no such activation or precision, or a stem that ``configs.stem.supports``
            refuses.
    """
    refusal = supports(spec)
    if refusal is not None:
        raise OptionError(f"{spec}: {refusal}; run convolution and pool one by one")
    if precision not in GPU_PRECISIONS:
        raise OptionError(f"precision={precision!r}: expected one of {', '.join(GPU_PRECISIONS)}")
    check_activation(activation)
    if {scale is not None, shift is not None} != {spec.uint8}:
        raise InputError(
            "scale and shift: expected both for a stem of bytes (spec.uint8), else neither"
        )
    conv, dtype = spec.conv, GPU_PRECISIONS[precision].dtype
    layout = row_layout(spec, image_bytes(spec, dtype.itemsize))
    if spec.uint8:
        if x.dtype != torch.uint8 or tuple(x.shape) != (conv.n, conv.h, conv.w, conv.c):
            raise InputError(
                f"x is {described(x)}: expected {[conv.n, conv.h, conv.w, conv.c]} of torch.uint8 "
                "where it is normalised"
            )
        if not x.is_contiguous():
            raise InputError(f"x has strides {x.stride()}: expected contiguous [N, H, W, C]")
    else:
        check_tensor("x", x, x, (conv.n, conv.c, conv.h, conv.w), dtype)
    check_tensor("packed weight", packed, x, (conv.k, conv.r * layout.size), dtype)
    check_tensor("out", out, x, (conv.n, conv.k, spec.p, spec.q), dtype)
    for name, vector, size in (
        ("bias", bias, conv.k),
        ("scale", scale, conv.c),
        ("shift", shift, conv.c),
    ):
        if vector is not None:
            check_tensor(name, vector, x, (size,), torch.float32)
    if out.numel() == 0:
        return []
    return [
        KernelCall(
            kernel=stem_kernel,
            grid=grid(spec, config),
            arguments={
                "x_ptr": x,
                "weight_ptr": packed,
                "bias_ptr": bias,
                "scale_ptr": scale,
                "shift_ptr": shift,
                "out_ptr": out,
                **sizes(spec, config),
            },
            constants={
                **geometry(spec, config, dtype.itemsize),
                "ACTIVATION": activation,
                "HAS_BIAS": bias is not None,
                "NORMALISE": spec.uint8,
                "INPUT_PRECISION": "tf32" if precision == "tf32" else "ieee",
                "INT64": wide(last_pixel(spec, config), x, packed, out),
            },
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
    ]


def sizes(spec: StemSpec, config: StemConfig) -> dict[str, int]:
    """The arguments that say how large images are, and how many tiles each has."""
    down, across = tiles(spec, config)
    return {
        "H": spec.conv.h,
        "W": spec.conv.w,
        "P": spec.conv.p,
        "Q": spec.conv.q,
        "POOLED_P": spec.p,
        "POOLED_Q": spec.q,
        "TILES_H": down,
        "TILES_W": across,
    }


def geometry(spec: StemSpec, config: StemConfig, element_bytes: int) -> dict[str, Any]:
    """The constants that say what is computed, and in which tiles.

    Args:
        element_bytes: of a number of the weight.
    """
    conv, layout = spec.conv, row_layout(spec, image_bytes(spec, element_bytes))
    return {
        "C": conv.c,
        "K": conv.k,
        "R": conv.r,
        "S": conv.s,
        "ROW": layout.size,
        "LEAD": layout.lead,
        "ALIGNMENT": layout.alignment,
        "STRIDE_H": conv.stride[0],
        "STRIDE_W": conv.stride[1],
        "PAD_TOP": conv.padding[0],
        "PAD_LEFT": conv.padding[1],
        "POOL_R": spec.pool_kernel[0],
        "POOL_S": spec.pool_kernel[1],
        "POOL_PAD_H": spec.pool_padding[0],
        "POOL_PAD_W": spec.pool_padding[1],
        "TILE_H": config.tile_h,
        "TILE_W": config.tile_w,
        "BLOCK_SIZE_N": config.block_n,
    }


def grid(spec: StemSpec, config: StemConfig) -> tuple[int, int, int]:
    """Programs: one for each tile of each image, and each block of filters."""
    down, across = tiles(spec, config)
    return (spec.conv.n * down * across, math.ceil(spec.conv.k / config.block_n), 1)


def last_pixel(spec: StemSpec, config: StemConfig) -> int:
    """A number that no pixel's, counted in whole tiles, is beyond."""
    down, across = tiles(spec, config)
    return (spec.conv.n * down + 1) * config.tile_h * (across + 1) * config.tile_w


def conv2d_max_pool2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    activation: str,
    pool_kernel: Sequence[int],
    pool_stride: Sequence[int],
    pool_padding: Sequence[int],
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    config: StemConfig | None = None,
    precision: str | None = None,
    gpu: Gpu | None = None,
) -> Tensor:
    """``reference.conv2d_max_pool2d`` by this kernel: packs, allocates, chooses and runs.

    Args:
        scale, shift: as ``reference.conv2d_max_pool2d`` takes them.
        config: how to launch, or None for what ``choose_stem`` says.
        precision: None for that of ``weight``'s dtype; ``tf32`` is only taken when asked for.
        gpu: whose data sheet the choice is made by; an A100's unless told.

    The others, and the result, are as in :func:`fastres.kernels.reference.conv2d_max_pool2d`;
    tensors may have any strides. Errors are those of :func:`stem_calls`, and OptionError where no
    configuration fits the GPU.
    """
    uint8 = scale is not None
    pool = (pool_kernel, pool_stride, pool_padding)
    spec = stem_spec(x, weight, stride, padding, *pool, uint8=uint8)
    precision = precision or precision_of(weight.dtype)
    gpu = gpu or by_name("a100")
    config = config or choose_stem(spec, precision, gpu)
    if config is None:
        refusal = supports(spec) or f"nothing fits {gpu.name} in {precision}"
        raise OptionError(f"{spec}: {refusal}; run convolution and pool one by one")
    out = weight.new_empty(spec.conv.n, spec.p, spec.q, spec.conv.k).permute(0, 3, 1, 2)
    for call in stem_calls(
        x.contiguous() if uint8 else channels_last(x),
        pack_stem(weight, spec, precision),
        None if bias is None else bias.float().contiguous(),
        out,
        spec,
        activation,
        config,
        precision,
        None if scale is None else scale.float().contiguous(),
        None if shift is None else shift.float().contiguous(),
    ):
        call.run()
    return out


def stem_spec(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    pool_kernel: Sequence[int],
    pool_stride: Sequence[int],
    pool_padding: Sequence[int],
    *,
    uint8: bool = False,
    quantized: bool = False,
) -> StemSpec:
    """The sizes of an operator's arguments.

    Raises:
        InputError: they do not go together, or no window fits.
    """
    if x.dim() != 4 or weight.dim() != 4:
        raise InputError(
            f"x with {x.dim()} axes and weight with {weight.dim()}: expected four of each"
        )
    n, c, h, w = (int(size) for size in (x.permute(0, 3, 1, 2) if uint8 else x).shape)
    k, channels, r, s = (int(size) for size in weight.shape)
    if channels != c:
        raise InputError(f"weight of shape {list(weight.shape)}: expected {c} channels, as x has")
    top, left, bottom, right = padding
    conv = ConvSpec(
        n,
        c,
        h,
        w,
        k,
        r,
        s,
        stride=(stride[0], stride[1]),
        padding=(top, left, bottom, right),
    )
    spec = StemSpec(
        conv,
        (pool_kernel[0], pool_kernel[1]),
        (pool_stride[0], pool_stride[1]),
        (pool_padding[0], pool_padding[1]),
        uint8,
        quantized,
    )
    if min(conv.p, conv.q) < 1 or min(spec.p, spec.q) < 1:
        raise InputError(
            f"image of {h}x{w} pixels: too small for a {r}x{s} filter with padding {conv.padding} "
            f"and a pool of {spec.pool_kernel}; expected room for one window"
        )
    return spec
