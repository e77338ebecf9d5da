"""The operators in plain PyTorch: slow, obvious, and what every kernel is compared with.

Each function is the definition of the operator of the same name in :mod:`fastres.ir.ops`. In
float64 it is the oracle; on the tensors' own dtype it is what runs where no engine does better;
traced, it is the operator's decomposition for export. Tensors are NCHW by shape, in any memory
format. No argument is modified and no result shares memory with an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastres.kernels.activations import ACTIVATIONS


def activate(x: Tensor, activation: str) -> Tensor:
    """Apply a row of :data:`fastres.kernels.activations.ACTIVATIONS`; NaN stays NaN."""
    row = ACTIVATIONS.get(activation)
    if row is None:
        names = list(ACTIVATIONS)
        expected = f"{', '.join(names[:-1])} or {names[-1]}"
        raise ValueError(f"activation {activation!r}: expected {expected}")
    return row.reference(x)


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
    """``activation(pre_activation(conv(x, weight) + bias) + residual)``.

    Args:
        x: [N, C, H, W].
        weight: [K, C / groups, R, S].
        bias: [K] or None.
        residual: [N, K, P, Q] or None.
        stride, dilation: (height, width), pixels.
        padding: (top, left, bottom, right), pixels of zeros.
        groups: number of groups that C and K are split into.
        pre_activation, activation: see :func:`activate`.

    Returns:
        [N, K, P, Q] in the dtype of ``x``.
    """
    top, left, bottom, right = padding
    if top == bottom and left == right:
        sides = [top, left]
    else:
        x = F.pad(x, (left, right, top, bottom))
        sides = [0, 0]
    y = torch.conv2d(x, weight, bias, list(stride), sides, list(dilation), groups)
    y = activate(y, pre_activation)
    if residual is not None:
        y = y + residual
    return activate(y, activation)


def scale_shift(x: Tensor, scale: Tensor, shift: Tensor, activation: str) -> Tensor:
    """``activation(x * scale + shift)`` per channel: a BatchNorm that no convolution could take.

    Args:
        x: [N, C, ...].
        scale, shift: [C], in the dtype of ``x`` or wider; the arithmetic is done in theirs.

    Returns:
        Shape and dtype of ``x``.
    """
    shape = [1, -1] + [1] * (x.dim() - 2)
    y = torch.addcmul(shift.view(shape), x.to(scale.dtype), scale.view(shape))
    return activate(y, activation).to(x.dtype)


def layer_norm2d(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Each pixel's channels, less their mean and by their standard deviation.

    ``(x - mean) / sqrt(variance + eps) * weight + bias`` with mean and variance over the channels
    (Ba, Kiros and Hinton 2016), as ConvNeXt has it.

    Args:
        x: [N, C, H, W].
        weight, bias: [C] or None.
        eps: what is added to the variance.

    Returns:
        Shape and dtype of ``x``.
    """
    pixels = x.permute(0, 2, 3, 1)
    return F.layer_norm(pixels, [x.shape[1]], weight, bias, eps).permute(0, 3, 1, 2)


def add_relu(x: Tensor, y: Tensor) -> Tensor:
    """``relu(x + y)`` for tensors of one shape: a residual addition no convolution could take."""
    return torch.relu(x + y)


