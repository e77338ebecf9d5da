"""The operators once more, from their definitions, in loops over output pixels and float64.

Written without ``torch.nn`` and independently of ``fastres.kernels.reference``, so that one mistake
does not hide in both. Slow: for images of a few pixels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def _hardswish(v: float) -> float:
    return v * min(max(v + 3.0, 0.0), 6.0) / 6.0


def _silu(v: float) -> float:
    return v / (1.0 + math.exp(-v)) if v > -700 else 0.0


ACTIVATIONS: dict[str, Callable[[float], float]] = {
    "none": lambda v: v,
    "relu": lambda v: v if v > 0 or math.isnan(v) else 0.0,
    "relu6": lambda v: v if math.isnan(v) else min(max(v, 0.0), 6.0),
    "silu": _silu,
    "hardswish": _hardswish,
}


def activate(x: Tensor, name: str) -> Tensor:
    """One number at a time."""
    flat = [ACTIVATIONS[name](v) for v in x.double().flatten().tolist()]
    return torch.tensor(flat, dtype=torch.float64).view(x.shape)


def padded(x: Tensor, padding: Sequence[int], value: float) -> Tensor:
    """``x`` in the middle of a larger image; padding is (top, left, bottom, right)."""
    n, c, h, w = x.shape
    top, left, bottom, right = padding
    out = torch.full((n, c, top + h + bottom, left + w + right), value, dtype=torch.float64)
    out[:, :, top : top + h, left : left + w] = x.double()
    return out


def windows(length: int, size: int, stride: int, dilation: int) -> list[list[int]]:
    """The positions that each window covers, for as many windows as fit."""
    found = []
    start = 0
    while start + dilation * (size - 1) < length:
        found.append([start + dilation * i for i in range(size)])
        start += stride
    return found


def convolve(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """The convolution alone."""
    image, filters = padded(x, padding, 0.0), weight.double()
    k, per_group, r, s = weight.shape
    rows = windows(image.shape[2], r, stride[0], dilation[0])
    columns = windows(image.shape[3], s, stride[1], dilation[1])
    out = torch.zeros(x.shape[0], k, len(rows), len(columns), dtype=torch.float64)
    for n, f in itertools.product(range(x.shape[0]), range(k)):
        first = f // (k // groups) * per_group
        for (p, ys), (q, xs) in itertools.product(enumerate(rows), enumerate(columns)):
            patch = image[n, first : first + per_group][:, ys][:, :, xs]
            out[n, f, p, q] = (patch * filters[f]).sum()
    return out


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
    out = convolve(x, weight, stride, padding, dilation, groups)
    for f in range(out.shape[1]):
        out[:, f] += 0.0 if bias is None else float(bias[f])
    out = activate(out, pre_activation)
    if residual is not None:
        out += residual.double()
    return activate(out, activation)


def scale_shift(x: Tensor, scale: Tensor, shift: Tensor, activation: str) -> Tensor:
    out = x.double().clone()
    for c in range(x.shape[1]):
        out[:, c] = out[:, c] * float(scale[c]) + float(shift[c])
    return activate(out, activation)


def layer_norm2d(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    y = torch.empty_like(x, dtype=torch.float64)
    for n, i, j in itertools.product(range(x.shape[0]), range(x.shape[2]), range(x.shape[3])):
        pixel = [float(value) for value in x[n, :, i, j]]
        mean = sum(pixel) / len(pixel)
        variance = sum((value - mean) ** 2 for value in pixel) / len(pixel)
        for c, value in enumerate(pixel):
            scale = 1.0 if weight is None else float(weight[c])
            shift = 0.0 if bias is None else float(bias[c])
            y[n, c, i, j] = (value - mean) / math.sqrt(variance + eps) * scale + shift
    return y


def add_relu(x: Tensor, y: Tensor) -> Tensor:
    return activate(x.double() + y.double(), "relu")


def max_pool2d(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Tensor:
    """In ceil mode a last, incomplete window counts if it starts inside image or first padding."""
    far = [0, 0]
    if ceil_mode:
        for axis in (0, 1):
            length, span = x.shape[2 + axis], dilation[axis] * (kernel[axis] - 1) + 1
            rest = (length + 2 * padding[axis] - span) % stride[axis]
            start = length + 2 * padding[axis] - span - rest + stride[axis]
            if rest and start < length + padding[axis]:
                far[axis] = stride[axis] - rest
    sides = (padding[0], padding[1], padding[0] + far[0], padding[1] + far[1])
    image = padded(x, sides, -math.inf)
    rows = windows(image.shape[2], kernel[0], stride[0], dilation[0])
    columns = windows(image.shape[3], kernel[1], stride[1], dilation[1])
    out = torch.zeros(*x.shape[:2], len(rows), len(columns), dtype=torch.float64)
    for (p, ys), (q, xs) in itertools.product(enumerate(rows), enumerate(columns)):
        patch = image[:, :, ys][:, :, :, xs].flatten(2)
        out[:, :, p, q] = torch.where(patch.isnan().any(2), math.nan, patch.max(2).values)
    return out


def global_avg_pool(x: Tensor, keepdim: bool) -> Tensor:
    n, c, h, w = x.shape
    out = torch.zeros(n, c, dtype=torch.float64)
    for y, column in itertools.product(range(h), range(w)):
        out += x[:, :, y, column].double()
    out /= h * w
    return out[:, :, None, None] if keepdim else out


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    out = torch.zeros(*x.shape[:-1], weight.shape[0], dtype=torch.float64)
    for k in range(weight.shape[0]):
        out[..., k] = (x.double() * weight[k].double()).sum(-1)
        out[..., k] += 0.0 if bias is None else float(bias[k])
    return activate(out, activation)


def pool_linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
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
    if scale is not None and shift is not None:
        x = scale_shift(x.permute(0, 3, 1, 2).double(), scale, shift, "none")
    y = conv2d(x, weight, bias, None, stride, padding, (1, 1), 1, "none", activation)
    return max_pool2d(y, pool_kernel, pool_stride, pool_padding, (1, 1), False)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1 convolution as a product with the rows of all pixels."""
    n, c, p, q = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(n * p * q, c)
    out = linear(rows, weight.flatten(1), bias, "none")
    return out.view(n, p, q, weight.shape[0]).permute(0, 3, 1, 2)


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
    narrow = conv2d(x, weight, bias, None, stride, padding, dilation, groups, "none", "relu")
    if shortcut_weight is not None:
        residual = residual[:, :, :: shortcut_stride[0], :: shortcut_stride[1]]
        residual = pointwise(residual, shortcut_weight, None)
    wide = activate(pointwise(narrow, expand_weight, expand_bias) + residual.double(), "relu")
    if next_weight is None:
        return [wide]
    return [wide, activate(pointwise(wide, next_weight, next_bias), "relu")]


