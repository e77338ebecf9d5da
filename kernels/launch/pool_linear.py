"""Launch of the classifier on mean channels, and a function that runs it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastres.errors import InputError
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.launch.checks import check_activation, check_images, check_tensor, wide
from fastres.kernels.launch.pooling import channels_last
from fastres.kernels.spec import PoolLinearSpec
from fastres.kernels.triton.pooling import pool_linear_kernel
from fastres.kernels.tuning.gpus import Gpu, by_name
from fastres.kernels.tuning.pooling import PoolLinearConfig, choose_pool_linear


def pool_linear_calls(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    activation: str,
    config: PoolLinearConfig,
) -> list[KernelCall]:
    """The launch of ``activation(mean(x) @ weight.T + bias)`` into ``out``; none for an empty one.

    Every image is read once per ``config.block_n`` classes: for many images, a launch of
    ``global_avg_pool`` and one of ``linear`` move fewer bytes.

    Args:
        x: [N, C, H, W] with at least one pixel, channels-last and dense; float16, bfloat16 or
            float32.
        weight: [K, C], contiguous, of the same dtype.
        bias: [K] float32, or None.
        out: [N, K], contiguous, of the same dtype.
        activation: of :data:`fastres.kernels.activations.ACTIVATIONS`.
        config: how to launch.

    Raises:
        InputError: a tensor is something else.
        OptionError: no such activation.
    """
    check_images("x", x)
    check_activation(activation)
    n, c, h, w = x.shape
    k = weight.shape[0] if weight.dim() else 0
    check_tensor("x", x, x, (n, c, max(h, 1), max(w, 1)))
    check_tensor("weight", weight, x, (k, c))
    if bias is not None:
        check_tensor("bias", bias, x, (k,), torch.float32)
    check_tensor("out", out, x, (n, k))
    if out.numel() == 0:
        return []
    return [
        KernelCall(
            kernel=pool_linear_kernel,
            grid=(n * math.ceil(k / config.block_n), 1, 1),
            arguments={"x_ptr": x, "weight_ptr": weight, "bias_ptr": bias, "out_ptr": out},
            constants={
                "PIXELS": h * w,
                "C": c,
                "K": k,
                "ACTIVATION": activation,
                "HAS_BIAS": bias is not None,
                "BLOCK_SIZE_P": config.block_p,
                "BLOCK_SIZE_N": config.block_n,
                "BLOCK_SIZE_K": config.block_k,
                "INT64": wide(0, x, weight, out),
            },
            num_warps=config.num_warps,
            num_stages=1,
        )
    ]


def pool_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    *,
    config: PoolLinearConfig | None = None,
    gpu: Gpu | None = None,
) -> Tensor:
    """``reference.pool_linear`` by this kernel; tensors may have any strides.

    Args:
        config: how to launch, or None for what ``choose_pool_linear`` says.
        gpu: whose data sheet the choice is made by; an A100's unless told.

    The others, and the result, are as in :func:`fastres.kernels.reference.pool_linear`.

    Raises:
        InputError, OptionError: as :func:`pool_linear_calls`.
    """
    check_images("x", x)
    if weight.dim() != 2:
        raise InputError(f"weight has {weight.dim()} axes: expected two, [K, C]")
    n, c, h, w = x.shape
    spec = PoolLinearSpec(n, c, h, w, weight.shape[0])
    config = config or choose_pool_linear(spec, gpu or by_name("a100"))
    out = x.new_empty(n, spec.k)
    bias = None if bias is None else bias.float().contiguous()
    for call in pool_linear_calls(
        channels_last(x), weight.contiguous(), bias, out, activation, config
    ):
        call.run()
    return out
