"""ATen operators that move values without computing: shapes, slices, joins, padding, casts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from fastres.export.builder import LAST, Builder
from fastres.export.rules.units import through
from fastres.ir import ops
from fastres.ir.graph import arguments, is_call

aten = torch.ops.aten


def _same(b: Builder, node: fx.Node) -> str:
    """What copies, detaches or drops nothing: the value itself."""
    return b.tensor(arguments(node)[0])


def _cast(b: Builder, node: fx.Node) -> str:
    dtype = b.fact(node).dtype
    if dtype == torch.bfloat16 and all(is_call(u, ops.conv2d, ops.linear) for u in node.users):
        return b.as_bfloat16(b.tensor(arguments(node)[0], torch.float32))
    return b.cast(b.tensor(arguments(node)[0]), dtype)


def _flatten(b: Builder, node: fx.Node) -> str:
    x = arguments(node)[0]
    first, last = b.argument(1, "start_dim", 0), b.argument(2, "end_dim", -1)
    rank = b.rank(x)
    if first % max(rank, 1) == 1 and last % max(rank, 1) == rank - 1:
        return through(b, node, lambda name: b.emit("Flatten", name, axis=1))
    return b.reshape(node, x)


def _reshape(b: Builder, node: fx.Node) -> str:
    x = arguments(node)[0]
    return b.reshape(node, x)


def _squeezed(b: Builder, node: fx.Node) -> str:
    """Squeeze and unsqueeze, when sizes are known, are reshapes; so they are all written as one."""
    return _reshape(b, node)


def _permute(b: Builder, node: fx.Node) -> str:
    x, order = arguments(node)
    rank = b.rank(x)
    return b.emit("Transpose", b.tensor(x), perm=[axis % rank for axis in order])


def _transpose(b: Builder, node: fx.Node) -> str:
    x, first, second = arguments(node)
    order = list(range(b.rank(x)))
    order[first], order[second] = order[second], order[first]
    return b.emit("Transpose", b.tensor(x), perm=order)


def _matrix_transpose(b: Builder, node: fx.Node) -> str:
    return b.emit("Transpose", b.tensor(arguments(node)[0]), perm=list(range(b.rank(node)))[::-1])


def _slice(b: Builder, node: fx.Node) -> str:
    x = arguments(node)[0]
    axis, start, end = b.argument(1, "dim", 0), b.argument(2, "start"), b.argument(3, "end")
    step = b.number(b.argument(4, "step", 1))
    first = b.as_sizes([0 if start is None else b.scalar(start)])
    last = b.as_sizes([LAST if end is None else b.scalar(end)])
    axes = b.integers(axis % b.rank(x))
    return b.emit("Slice", b.tensor(x), first, last, axes, b.integers(step))


def _select(b: Builder, node: fx.Node) -> str:
    x, axis, index = arguments(node)
    chosen = b.constant(torch.tensor(b.number(index), dtype=torch.int64, device="cpu"))
    return b.emit("Gather", b.tensor(x), chosen, axis=axis % b.rank(x))


def _cat(b: Builder, node: fx.Node) -> str:
    parts, axis = arguments(node)[0], b.argument(1, "dim", 0)
    assert isinstance(parts, Sequence)
    names = [b.tensor(part, b.fact(node).dtype) for part in parts if not _is_legacy_empty(b, part)]
    return b.emit("Concat", *names, axis=axis % b.rank(node))


def _is_legacy_empty(b: Builder, part: Any) -> bool:
    """torch lets a tensor of shape [0] be concatenated with anything."""
    return isinstance(part, fx.Node) and b.shape(part) == [0]


def _stack(b: Builder, node: fx.Node) -> str:
    parts, axis = arguments(node)[0], b.argument(1, "dim", 0) % b.rank(node)
    assert isinstance(parts, Sequence)
    axes = b.integers(axis)
    names = [b.emit("Unsqueeze", b.tensor(part, b.fact(node).dtype), axes) for part in parts]
    return b.emit("Concat", *names, axis=axis)


def _split_along(b: Builder, node: fx.Node, x: fx.Node, axis: int) -> list[str]:
    """Split ``x`` along an axis into the sizes that the results of ``node`` have."""
    sizes = [int(part.shape[axis]) for part in b.fact(node)]
    if b.size(x, axis) is None:
        raise b.refusal("it splits a size that depends on the input")
    if len(sizes) == 1:
        return [b.tensor(x)]
    lengths = b.integers(*sizes)
    return b.emit_many("Split", b.tensor(x), lengths, results=len(sizes), axis=axis)


def _split(b: Builder, node: fx.Node) -> list[str]:
    x = arguments(node)[0]
    return _split_along(b, node, x, b.argument(2, "dim", 0) % b.rank(x))


def _unbind(b: Builder, node: fx.Node) -> list[str]:
    x, axis = arguments(node)[0], b.argument(1, "dim", 0)
    return [
        b.emit("Gather", b.tensor(x), b.constant(number), axis=axis % b.rank(x))
        for number in torch.arange(len(b.fact(node)), dtype=torch.int64, device="cpu")
    ]


def _expand(b: Builder, node: fx.Node) -> str:
    x = arguments(node)[0]
    added = b.rank(node) - b.rank(x)
    sizes: list[int | str] = []
    for axis in range(b.rank(node)):
        fixed = b.size(node, axis)
        if axis >= added and b.same_size(node, axis, x, axis - added):
            sizes.append(1)  # as it is
        elif fixed is not None:
            sizes.append(fixed)
        elif isinstance(b.argument(1), fx.Node):  # expand_as
            sizes.append(b.size_of(b.argument(1), axis))
        else:
            sizes.append(b.scalar(b.argument(1)[axis]))
    return b.emit("Expand", b.tensor(x), b.as_sizes(sizes))


def _repeat(b: Builder, node: fx.Node) -> str:
    x, times = arguments(node)
    added = b.rank(node) - b.rank(x)
    x_name = b.tensor(x)
    if added:
        x_name = b.emit("Unsqueeze", x_name, b.integers(*range(added)))
    return b.emit("Tile", x_name, b.as_sizes([b.scalar(count) for count in times]))


_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}


def _pad(b: Builder, node: fx.Node) -> str:
    x, sides = arguments(node)[0], _sides(b, node)
    mode, value = b.argument(2, "mode", "constant"), b.argument(3, "value")
    return _padded(b, node, x, sides, mode, value)


def _constant_pad(b: Builder, node: fx.Node) -> str:
    x, sides = arguments(node)[0], _sides(b, node)
    return _padded(b, node, x, sides, "constant", b.argument(2, "value", 0))


def _sides(b: Builder, node: fx.Node) -> list[int | str]:
    """Pixels on each side, of which some may be computed from the image's size."""
    return [b.scalar(side) for side in arguments(node)[1]]