def max_pool2d(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Tensor:
    """Largest value under each window, borders padded with the least; pairs are (H, W)."""
    if x.dtype == torch.uint8:  # torch 2.14's kernel for channels-last bytes refuses 256 pixels
        wide = max_pool2d(x.float(), kernel, stride, padding, dilation, ceil_mode)
        return wide.to(torch.uint8)
    return torch.max_pool2d(x, list(kernel), list(stride), list(padding), list(dilation), ceil_mode)


def avg_pool2d(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    """Sum under each window over its number of pixels, as ``aten.avg_pool2d``.

    The number is ``divisor_override`` where given. Else padding counts if ``count_include_pad``;
    what a last window of ceil mode covers beyond the padding never does. No operator of its own:
    engines with such a kernel take torch's.
    """
    pool = torch.ops.aten.avg_pool2d.default
    sides = (list(kernel), list(stride), list(padding))
    result: Tensor = pool(x, *sides, ceil_mode, count_include_pad, divisor_override)
    return result


def global_avg_pool(x: Tensor, keepdim: bool) -> Tensor:
    """Mean over H and W: [N, C, H, W] -> [N, C, 1, 1] if ``keepdim`` else [N, C]."""
    return torch.mean(x, dim=(2, 3), keepdim=keepdim)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """``activation(x @ weight.T + bias)``: [..., C] with [K, C] and [K] gives [..., K]."""
    return activate(F.linear(x, weight, bias), activation)


def pool_linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """The classifier: ``activation(mean(x) @ weight.T + bias)``, the mean over H and W.

    [N, C, H, W] with [K, C] and [K] gives [N, K]. Means are rounded to the dtype of ``x``.
    """
    return linear(global_avg_pool(x, False), weight, bias, activation)


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
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """The stem: ``max_pool2d(activation(conv(x, weight) + bias))``.

    With ``scale`` and ``shift``, [C] both, ``x`` is an image as it is decoded, uint8 [N, H, W, C],
    which :func:`normalise` makes the network's: ``x * scale + shift``, rounded to the dtype of
    ``weight``.

    The convolution is as in :func:`conv2d`, without dilation and groups; the pool as in
    :func:`max_pool2d`, without dilation and ceil mode. The result is [N, K, P', Q'], where P' and
    Q' count the pool's windows.
    """
    if scale is not None and shift is not None:
        x = normalise(x, scale, shift).to(weight.dtype)
    y = conv2d(x, weight, bias, None, stride, padding, (1, 1), 1, "none", activation)
    return max_pool2d(y, pool_kernel, pool_stride, pool_padding, (1, 1), False)


def normalise(image: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``image * scale + shift`` per channel, as a channels-last tensor of NCHW shape.

    What a stem that takes pixels as they come computes first. A convolution pads what comes out,
    so its border is zero after normalisation, whatever the shift.

    Args:
        image: uint8 [N, H, W, C].
        scale, shift: [C], of the dtype that is wanted.

    Returns:
        [N, C, H, W] in the dtype of ``scale``.
    """
    return torch.addcmul(shift, image.to(scale.dtype), scale).permute(0, 3, 1, 2)


def resize_crop(
    image: Tensor, resize: int, crop: int, interpolation: str, antialias: bool
) -> Tensor:
    """The central ``crop`` x ``crop`` pixels of an image whose shorter side is made ``resize``.

    The longer side becomes ``resize * longer // shorter``; a crop that cannot be centred lies where
    half to even puts it. Filters are Pillow's: pixels have their centres at halves, and with
    ``antialias`` a shrinking filter is as wide as what it stands for.

    Bytes become bytes, rounded and clipped after each direction as Pillow does. On ten photographs
    (256, 224) they are at most 1 off Pillow's with "bilinear" (0.001 in the mean) and 2 with
    "bicubic" (0.004); with "nearest", where two pixels are as near, it may be the other one. Beside
    the CPU torch has no such kernel: there they are rounded once, at the end, and up to 1 and 5 off
    (0.15 in the mean).

    Args:
        image: [N, C, H, W].
        interpolation: ``"nearest"``, ``"bilinear"`` or ``"bicubic"``.

    Returns:
        [N, C, crop, crop] in the dtype of ``image``.

    Raises:
        ValueError: the resized image would have more than 2^28 pixels.
    """
    height, width = image.shape[-2:]  # perhaps symbolic: no decision may depend on them
    shorter: Any = torch.sym_min(height, width)
    rows, columns = resize * height // shorter, resize * width // shorter
    if isinstance(rows, int) and rows * columns > 2**28:
        raise ValueError(f"resized to {rows} x {columns} pixels it would be too large")
    wide = image
    if image.dtype == torch.uint8 and image.device.type != "cpu":
        wide = image.to(torch.float32)
    mode, antialias = _MODES[interpolation], antialias and interpolation != "nearest"
    resized = F.interpolate(wide, size=[rows, columns], mode=mode, antialias=antialias)
    top, left = _half(rows - crop), _half(columns - crop)
    cut = resized[..., top : top + crop, left : left + crop]
    return cut.clone() if wide is image else cut.round().clamp(0, 255).to(image.dtype)


_MODES = {"nearest": "nearest-exact", "bilinear": "bilinear", "bicubic": "bicubic"}


def _half(size: int) -> int:
    """``round(size / 2)``, half to even, for symbolic sizes too."""
    half = size // 2
    return half + (size % 2) * (half % 2)


def _pointwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, stride: Sequence[int]
) -> Tensor:
    """``conv1x1(x) + bias + residual``."""
    return conv2d(x, weight, bias, residual, stride, (0, 0, 0, 0), (1, 1), 1, "none", "none")


def bottleneck(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    residual: Tensor,
    shortcut_weight: Tensor | None,
    shortcut_stride: Sequence[int],
    next_weight: Tensor | None,
    next_bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> list[Tensor]:
    """The tail of a bottleneck, and where wanted the head of the next one.

    With ``identity = conv1x1(residual, shortcut_weight)`` where there is such a weight, else
    ``residual``::

        narrow = relu(conv(x, weight) + bias)
        wide   = relu(conv1x1(narrow, expand_weight) + expand_bias + identity)
        next   = relu(conv1x1(wide, next_weight) + next_bias)

    He et al., "Deep Residual Learning for Image Recognition" (2015), figure 5, right.

    Args:
        x, weight, bias, stride, padding, dilation, groups: as in :func:`conv2d`, [N, K, P, Q] out.
        expand_weight: [K2, K, 1, 1].
        expand_bias: [K2] or None; with a shortcut, its bias is added to this one.
        residual: [N, K2, P, Q], or with a shortcut the block's input [N, C2, H2, W2].
        shortcut_weight: [K2, C2, 1, 1] or None.
        shortcut_stride: (height, width), pixels; means nothing without a shortcut.
        next_weight: [K3, K2, 1, 1] or None.
        next_bias: [K3] or None.

    Returns:
        ``[wide]``, or ``[wide, next]`` where there is a ``next_weight``: [N, K2, P, Q] and
        [N, K3, P, Q] in the dtype of ``x``.
    """
    narrow = conv2d(x, weight, bias, None, stride, padding, dilation, groups, "none", "relu")
    if shortcut_weight is not None:
        residual = _pointwise(residual, shortcut_weight, None, None, shortcut_stride)
    wide = torch.relu(_pointwise(narrow, expand_weight, expand_bias, residual, (1, 1)))
    if next_weight is None:
        return [wide]
    return [wide, torch.relu(_pointwise(wide, next_weight, next_bias, None, (1, 1)))]
