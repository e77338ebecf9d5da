"""Convolutions by torch's library (cuDNN, MIOpen), as alternatives to the kernels.

Both forms take and give channels-last tensors. The fused one has bias, addition and ReLU in the
library's kernel; the library may refuse it for sizes and GPUs that only it knows, so it is tried
only where that can be found out: by tuning.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastres.kernels import reference
from fastres.kernels.activations import ACTIVATIONS
from fastres.kernels.spec import is_symmetric

aten = torch.ops.aten


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pre_activation: str,
    activation: str,
) -> Tensor:
    """``reference.conv2d``, whose epilogue writes into the convolution's own result."""
    y = reference.conv2d(x, weight, bias, None, stride, padding, dilation, groups, "none", "none")
    y = ACTIVATIONS[pre_activation].in_place(y)
    if residual is not None:
        y = y.add_(residual)
    return ACTIVATIONS[activation].in_place(y)


def fused_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pre_activation: str,
    activation: str,
) -> Tensor:
    """The same as one call of cuDNN; see :func:`supports_fused`."""
    shape = (list(stride), list(padding[:2]), list(dilation), groups)
    if residual is None:
        y: Tensor = aten.cudnn_convolution_relu.default(x, weight, bias, *shape)
    else:
        y = aten.cudnn_convolution_add_relu.default(x, weight, residual, 1.0, bias, *shape)
    return y


def supports_fused(padding: Sequence[int], pre_activation: str, activation: str) -> bool:
    """Whether cuDNN has such an epilogue: bias, perhaps an addition, and ReLU."""
    return is_symmetric(padding) and (pre_activation, activation) == ("none", "relu")