def _padded(
    b: Builder, node: fx.Node, x: fx.Node, sides: Sequence[int | str], mode: Any, value: Any
) -> str:
    """torch lists (before, after) from the last dimension on; ONNX all befores, then all afters."""
    image, rank = b.tensor(x), b.rank(x)
    before: list[int | str] = [0] * rank
    after: list[int | str] = [0] * rank
    for index, (first, second) in enumerate(zip(sides[::2], sides[1::2], strict=True)):
        before[rank - 1 - index], after[rank - 1 - index] = first, second
    if mode not in (*_MODES, "circular"):
        raise b.refusal(f"it pads by {mode!r}")
    known = [side for side in sides if isinstance(side, int)]
    if mode != "constant" and len(known) < len(sides):
        raise b.refusal("it repeats the image by a padding that depends on the input")
    if mode == "circular":
        return _wrapped(b, x, image, [b.number(n) for n in before], [b.number(n) for n in after])
    if mode != "constant" and min(known) < 0:
        raise b.refusal("it cuts off with a padding that repeats the image")
    fill = b.tensor(value or 0.0, b.dtype(image)) if mode == "constant" else ""
    return b.emit("Pad", image, b.as_sizes([*before, *after]), fill, mode=_MODES[mode])


def _wrapped(b: Builder, x: fx.Node, image: str, before: list[int], after: list[int]) -> str:
    """Circular padding; as a mode of Pad, ONNX has it from version 19 on, and runtimes later."""
    for axis in range(b.rank(x)):
        if before[axis] == after[axis] == 0:
            continue
        axes = b.integers(axis)
        parts = [image]
        if before[axis]:
            start, end = b.integers(-before[axis]), b.integers(LAST)
            parts.insert(0, b.emit("Slice", image, start, end, axes))
        if after[axis]:
            parts.append(b.emit("Slice", image, b.integers(0), b.integers(after[axis]), axes))
        image = b.emit("Concat", *parts, axis=axis)
    return image


