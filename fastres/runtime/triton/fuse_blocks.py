"""Several layers into one kernel, for GPUs and sizes where that pays.

::

    relu(conv1x1(relu(conv(x))) + r)            -> bottleneck(x, residual=r)
    relu(... + conv1x1(r))                      -> bottleneck(x, residual=r, shortcut_weight=...)
    y = bottleneck(...); relu(conv1x1(y))       -> y, next = bottleneck(..., next_weight=...)
    max_pool2d(act(conv(x)))                    -> conv2d_max_pool2d(x)
    conv2d_max_pool2d(normalised(pixels))       -> conv2d_max_pool2d(pixels, scale, shift)
    act(linear(global_avg_pool(x)))             -> pool_linear(x)

The first four also of int8, where the whole block is: ``quantized_bottleneck`` and
``quantized_conv2d_max_pool2d``.

Checks: nobody else reads the value that disappears; weights are constants; the 1x1 convolutions
have stride 1, no padding and no groups (a shortcut may have a stride); summands have one shape;
``normalised`` is ``scale_shift(pixels.permute(0, 3, 1, 2).to(dtype))`` of an argument of the model,
uint8 [N, H, W, C], in the dtype of the weights; and the caller's predicate finds that the fused
kernel pays. It is asked for the largest form first, then for smaller ones: without the next block's
convolution, without the shortcut's, without both; without the normalisation.

Unlike the passes of :mod:`fastres.passes` this one needs known sizes. It is run by the engine, for
one set of input shapes, on a graph of its own; :func:`copy` makes one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, fx

from fastres.ir import ops
from fastres.ir.graph import (
    add_constant,
    arguments,
    call,
    constant,
    copy_meta,
    erase_unused,
    is_call,
    label,
    module_of,
)
from fastres.ir.views import (
    Bottleneck,
    Conv2d,
    GlobalAvgPool,
    Linear,
    MaxPool2d,
    QuantizedBottleneck,
    QuantizedConv2d,
    QuantizedStem,
    ScaleShift,
    Stem,
    View,
)
from fastres.kernels.spec import BottleneckSpec, ConvSpec, PoolLinearSpec, StemSpec, pair
from fastres.report import Remark

aten = torch.ops.aten

BlockSpec: TypeAlias = "BottleneckSpec | StemSpec | PoolLinearSpec"

Convolution: TypeAlias = "Conv2d | QuantizedConv2d"

FusionPolicy: TypeAlias = "Callable[[BlockSpec], str | None]"
"""Why the fused kernel does not pay for these sizes, as a sentence; None where it does."""


@dataclass
class BlockContext:
    """What the pass is given beside the graph.

    Attributes:
        facts: what every node of the graph is: fake tensors of known shape.
        why_not: decides about each candidate that is correct to fuse.
        refused: what was not fused, and why; filled by the pass.
    """

    facts: Mapping[fx.Node, Any]
    why_not: FusionPolicy
    refused: list[Remark] = field(default_factory=list)

    def refuse(self, node: fx.Node, what: str, reason: str) -> None:
        """Record that a candidate stays as it is."""
        self.refused.append(Remark(module_of(node), what, reason))


def copy(module: fx.GraphModule) -> fx.GraphModule:
    """A graph module to rewrite, on the same constants."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        values[node] = graph.node_copy(node, values.__getitem__)
    return fx.GraphModule(module, graph)


def run(module: fx.GraphModule, context: BlockContext) -> None:
    """Fuse in graph order: a block that ends takes the next one's first convolution along."""
    for node in list(module.graph.nodes):
        if node._erased:  # an earlier step took it
            continue
        if node.target in (ops.conv2d, ops.quantized_conv2d):
            _fuse_bottleneck(node, context)
        elif node.target is ops.max_pool2d:
            _fuse_stem(node, context)
        elif node.target is ops.linear:
            _fuse_head(node, context)
    module.graph.lint()
    module.recompile()


def _conv(node: Any) -> Convolution | None:
    """What a node convolves with constant filters; None for anything else."""
    if is_call(node, ops.conv2d):
        conv = Conv2d.of(node)
        return None if conv.filters is None else conv
    if not is_call(node, ops.quantized_conv2d):
        return None
    bytes_ = QuantizedConv2d.of(node)
    known = bytes_.has_constants and constant(bytes_.weight_scale) is not None
    return bytes_ if known else None


class _Unit(NamedTuple):
    """What a tensor of bytes counts."""

    scale: float
    zero_point: int


def _read_unit(conv: QuantizedConv2d) -> _Unit:
    return _Unit(conv.x_scale, conv.x_zero_point)


def _residual_unit(conv: QuantizedConv2d) -> _Unit:
    return _Unit(conv.residual_scale, conv.residual_zero_point)


def _unit(conv: QuantizedConv2d) -> _Unit:
    return _Unit(conv.scale, conv.zero_point)


