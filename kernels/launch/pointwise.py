"""Launches of the pointwise kernel, and fully connected layers by it and by its sibling.

Both kinds of tile copy serve here: by descriptor, and where that cannot be, by pointers, which is
the convolution kernel with a filter of one pixel.
"""

from __future__ import annotations

import math

from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastres.kernels.launch.call import INT32_ELEMENTS, KernelCall
from fastres.kernels.spec import ConvSpec
from fastres.kernels.triton.pointwise import pointwise_kernel
from fastres.kernels.tuning.conv2d import Conv2dConfig, allows_descriptors
from fastres.system.versions import descriptors_round


def why_no_descriptors(
    spec: ConvSpec, precision: str, x: Tensor, packed: Tensor, residual: Tensor | None, out: Tensor
) -> str | None:
    """None, or why :func:`pointwise_call` cannot take these tensors, in a few words."""
    reason = allows_descriptors(spec, precision) or why_not_aligned(x, packed, residual, out)
    if reason is None and spec.n * spec.p * spec.q >= INT32_ELEMENTS:
        return "more rows than a coordinate of 32 bits counts"
    return reason


def why_not_aligned(x: Tensor, packed: Tensor, residual: Tensor | None, out: Tensor) -> str | None:
    """None, or which tensor begins where no tensor descriptor can."""
    for name, tensor in (("x", x), ("weight", packed), ("residual", residual), ("out", out)):
        if tensor is not None and tensor.data_ptr() % 16:
            return f"{name} not aligned to 16 bytes"
    return None


def tiled(
    tensor: Tensor, columns: int, block: list[int], rounded: bool = False
) -> TensorDescriptor:
    """A descriptor that copies tiles of ``block`` pixels times channels.

    Args:
        tensor: any dense channels-last one, whatever its image's height and width; or a weight.
        columns: its channels.
        rounded: to TF32 on the way, where descriptors can.
    """
    matrix = tensor.as_strided((tensor.numel() // columns, columns), (columns, 1))
    shape = list(matrix.shape)
    if not (rounded and descriptors_round()):
        return TensorDescriptor(matrix, shape, [columns, 1], block)
    return TensorDescriptor(matrix, shape, [columns, 1], block, round_f32_to_tf32=True)


def pointwise_call(
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
    """The launch for tensors that :func:`why_no_descriptors` has nothing against.

    Arguments are those of ``conv2d_launch.conv2d_calls``, which checks them.
    """
    rows = spec.n * spec.p * spec.q
    block_m, block_n, block_k = config.block_m, config.block_n, config.block_k

    grid = math.ceil(rows / block_m) * math.ceil(spec.k / block_n)
    out_block = [block_m, block_n]
    return KernelCall(
        kernel=pointwise_kernel,
        grid=(grid, 1, 1),
        arguments={
            "x_desc": tiled(x, spec.c, [block_m, block_k], precision == "tf32"),
            "weight_desc": tiled(packed, spec.c, [block_n, block_k]),
            "bias_ptr": bias,
            "residual_desc": None if residual is None else tiled(residual, spec.k, out_block),
            "out_desc": tiled(out, spec.k, out_block),
            "M": rows,
        },
        constants={
            "C": spec.c,
            "K": spec.k,
            "PRE_ACTIVATION": pre_activation,
            "ACTIVATION": activation,
            "HAS_BIAS": bias is not None,
            "HAS_RESIDUAL": residual is not None,
            "INPUT_PRECISION": "tf32" if precision == "tf32" else "ieee",
            "BLOCK_SIZE_M": block_m,
            "BLOCK_SIZE_N": block_n,
            "BLOCK_SIZE_K": block_k,
            "GROUP_M": config.group_m,
            "ROUND_A": not descriptors_round(),
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
