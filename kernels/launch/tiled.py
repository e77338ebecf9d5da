"""Launches of the convolution kernel whose tiles are boxes of pixels."""

from __future__ import annotations

from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastres.kernels.launch.call import INT32_ELEMENTS, KernelCall
from fastres.kernels.launch.pointwise import why_not_aligned
from fastres.kernels.spec import ConvSpec
from fastres.kernels.triton.tiled import tiled_conv2d_kernel
from fastres.kernels.tuning.conv2d import Conv2dConfig, allows_boxes, tiles
from fastres.system.versions import descriptors_round


def why_no_boxes(
    spec: ConvSpec,
    config: Conv2dConfig,
    precision: str,
    x: Tensor,
    packed: Tensor,
    residual: Tensor | None,
    out: Tensor,
) -> str | None:
    """None, or why :func:`tiled_call` cannot take these tensors, in a few words."""
    reason = allows_boxes(spec, precision) or why_not_aligned(x, packed, residual, out)
    if reason is None and max(tiles(spec, config), spec.n, spec.h, spec.w) >= INT32_ELEMENTS:
        return "more boxes than a number of 32 bits counts"
    return reason


def tiled_call(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    spec: ConvSpec,
    pre_activation: str,
    activation: str,
    config: Conv2dConfig,
    precision: str,
) -> KernelCall:
    """The launch for tensors that :func:`why_no_boxes` has nothing against.

    Arguments are those of ``conv2d_launch.conv2d_calls``, which checks them.
    """
    block_n, block_k = config.block_n, config.block_k
    box = [config.box_n, config.box_h, config.box_w]
    rounded = {"round_f32_to_tf32": True} if precision == "tf32" and descriptors_round() else {}

    def images(tensor: Tensor, channels: int, **more: bool) -> TensorDescriptor:
        """Of [N, C, H, W], the channels innermost whatever torch says of sides of one pixel."""
        n, c, h, w = tensor.shape
        strides = [h * w * c, w * c, c, 1]
        view = tensor.as_strided((n, h, w, c), strides)
        return TensorDescriptor(view, [n, h, w, c], strides, [*box, channels], **more)

    return KernelCall(
        kernel=tiled_conv2d_kernel,
        grid=(tiles(spec, config), 1, 1),
        arguments={
            "x_desc": images(x, block_k, **rounded),
            "weight_desc": TensorDescriptor(
                packed, list(packed.shape), list(packed.stride()), [block_n, block_k]
            ),
            "bias_ptr": bias,
            "residual_desc": None if residual is None else images(residual, block_n),
            "out_desc": images(out, block_n),
            "N": spec.n,
            "P": spec.p,
            "Q": spec.q,
        },
        constants={
            "C": spec.c,
            "K": spec.k,
            "R": spec.r,
            "S": spec.s,
            "PAD_TOP": spec.padding[0],
            "PAD_LEFT": spec.padding[1],
            "DILATION_H": spec.dilation[0],
            "DILATION_W": spec.dilation[1],
            "PRE_ACTIVATION": pre_activation,
            "ACTIVATION": activation,
            "HAS_BIAS": bias is not None,
            "HAS_RESIDUAL": residual is not None,
            "INPUT_PRECISION": "tf32" if precision == "tf32" else "ieee",
            "BOX_N": config.box_n,
            "BOX_H": config.box_h,
            "BOX_W": config.box_w,
            "BLOCK_SIZE_M": config.block_m,
            "BLOCK_SIZE_N": block_n,
            "BLOCK_SIZE_K": block_k,
            "GROUP_M": config.group_m,
            "ROUND_X": not descriptors_round(),
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