def _continues(reader: Convolution, read: Convolution) -> bool:
    """Whether one reads of another's result what it means: the same numbers, in the same unit."""
    if isinstance(reader, QuantizedConv2d) and isinstance(read, QuantizedConv2d):
        return _read_unit(reader) == _unit(read)
    return isinstance(reader, Conv2d) and isinstance(read, Conv2d)


def _ends_in_relu(conv: Convolution) -> bool:
    """Whether it has a ReLU and no other activation.

    Bytes whose least stands for 0 have one anyway: what is below is cut off.
    """
    if isinstance(conv, QuantizedConv2d) and conv.zero_point == 0:
        return conv.activations in (("none", "relu"), ("none", "none"))
    return conv.activations == ("none", "relu")


def _fuse_bottleneck(node: fx.Node, context: BlockContext) -> None:
    expand = _conv(node)
    if expand is None or not expand.is_plain_1x1 or expand.residual is None:
        return
    first = _conv(expand.x)
    if first is None:
        return  # the residual addition of something else than a bottleneck
    reason = _why_no_tail(expand, first, context)
    if reason is not None:
        context.refuse(node, "bottleneck", reason)
        return
    shortcut, following = _shortcut(expand), _following(expand)
    forms = [
        (shortcut, following),
        (shortcut, None),
        (None, following),
        (None, None),
    ]
    reasons: list[str] = []
    for index, form in enumerate(forms):
        if form in forms[:index]:
            continue
        reason = context.why_not(_bottleneck_spec(first, expand, *form, context))
        if reason is None:
            if reasons:
                context.refuse(node, _lost(form, forms[0]), reasons[0])
            _write_bottleneck(first, expand, *form)
            return
        reasons.append(reason)
    context.refuse(node, "bottleneck", reasons[-1])


def _lost(form: tuple[Any, Any], largest: tuple[Any, Any]) -> str:
    """Which convolutions of the largest form stayed outside the kernel."""
    names = ("shortcut", "next convolution")
    lost = (name for name, has, had in zip(names, form, largest, strict=True) if had and not has)
    return f"{' and '.join(lost)} in the bottleneck's kernel"


def _why_no_tail(expand: Convolution, first: Convolution, context: BlockContext) -> str | None:
    if not _ends_in_relu(first) or first.residual is not None:
        return f"{module_of(first.node)} is no plain convolution with ReLU"
    if not _ends_in_relu(expand):
        return "it does not end in an addition and a ReLU"
    if first.filters is not None and tuple(first.filters.shape[2:]) == (1, 1):
        return f"{module_of(first.node)} has 1x1 filters too"
    if expand.stride != (1, 1):
        return f"it has stride {expand.stride}"
    if len(first.node.users) != 1:
        return f"the output of {module_of(first.node)} is also read by something else"
    if first.node is expand.residual:
        return f"it adds the output of {module_of(first.node)}, which it convolves"
    assert expand.residual is not None  # looked at before
    if _fact(expand.residual, context).shape != _fact(expand.node, context).shape:
        return "its residual is broadcast at this size"
    images, weights = (first.x, expand.residual), (first.weight, expand.weight)
    tensors = [images, weights] if isinstance(expand, QuantizedConv2d) else [images + weights]
    if any(len({_fact(each, context).dtype for each in alike}) > 1 for alike in tensors):
        return "its tensors have several dtypes"
    if not _continues(expand, first):
        return f"it reads the output of {module_of(first.node)} in another unit"
    return None


def _shortcut(expand: Convolution) -> Convolution | None:
    """The 1x1 convolution on the shortcut, where nobody else reads it."""
    conv = _conv(expand.residual)
    if conv is None or not conv.is_plain_1x1 or len(conv.node.users) != 1:
        return None
    if isinstance(expand, QuantizedConv2d) and (
        not isinstance(conv, QuantizedConv2d) or _residual_unit(expand) != _unit(conv)
    ):
        return None
    if (conv.pre_activation, conv.activation, conv.residual) != ("none", "none", None):
        return None
    return conv


def _following(expand: Convolution) -> Convolution | None:
    """The next block's first convolution: 1x1, stride 1, ReLU; other readers do not matter."""
    for user in expand.node.users:
        conv = _conv(user)
        if (
            conv is not None
            and conv.x is expand.node
            and _continues(conv, expand)
            and conv.is_plain_1x1
            and conv.stride == (1, 1)
            and _ends_in_relu(conv)
            and conv.residual is None
        ):
            return conv
    return None


def _spec(conv: Convolution, context: BlockContext) -> ConvSpec:
    return conv.spec({conv.x: _fact(conv.x, context), conv.weight: conv.filters})


def _fact(node: fx.Node, context: BlockContext) -> Tensor:
    """What a node is; a fused one is known by the node that it came from."""
    fact = context.facts[node.meta.get("fused from", node)]
    assert isinstance(fact, Tensor)
    return fact


