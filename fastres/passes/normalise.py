"""One spelling per operation: ATen's many forms become the operators of :mod:`fastres.ir.ops`.

::

    conv2d, conv2d.padding, convolution          -> fastres::conv2d, four-sided padding
    batch_norm in eval mode                      -> fastres::scale_shift, float64 constants
        scale = weight / sqrt(running_var + eps)     (Ioffe and Szegedy 2015, algorithm 2)
        shift = bias - running_mean * scale
    max_pool2d                                   -> fastres::max_pool2d
    adaptive_avg_pool2d(1), mean over (H, W),
        avg_pool2d over the whole image          -> fastres::global_avg_pool
    linear                                       -> fastres::linear
    view                                         -> reshape, or flatten where it is one
    split, chunk                                 -> slice, one for each part that is read
    slice of everything                          -> nothing
    slice of what was written to the same slice  -> what was written

What has no such form stays ATen. Later passes need to know one name for each thing only.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fastres.ir import ops
from fastres.ir.graph import (
    activation_of,
    add_constant,
    argument_of,
    arguments,
    call,
    constant,
    erase_unused,
    is_call,
    label,
    module_of,
    pair_of,
    replace,
    value_of,
)
from fastres.kernels.spec import pair, same_padding
from fastres.passes.context import Context

aten = torch.ops.aten


def run(module: fx.GraphModule, context: Context) -> None:
    """Rewrite every node that has a canonical form, and count what the receipt counts."""
    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        rewrite = _REWRITES.get(node.target)
        if rewrite is not None:
            with module.graph.inserting_before(node):
                rewrite(node, context)
    for node in module.graph.nodes:
        if activation_of(node) != "none":
            context.report.found["activation"] += 1
        elif is_call(node, ops.conv2d):
            context.report.found["convolution"] += 1
        elif is_residual_addition(node):
            context.report.found["addition"] += 1


def is_residual_addition(node: fx.Node) -> bool:
    """Whether a node adds two feature maps (not a constant, not a number), and no stacked ones."""
    return (
        is_call(node, aten.add.Tensor)
        and not node.meta.get("of_maps")
        and all(
            isinstance(arg, fx.Node)
            and isinstance(value_of(arg), Tensor)
            and value_of(arg).dim() == 4
            and constant(arg) is None
            for arg in arguments(node)[:2]
        )
    )


def _call(node: fx.Node, target: Any, *args: Any) -> None:
    replace(node, call(node.graph, target, args, label(node)))


def _conv2d(node: fx.Node, context: Context) -> None:
    x, weight = arguments(node)[:2]
    bias = argument_of(node, 2, "bias", None)
    stride = pair(argument_of(node, 3, "stride", 1))
    padding = argument_of(node, 4, "padding", 0)
    dilation = pair(argument_of(node, 5, "dilation", 1))
    groups = argument_of(node, 6, "groups", 1)
    _convolve(node, x, weight, bias, stride, padding, dilation, groups)


def _convolution(node: fx.Node, context: Context) -> None:
    x, weight, bias, stride, padding, dilation, transposed, _, groups = arguments(node)
    if not transposed and value_of(node).dim() == 4:
        _convolve(node, x, weight, bias, pair(stride), padding, pair(dilation), groups)


def _convolve(
    node: fx.Node,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
) -> None:
    if value_of(node).dim() != 4:  # an image without a batch
        return
    if padding == "same":
        kernel = value_of(weight).shape[2:]
        sides = same_padding((int(kernel[0]), int(kernel[1])), dilation)
    elif padding == "valid":
        sides = (0, 0, 0, 0)
    else:
        sides = pair(padding) * 2
    _call(
        node, ops.conv2d, x, weight, bias, None, list(stride), list(sides), list(dilation), groups,
        "none", "none",
    )  # fmt: skip


def _batch_norm(node: fx.Node, context: Context) -> None:
    x, weight, bias, mean, var, training, _, eps = arguments(node)[:8]
    _normalise_batch(node, node, x, weight, bias, mean, var, bool(training), eps, context)


def _native_batch_norm(node: fx.Node, context: Context) -> None:
    x, weight, bias, mean, var, _, eps = arguments(node)
    (result,) = node.users  # getitem(0); the saved statistics have no reader in inference
    _normalise_batch(node, result, x, weight, bias, mean, var, False, eps, context)
    erase_unused([node])


def _batch_norm_of_batch(node: fx.Node, context: Context) -> None:
    context.report.found["batch_norm"] += 1
    context.report.refuse(module_of(node), "BatchNorm", _BATCH_STATISTICS)


_BATCH_STATISTICS = (
    "it normalises with the statistics of the batch, also in eval mode (no running statistics), "
    "so there is nothing constant to fold"
)


def _normalise_batch(
    node: fx.Node, result: fx.Node, x: Any, weight: Any, bias: Any, mean: Any, var: Any,
    training: bool, eps: Any, context: Context,
) -> None:  # fmt: skip
    context.report.found["batch_norm"] += 1
    if training or mean is None or var is None:
        context.report.refuse(module_of(node), "BatchNorm", _BATCH_STATISTICS)
        return
    statistics = [None if a is None else constant(a) for a in (weight, bias, mean, var)]
    if any(
        a is not None and s is None
        for a, s in zip((weight, bias, mean, var), statistics, strict=True)
    ):
        context.report.refuse(
            module_of(node), "BatchNorm", "its parameters are computed from the input"
        )
        return
    gamma, beta, mu, sigma2 = (None if s is None else s.double() for s in statistics)
    assert mu is not None and sigma2 is not None
    scale = torch.rsqrt(sigma2 + eps)
    scale = scale if gamma is None else gamma * scale
    shift = -mu * scale if beta is None else beta - mu * scale
    name = node.meta.get("module") or node.name
    scale_node = add_constant(node.graph, f"{name}_scale", scale, folded=True)
    shift_node = add_constant(node.graph, f"{name}_shift", shift, folded=True)
    new = call(node.graph, ops.scale_shift, (x, scale_node, shift_node, "none"), name)
    new.meta["batch_norm"] = True
    new.meta["statistics"] = (gamma, beta, mu, sigma2 + eps)
    replace(result, new)
    new.meta["module"] = node.meta.get("module", "")


def _max_pool2d(node: fx.Node, context: Context) -> None:
    if value_of(node).dim() == 4:
        _pool(node, node)


def _max_pool2d_with_indices(node: fx.Node, context: Context) -> None:
    if [user.args[1] for user in node.users] == [0]:
        _pool(node, next(iter(node.users)))
        erase_unused([node])  # unless it stayed as it was


def _pool(node: fx.Node, result: fx.Node) -> None:
    kernel = pair_of(arguments(node)[1])
    stride = pair_of(argument_of(node, 2, "stride", ()) or kernel or 0)
    padding = pair_of(argument_of(node, 3, "padding", 0))
    dilation = pair_of(argument_of(node, 4, "dilation", 1))
    ceil_mode = bool(argument_of(node, 5, "ceil_mode", False))
    if kernel is None or stride is None or padding is None or dilation is None:
        return
    sizes = (list(kernel), list(stride), list(padding), list(dilation))
    _call(result, ops.max_pool2d, arguments(node)[0], *sizes, ceil_mode)


def _adaptive_avg_pool2d(node: fx.Node, context: Context) -> None:
    if value_of(node).dim() == 4 and pair_of(arguments(node)[1]) == (1, 1):
        _call(node, ops.global_avg_pool, arguments(node)[0], True)


def _mean(node: fx.Node, context: Context) -> None:
    value = value_of(arguments(node)[0]) if isinstance(arguments(node)[0], fx.Node) else None
    axes = argument_of(node, 1, "dim", None)
    if not isinstance(value, Tensor) or value.dim() != 4 or not axes or node.kwargs.get("dtype"):
        return
    if sorted(axis % 4 for axis in axes) == [2, 3]:
        _call(
            node,
            ops.global_avg_pool,
            arguments(node)[0],
            bool(argument_of(node, 2, "keepdim", False)),
        )


def _avg_pool2d(node: fx.Node, context: Context) -> None:
    value = value_of(arguments(node)[0])
    padding = pair_of(argument_of(node, 3, "padding", 0))
    # Only plain numbers: comparing a symbol with a number would answer for the example's size.
    is_static = value.dim() == 4 and all(isinstance(size, int) for size in value.shape[2:])
    covers_image = is_static and tuple(value.shape[2:]) == pair_of(arguments(node)[1])
    if (
        covers_image
        and padding == (0, 0)
        and argument_of(node, 6, "divisor_override", None) is None
    ):
        _call(node, ops.global_avg_pool, arguments(node)[0], True)


def _linear(node: fx.Node, context: Context) -> None:
    _call(
        node,
        ops.linear,
        arguments(node)[0],
        arguments(node)[1],
        argument_of(node, 2, "bias", None),
        "none",
    )


def _view(node: fx.Node, context: Context) -> None:
    """A view demands a memory layout that channels-last activations lack; reshape does not."""
    x = arguments(node)[0]
    before, after = value_of(x), value_of(node)
    keeps_batch = (
        before.dim() >= 2 and after.dim() == 2 and str(before.shape[0]) == str(after.shape[0])
    )
    if keeps_batch:  # also right for an empty batch, where reshape(0, -1) has no answer
        _call(node, aten.flatten.using_ints, x, 1)
    elif node.target == aten.view.default:
        node.target = aten.reshape.default


def _split(node: fx.Node, context: Context) -> None:
    parts = value_of(node)
    x, dim = arguments(node)[0], argument_of(node, 2, "dim", 0)
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + part.shape[dim])
    is_read_by_part = all(user.target is operator.getitem for user in node.users)
    if not is_read_by_part or not all(isinstance(start, int) for start in starts):
        return
    for user in list(node.users):
        number: Any = arguments(user)[1]
        index = number % len(parts)
        _call(user, aten.slice.Tensor, x, dim, starts[index], starts[index + 1])
    erase_unused([node])


def _slice(node: fx.Node, context: Context) -> None:
    x, *rest = arguments(node)
    bounds = _bounds(x, rest)
    if bounds is None:
        node.replace_all_uses_with(x)
        erase_unused([node])
    elif is_call(x, aten.slice_scatter.default) and bounds == _bounds(x, arguments(x)[2:]):
        node.replace_all_uses_with(arguments(x)[1])  # what was written there
        erase_unused([node, x])


def _slice_scatter(node: fx.Node, context: Context) -> None:
    """What an in-place operation on a slice comes to, GhostNet's ``out[:, :c] += x`` say."""
    x, written, *rest = arguments(node)
    if _bounds(x, rest) is None:
        node.replace_all_uses_with(written)
        erase_unused([node])


