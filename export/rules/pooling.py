"""Average and maximum pooling of ATen, adaptive ones included."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fastres.export.builder import Builder
from fastres.export.rules.fused import overhang
from fastres.ir.graph import arguments
from fastres.kernels.spec import Pair, pair

aten = torch.ops.aten


def _avg_pool2d(b: Builder, node: fx.Node) -> str:
    """Average over windows, divided as torch does: by the window's part inside the padding."""
    x = arguments(node)[0]
    kernel = pair(b.number(arguments(node)[1]))
    stride = pair(b.number(b.argument(2, "stride") or kernel))
    padding = pair(b.number(b.argument(3, "padding", 0)))
    ceil = bool(b.argument(4, "ceil_mode", False))
    counts_padding = bool(b.argument(5, "count_include_pad", True))
    divisor = b.number(b.argument(6, "divisor_override"))
    ends = overhang(b, node, x, kernel, stride, padding) if ceil else (0, 0)
    beyond = ends or (0, 0)
    window_size = kernel[0] * kernel[1]
    y = b.emit(
        "AveragePool",
        b.tensor(x),
        kernel_shape=list(kernel),
        strides=list(stride),
        pads=[*padding, padding[0] + beyond[0], padding[1] + beyond[1]],
        ceil_mode=int(ceil and ends is None),
        count_include_pad=int(counts_padding or divisor is not None),
    )
    if divisor is not None:
        if ceil and ends is None:
            raise b.refusal("ceil mode with a divisor of its own needs a fixed image size")
        return b.emit("Mul", y, b.tensor(window_size / divisor, b.dtype(y)))
    if counts_padding and beyond != (0, 0):
        return b.emit("Mul", y, _shares(b, node, x, kernel, stride, padding))
    return y


def _shares(
    b: Builder, node: fx.Node, x: fx.Node, kernel: Pair, stride: Pair, padding: Pair
) -> str:
    """Window size over the pixels in it that torch counts, [P, Q]: fewer only at the far border."""
    factors = []
    for axis in (0, 1):
        size, windows = b.size(x, axis + 2), b.size(node, axis + 2)
        assert size is not None and windows is not None
        starts = (
            torch.arange(windows, dtype=torch.int64, device="cpu") * stride[axis] - padding[axis]
        )
        counted = torch.clamp(starts + kernel[axis], max=size + padding[axis]) - starts
        factors.append(kernel[axis] / counted.double())
    share = factors[0][:, None] * factors[1][None, :]
    return b.constant(share.to(b.fact(node).dtype), f"{node.meta.get('module') or node.name}.share")


def _windows(size: int, parts: int) -> list[tuple[int, int]]:
    """(start, end) of torch's adaptive windows: floor(i * size / parts), ceil((i + 1) * ...)."""
    return [((i * size) // parts, -((-(i + 1) * size) // parts)) for i in range(parts)]


def _adaptive_avg(b: Builder, node: fx.Node) -> str:
    """Windows of one size are an AveragePool; others are a product with a matrix on each side."""
    x = arguments(node)[0]
    height, width = (_known(b, x, axis) for axis in (-2, -1))
    rows, columns = _parts(b, node, height, width)
    if height % rows == 0 and width % columns == 0 and b.rank(x) == 4:
        kernel = [height // rows, width // columns]
        return b.emit("AveragePool", b.tensor(x), kernel_shape=kernel, strides=kernel)
    dtype = b.fact(node).dtype
    down = b.constant(_averaging(height, rows).to(dtype))
    across = b.constant(_averaging(width, columns).t().contiguous().to(dtype))
    return b.emit("MatMul", b.emit("MatMul", down, b.tensor(x)), across)


def _averaging(size: int, parts: int) -> Tensor:
    """[parts, size]: each row averages one window."""
    matrix = torch.zeros(parts, size, dtype=torch.float64, device="cpu")
    for row, (first, last) in enumerate(_windows(size, parts)):
        matrix[row, first:last] = 1.0 / (last - first)
    return matrix


def _adaptive_max(b: Builder, node: fx.Node) -> list[str]:
    """Windows of one size are a MaxPool, others a ReduceMax each; indices are not supported."""
    x = arguments(node)[0]
    if any(user.args[1] != 0 for user in node.users):
        raise b.refusal("the positions of the largest values are used")
    output_size = b.number(arguments(node)[1])
    if output_size in (1, [1, 1]) and b.rank(x) == 4:
        return [b.emit("GlobalMaxPool", b.tensor(x))]
    height, width = (_known(b, x, axis) for axis in (-2, -1))
    rows, columns = _parts(b, node, height, width)
    value = b.tensor(x)
    if height % rows == 0 and width % columns == 0 and b.rank(x) == 4:
        kernel = [height // rows, width // columns]
        return [b.emit("MaxPool", value, kernel_shape=kernel, strides=kernel)]
    for axis, size, parts in ((b.rank(x) - 2, height, rows), (b.rank(x) - 1, width, columns)):
        maxima = [_largest(b, value, axis, first, last) for first, last in _windows(size, parts)]
        value = b.emit("Concat", *maxima, axis=axis)
    return [value]


def _largest(b: Builder, x: str, axis: int, first: int, last: int) -> str:
    from fastres.export.rules.reduction import reduce

    window = b.emit("Slice", x, b.integers(first), b.integers(last), b.integers(axis))
    return reduce(b, "ReduceMax", window, [axis], keepdim=True)


def _known(b: Builder, x: fx.Node, axis: int) -> int:
    size = b.size(x, axis % b.rank(x))
    if size is None:
        raise b.refusal(
            "pooling to a fixed number of pixels needs a fixed image size in ONNX; export without "
            "dynamic_size"
        )
    return size


def _parts(b: Builder, node: fx.Node, height: int, width: int) -> tuple[int, int]:
    output_size = arguments(node)[1]
    parts = [output_size, output_size] if isinstance(output_size, int) else list(output_size)
    rows, columns = (
        size if part is None else int(b.number(part))
        for part, size in zip(parts, (height, width), strict=True)
    )
    return rows, columns


RULES: dict[Any, Any] = {
    aten.avg_pool2d.default: _avg_pool2d,
    aten.adaptive_avg_pool2d.default: _adaptive_avg,
    aten.adaptive_max_pool2d.default: _adaptive_max,
}
"""Operator -> translation."""