def _filters(conv: Convolution) -> int:
    """How many it has, which are constants."""
    assert conv.filters is not None
    return int(conv.filters.shape[0])


def _bottleneck_spec(
    first: Convolution,
    expand: Convolution,
    shortcut: Convolution | None,
    following: Convolution | None,
    context: BlockContext,
) -> BottleneckSpec:
    return BottleneckSpec(
        conv=_spec(first, context),
        expand_k=_filters(expand),
        shortcut=None if shortcut is None else _spec(shortcut, context),
        next_k=None if following is None else _filters(following),
        quantized=isinstance(expand, QuantizedConv2d),
    )


def _write_bottleneck(
    first: Convolution,
    expand: Convolution,
    shortcut: Convolution | None,
    following: Convolution | None,
) -> None:
    node = expand.node
    graph = node.graph
    if following is not None:  # its constants are read further down
        for read in following.node.all_input_nodes:
            if read.op == "get_attr" and read > node:
                node.prepend(read)
    with graph.inserting_before(node):
        block = _tail(first, expand, shortcut, following)
        fused = call(graph, block.target, block.args, f"{label(node)}_tail")
        fused.meta["module"] = node.meta.get("module", "")
        results = [
            call(graph, operator.getitem, (fused, index), label(old))
            for index, old in enumerate([node] if following is None else [node, following.node])
        ]
    for old, result in zip([node, following and following.node], results, strict=False):
        assert isinstance(old, fx.Node)
        copy_meta(result, old)
        result.meta["fused from"] = old.meta.get("fused from", old)
        old.replace_all_uses_with(result)
    gone = [following, expand, first, shortcut]
    erase_unused(conv.node for conv in gone if conv is not None)
    erase_unused(conv.bias for conv in (expand, shortcut) if conv is not None)


def _tail(first: Any, expand: Any, shortcut: Any, following: Any) -> View:
    """The operator for a block whose convolutions are all of one kind."""
    residual = expand.residual if shortcut is None else shortcut.x
    common: dict[str, Any] = {
        "x": first.x,
        "weight": first.weight,
        "bias": first.bias,
        "expand_weight": expand.weight,
        "expand_bias": expand.bias,
        "residual": residual,
        "shortcut_weight": None if shortcut is None else shortcut.weight,
        "shortcut_stride": (1, 1) if shortcut is None else shortcut.stride,
        "next_weight": None if following is None else following.weight,
        "next_bias": None if following is None else following.bias,
        "stride": first.stride,
        "padding": first.padding,
        "dilation": first.dilation,
        "groups": first.groups,
        "node": expand.node,
    }
    if isinstance(expand, Conv2d):
        if shortcut is not None:
            common["expand_bias"] = _sum_of_biases(expand.node.graph, expand, shortcut)
        return Bottleneck(**common)
    nothing = _Unit(1.0, 0)
    beside = _residual_unit(expand)
    scales, zero_points = zip(
        _read_unit(first),
        _unit(first),
        beside if shortcut is None else _read_unit(shortcut),
        nothing if shortcut is None else beside,
        _unit(expand),
        nothing if following is None else _unit(following),
        strict=True,
    )
    return QuantizedBottleneck(
        **common,
        weight_scale=first.weight_scale,
        expand_weight_scale=expand.weight_scale,
        shortcut_weight_scale=None if shortcut is None else shortcut.weight_scale,
        shortcut_bias=None if shortcut is None else shortcut.bias,
        next_weight_scale=None if following is None else following.weight_scale,
        scales=scales,
        zero_points=zero_points,
    )


def _sum_of_biases(graph: fx.Graph, expand: Conv2d, shortcut: Conv2d) -> Any:
    """Both convolutions end in one accumulator, which takes one bias."""
    biases = [bias for bias in (expand.bias, shortcut.bias) if bias is not None]
    if len(biases) < 2:
        return biases[0] if biases else None
    first, second = map(constant, biases)
    assert first is not None and second is not None
    total = (first.double() + second.double()).to(first.dtype)
    return add_constant(graph, f"{label(expand.node)}_both_biases", total)