def _triangle(distance: float) -> float:
    return max(0.0, 1.0 - abs(distance))


def _cubic(distance: float, a: float) -> float:
    """Keys, "Cubic convolution interpolation for digital image processing" (1981)."""
    d = abs(distance)
    if d < 1.0:
        return (a + 2.0) * d**3 - (a + 3.0) * d**2 + 1.0
    return a * (d**3 - 5.0 * d**2 + 8.0 * d - 4.0) if d < 2.0 else 0.0


def resampling(size: int, wanted: int, interpolation: str, antialias: bool) -> Tensor:
    """[wanted, size]: how much each pixel of a line counts in each pixel of the new line."""
    step = size / wanted
    weights = torch.zeros(wanted, size, dtype=torch.float64)
    for i in range(wanted):
        centre = (i + 0.5) * step  # pixel j reaches from j to j + 1
        if interpolation == "nearest":
            weights[i, math.floor(centre)] = 1.0
            continue
        reach = 1.0 if interpolation == "bilinear" else 2.0
        stretch = max(step, 1.0) if antialias else 1.0
        for j in range(
            math.floor(centre - reach * stretch) - 1, math.ceil(centre + reach * stretch)
        ):
            distance = (j + 0.5 - centre) / stretch
            if interpolation == "bilinear":
                weight = _triangle(distance)
            else:
                weight = _cubic(distance, -0.5 if antialias else -0.75)
            if not antialias:  # the line goes on with its last pixel
                weights[i, min(max(j, 0), size - 1)] += weight
            elif 0 <= j < size:  # the line ends, and what is left counts for all
                weights[i, j] += weight
        weights[i] /= weights[i].sum()
    return weights


def resize_crop(
    image: Tensor, resize: int, crop: int, interpolation: str, antialias: bool
) -> Tensor:
    height, width = image.shape[-2:]
    shorter = min(height, width)
    lines = []
    for size in (height, width):
        wanted = resize * size // shorter
        first = round((wanted - crop) / 2)
        weights = resampling(size, wanted, interpolation, antialias)
        lines.append(weights[first : first + crop])
    return torch.einsum("ph,nchw,qw->ncpq", lines[0], image.double(), lines[1])
