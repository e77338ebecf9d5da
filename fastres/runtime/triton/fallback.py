"""Convolutions by torch's library (cuDNN, MIOpen), as alternatives to the kernels.

Both forms take and give channels-last tensors. The fused one has bias, addition and ReLU in the
library's kernel; the library may refuse it for sizes and GPUs that only it knows, so it is tried
only where that can be found out: by tuning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastres.kernels import reference
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
    y = reference.conv2d(
        *(x, weight, bias, None, stride, padding, dilation, groups, "none", "none")
    )
    y = _IN_PLACE[pre_activation](y)
    if residual is not None:
        y = y.add_(residual)
    return _IN_PLACE[activation](y)


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


def _same(x: Tensor) -> Tensor:
    return x


def _relu6(x: Tensor) -> Tensor:
    return F.relu6(x, inplace=True)


def _silu(x: Tensor) -> Tensor:
    return F.silu(x, inplace=True)


def _hardswish(x: Tensor) -> Tensor:
    return F.hardswish(x, inplace=True)


_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "none": _same,
    "relu": torch.relu_,
    "relu6": _relu6,
    "silu": _silu,
    "hardswish": _hardswish,
}