def _fuse_stem(node: fx.Node, context: BlockContext) -> None:
    pool = MaxPool2d.of(node)
    conv = _conv(pool.x)
    if conv is None:
        return
    reason = None
    if len(conv.node.users) != 1:
        reason = f"the output of {module_of(conv.node)} is also read without it"
    elif conv.residual is not None or conv.pre_activation != "none":
        reason = f"{module_of(conv.node)} adds a residual"
    elif pool.ceil_mode or pool.dilation != (1, 1):
        reason = "it has dilation or rounds up"
    elif conv.groups != 1 or conv.dilation != (1, 1):
        reason = f"{module_of(conv.node)} has groups or dilation"
    else:
        spec = StemSpec(
            _spec(conv, context),
            pair(pool.kernel),
            pair(pool.stride),
            pair(pool.padding),
            quantized=isinstance(conv, QuantizedConv2d),
        )
        image = _normalised(conv, context) if isinstance(conv, Conv2d) else None
        if image is not None:
            reason = context.why_not(replace(spec, uint8=True))
            if reason is None:
                _write_stem(pool, conv, image)
                return
            context.refuse(
                image.steps[0], "normalisation", f"not in the convolution's kernel: {reason}"
            )
        reason = context.why_not(spec)
    if reason is not None:
        context.refuse(node, "max-pool", f"not in the convolution's kernel: {reason}")
        return
    _write_stem(pool, conv)


@dataclass(frozen=True)
class _Image:
    """An image as it is decoded, on its way to the network.

    Attributes:
        pixels: uint8 [N, H, W, C], an argument of the model.
        scale, shift: constants.
        steps: what is done to it, last first.
    """

    pixels: fx.Node
    scale: fx.Node
    shift: fx.Node
    steps: tuple[fx.Node, ...]


def _normalised(conv: Conv2d, context: BlockContext) -> _Image | None:
    """The image behind a convolution, where nobody else reads what becomes of it."""
    if not is_call(conv.x, ops.scale_shift):
        return None
    normalisation = ScaleShift.of(conv.x)
    cast, scale, shift = normalisation.x, normalisation.scale, normalisation.shift
    if not is_call(cast, aten.to.dtype) or not is_call(arguments(cast)[0], aten.permute.default):
        return None
    moved = arguments(cast)[0]
    pixels, axes = arguments(moved)
    image = _Image(pixels, scale, shift, (conv.x, cast, moved))
    fact = _fact(pixels, context)
    if (
        pixels.op != "placeholder"
        or (fact.dtype, fact.dim(), [axis % 4 for axis in axes]) != (torch.uint8, 4, [0, 3, 1, 2])
        or normalisation.activation != "none"
        or any(constant(each) is None for each in (scale, shift))
        or any(len(step.users) != 1 for step in image.steps)
        or {_fact(step, context).dtype for step in (conv.x, cast)} != {_dtype(conv)}
    ):
        return None
    return image


def _dtype(conv: Conv2d) -> torch.dtype:
    assert conv.filters is not None
    return conv.filters.dtype


def _write_stem(pool: MaxPool2d, conv: Convolution, image: _Image | None = None) -> None:
    common: dict[str, Any] = {
        "x": conv.x if image is None else image.pixels,
        "weight": conv.weight,
        "bias": conv.bias,
        "stride": conv.stride,
        "padding": conv.padding,
        "activation": conv.activation,
        "pool_kernel": pool.kernel,
        "pool_stride": pool.stride,
        "pool_padding": pool.padding,
        "node": pool.node,
    }
    stem: View
    if isinstance(conv, QuantizedConv2d):
        stem = QuantizedStem(
            **common,
            weight_scale=conv.weight_scale,
            x_scale=conv.x_scale,
            x_zero_point=conv.x_zero_point,
            scale=conv.scale,
            zero_point=conv.zero_point,
        )
    else:
        stem = Stem(
            **common,
            scale=None if image is None else image.scale,
            shift=None if image is None else image.shift,
        )
    _stand_for(pool.node, stem.target, stem.args, named_after=conv.node)
    erase_unused([conv.node, *(() if image is None else image.steps)])


def _fuse_head(node: fx.Node, context: BlockContext) -> None:
    linear = Linear.of(node)
    if not is_call(linear.x, ops.global_avg_pool):
        return
    filters, pool = linear.filters, GlobalAvgPool.of(linear.x)
    if pool.keepdim or filters is None:
        return  # then it is no classifier
    if len(pool.node.users) != 1:
        outside = f"the output of {module_of(pool.node)} is also read by others"
        context.refuse(node, "linear", outside)
        return
    n, c, h, w = map(int, _fact(pool.x, context).shape)
    reason = context.why_not(PoolLinearSpec(n, c, h, w, int(filters.shape[0])))
    if reason is not None:
        context.refuse(node, "linear", f"not in the pooling's kernel: {reason}")
        return
    args = (pool.x, linear.weight, linear.bias, linear.activation)
    _stand_for(node, ops.pool_linear, args, named_after=node)
    erase_unused([pool.node])


def _stand_for(node: fx.Node, target: Any, args: tuple[Any, ...], named_after: fx.Node) -> None:
    with node.graph.inserting_before(node):
        new = call(node.graph, target, args, label(named_after))
    copy_meta(new, node)
    new.meta["module"] = named_after.meta.get("module", "")
    new.meta["fused from"] = node
    node.replace_all_uses_with(new)
    erase_unused([node])
