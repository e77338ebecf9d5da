"""Fully connected layers: the convolution of images of one pixel with filters of one pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from fastres.errors import InputError
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.launch.conv2d import conv2d_calls, precision_of, workspace_bytes
from fastres.kernels.packing import pack_linear
from fastres.kernels.spec import ConvSpec
from fastres.kernels.tuning.conv2d import Conv2dConfig, choose_conv2d
from fastres.kernels.tuning.conv2d import counters as counters_of
from fastres.kernels.tuning.gpus import Gpu, by_name


def linear_spec(rows: int, inputs: int, outputs: int) -> ConvSpec:
    """[rows, inputs] x [outputs, inputs] as a convolution."""
    return ConvSpec(rows, inputs, 1, 1, outputs, 1, 1)


def linear_calls(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    out: Tensor,
    activation: str,
    config: Conv2dConfig,
    precision: str,
    workspace: Tensor | None = None,
    counters: Tensor | None = None,
) -> list[KernelCall]:
    """Launches of ``activation(x @ weight.T + bias)`` into ``out``.

    Args:
        x: [rows, C], contiguous.
        packed: [K, C], contiguous.
        bias: [K] float32, or None.
        out: [rows, K], contiguous.
        activation, config, precision, workspace, counters: as in ``conv2d_launch.conv2d_calls``;
            the spec that their sizes depend on is :func:`linear_spec`'s.

    Raises:
        InputError, OptionError: as there.
    """
    if x.dim() != 2 or out.dim() != 2 or packed.dim() != 2:
        raise InputError(
            f"x {list(x.shape)}, weight {list(packed.shape)}, out {list(out.shape)}: expected two "
            "axes of each; flatten the others into rows"
        )
    spec = linear_spec(x.shape[0], x.shape[1], packed.shape[0])
    return conv2d_calls(
        x[:, :, None, None],
        packed,
        bias,
        None,
        out[:, :, None, None],
        spec,
        "none",
        activation,
        config,
        precision,
        workspace,
        counters,
    )


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    *,
    config: Conv2dConfig | None = None,
    precision: str | None = None,
    gpu: Gpu | None = None,
) -> Tensor:
    """``reference.linear`` by these kernels: packs, allocates, chooses and runs.

    ``config``, ``precision`` and ``gpu`` are as in ``conv2d_launch.conv2d``, the rest and the
    result as in :func:`fastres.kernels.reference.linear`. Errors are those of
    :func:`linear_calls`.
    """
    if x.dim() < 1 or weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        raise InputError(
            f"x of shape {list(x.shape)} and weight of shape {list(weight.shape)}: expected "
            "[..., inputs] and [outputs, inputs]"
        )
    inputs, outputs = weight.shape[1], weight.shape[0]
    rows = x.reshape(x.shape[:-1].numel(), inputs).contiguous()
    spec = linear_spec(rows.shape[0], inputs, outputs)
    precision = precision or precision_of(x.dtype)
    config = config or choose_conv2d(spec, precision, gpu or by_name("a100"))
    out = x.new_empty(rows.shape[0], outputs)
    size = workspace_bytes(spec, config, precision)
    count = counters_of(spec, config)
    calls = linear_calls(
        rows,
        pack_linear(weight, precision),
        None if bias is None else bias.float().contiguous(),
        out,
        activation,
        config,
        precision,
        x.new_empty(size // 4, dtype=torch.float32) if size else None,
        x.new_zeros(count, dtype=torch.int32) if count else None,
    )
    for call in calls:
        call.run()
    return out.reshape(*x.shape[:-1], outputs)