def _bounds(x: Any, rest: Sequence[Any]) -> tuple[Any, ...] | None:
    """Axis, start, end and step of a slice of ``x``; None where it is all of it."""
    defaults: tuple[Any, ...] = (0, None, None, 1)
    dim, start, end, step = (*rest, *defaults[len(rest) :])
    size = value_of(x).shape[dim]
    known = isinstance(size, int) and isinstance(end, int)
    everything = end is None or end == sys.maxsize or (known and end >= size)
    if start in (None, 0) and step == 1 and everything:
        return None
    return dim % value_of(x).dim(), start or 0, end, step


_REWRITES: dict[Any, Callable[[fx.Node, Context], None]] = {
    aten.conv2d.default: _conv2d,
    aten.conv2d.padding: _conv2d,
    aten.convolution.default: _convolution,
    aten.batch_norm.default: _batch_norm,
    aten._native_batch_norm_legit_no_training.default: _native_batch_norm,
    aten._native_batch_norm_legit.no_stats: _batch_norm_of_batch,
    aten.max_pool2d.default: _max_pool2d,
    aten.max_pool2d_with_indices.default: _max_pool2d_with_indices,
    aten.adaptive_avg_pool2d.default: _adaptive_avg_pool2d,
    aten.mean.dim: _mean,
    aten.avg_pool2d.default: _avg_pool2d,
    aten.linear.default: _linear,
    aten.view.default: _view,
    aten.reshape.default: _view,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.chunk.default: _split,
    aten.slice.Tensor: _slice,
    aten.slice_scatter.default: _slice_scatter,
}