def _pixel_shuffle(b: Builder, node: fx.Node) -> str:
    x, factor = arguments(node)
    return b.emit("DepthToSpace", b.tensor(x), blocksize=factor, mode="CRD")


def _channel_shuffle(b: Builder, node: fx.Node) -> str:
    """Channels as [groups, the rest], the other way round."""
    x, groups = arguments(node)
    split = b.emit(
        "Reshape", b.tensor(x), b.integers(0, groups, b.number(b.size(x, 1)) // groups, -1)
    )
    return b.reshape_like(b.emit("Transpose", split, perm=[0, 2, 1, 3]), x)


def _flip(b: Builder, node: fx.Node) -> str:
    x, axes = arguments(node)
    turned, rank = [axis % b.rank(x) for axis in axes], len(axes)
    ends = (b.integers(*[-1] * rank), b.integers(*[-LAST] * rank))
    return b.emit("Slice", b.tensor(x), *ends, b.integers(*turned), b.integers(*[-1] * rank))


def _constant(b: Builder, node: fx.Node) -> str:
    """A tensor that depends on nothing but numbers, computed now."""
    args = b.number([*arguments(node)])
    options = {key: b.number(value) for key, value in node.kwargs.items()}
    value = node.target(*args, **options)  # type: ignore[operator]
    return b.constant(value, str(node.meta.get("module") or node.name))


RULES: dict[Any, Any] = {
    **dict.fromkeys(
        (
            aten.clone.default, aten.contiguous.default, aten.detach.default, aten.alias.default,
            aten.dropout.default, aten.feature_dropout.default, aten.lift_fresh_copy.default,
        ),
        _same,
    ),
    **dict.fromkeys(
        (
            aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other,
            aten._to_copy.default, aten.type_as.default,
        ),
        _cast,
    ),
    aten.flatten.using_ints: _flatten,
    **dict.fromkeys(
        (
            aten.reshape.default, aten.view.default, aten._unsafe_view.default,
            aten.unflatten.int, aten.view_as.default,
        ),
        _reshape,
    ),
    **dict.fromkeys(
        (
            aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default,
        ),
        _squeezed,
    ),
    aten.permute.default: _permute,
    aten.transpose.int: _transpose,
    **{aten.t.default: _matrix_transpose, aten.numpy_T.default: _matrix_transpose},
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    **{aten.cat.default: _cat, aten.concat.default: _cat, aten.stack.default: _stack},
    **dict.fromkeys(
        (
            aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default,
            aten.split.sizes,
        ),
        _split,
    ),
    aten.unbind.int: _unbind,
    **{aten.expand.default: _expand, aten.expand_as.default: _expand},
    aten.repeat.default: _repeat,
    **{aten.pad.default: _pad, aten.constant_pad_nd.default: _constant_pad},
    aten.pixel_shuffle.default: _pixel_shuffle,
    aten.channel_shuffle.default: _channel_shuffle,
    aten.flip.default: _flip,
    **dict.fromkeys(
        (
            aten.arange.default, aten.arange.start, aten.arange.start_step, aten.zeros.default,
            aten.ones.default, aten.full.default, aten.eye.default, aten.scalar_tensor.default,
        ),
        _constant,
    ),
}  # fmt: skip
"""Operator -> translation."""
