"""Channels side by side, in other orders and under other names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fastres.ir import ops
from fastres.ir.graph import argument_of, arguments, constant
from fastres.ir.views import Linear
from fastres.runtime.native.operations import Op, Value, Window
from fastres.runtime.native.rules_maps import FLOATS, MAPS
from fastres.runtime.native.subgraph_builder import (
    Facts,
    Rule,
    SubgraphBuilder,
    is_batch,
    named,
    sizes,
)

aten = torch.ops.aten

_MOVES = "it moves data"


def _is_floats(fact: Any) -> bool:
    return is_batch(fact) and fact.dtype in FLOATS


# --- the same numbers by another name


def _rename_refusal(node: fx.Node, facts: Facts) -> str | None:
    x, fact = facts[arguments(node)[0]], facts[node]
    if not is_batch(x) or not is_batch(fact) or x.shape[0] != fact.shape[0]:
        return _MOVES
    if sizes(x) != sizes(fact) or x.dtype != fact.dtype:
        return _MOVES
    turns = node.target in (aten.transpose.int, aten.permute.default)
    return _MOVES if turns and fact.numel() != fact.shape[0] * sizes(fact)[0] else None


def _rename(builder: SubgraphBuilder, node: fx.Node) -> None:
    builder.alias(node, arguments(node)[0])


def _reshape_refusal(node: fx.Node, facts: Facts) -> str | None:
    if _rename_refusal(node, facts) is None or _shuffled(node, facts) is not None:
        return None
    return None if _opens_shuffle(node, facts) or _feeds_products(node, facts) else _MOVES


def _reshape(builder: SubgraphBuilder, node: fx.Node) -> None:
    shuffle = _shuffled(node, builder.facts)
    if shuffle is None:
        if _rename_refusal(node, builder.facts) is None:
            _rename(builder, node)
    else:
        x, groups = shuffle
        each = sizes(builder.facts[x])[0] // groups
        order = [(g * each + i, i * groups + g, 1) for i in range(each) for g in range(groups)]
        builder.append("gather", node, x, copies=tuple(order))


def _reshape_is_lazy(node: fx.Node, facts: Facts) -> bool:
    return _rename_refusal(node, facts) is not None and _shuffled(node, facts) is None


# --- [N, C, H, W] as a vector, which a matrix product reads as an image


def _feeds_products(node: fx.Node, facts: Facts) -> bool:
    x, fact = facts[arguments(node)[0]], facts[node]
    return (
        _is_floats(x)
        and isinstance(fact, Tensor)
        and x.dim() == 4
        and fact.dim() == 2
        and fact.shape[0] == x.shape[0]
        and bool(node.users)
        and all(user.target is ops.linear and Linear.of(user).has_constants for user in node.users)
    )


# --- a channel shuffle: [N, g * c, H, W] -> [N, g, c, H, W] -> [N, c, g, H, W] -> [N, c * g, H, W]


def _shuffled(node: fx.Node, facts: Facts) -> tuple[fx.Node, int] | None:
    """What a node shuffles the channels of, and the number of groups; None where it does not."""
    if node.target is aten.channel_shuffle.default:
        x, groups = arguments(node)[:2]
        return (x, groups) if _is_floats(facts[x]) and facts[x].dim() == 4 else None
    turned = arguments(node)[0]
    if isinstance(turned, fx.Node) and turned.target in _COPIES:
        turned = arguments(turned)[0]
    if not isinstance(turned, fx.Node) or turned.target is not aten.transpose.int:
        return None
    cut = arguments(turned)[0]
    if cut.target not in _RESHAPES or sorted(arguments(turned)[1:]) != [1, 2]:
        return None
    x = arguments(cut)[0]
    if not isinstance(x, fx.Node) or not _is_floats(facts.get(x)) or facts[x].dim() != 4:
        return None
    n, c, h, w = facts[x].shape
    shape = tuple(facts[cut].shape)
    fits = len(shape) == 5 and shape[0] == n and shape[3:] == (h, w) and shape[1] * shape[2] == c
    return (x, int(shape[1])) if fits and facts[node].shape == facts[x].shape else None


def _opens_shuffle(node: fx.Node, facts: Facts) -> bool:
    """Whether a node's result is only read by a shuffle, through the nodes that make it one."""
    if len(node.users) != 1:
        return False
    (user,) = node.users
    if user.target in (aten.transpose.int, *_COPIES):
        return _opens_shuffle(user, facts)
    return user.target in _RESHAPES and _shuffled(user, facts) is not None


def _turn_refusal(node: fx.Node, facts: Facts) -> str | None:
    if _rename_refusal(node, facts) is None or _opens_shuffle(node, facts):
        return None
    return _MOVES


def _turn(builder: SubgraphBuilder, node: fx.Node) -> None:
    if _rename_refusal(node, builder.facts) is None:
        _rename(builder, node)


def _turn_is_lazy(node: fx.Node, facts: Facts) -> bool:
    return _rename_refusal(node, facts) is not None


_RESHAPES = (aten.reshape.default, aten.view.default, aten.flatten.using_ints)
_COPIES = (aten.clone.default, aten.contiguous.default)


# --- one number for a whole image


def _expand_refusal(node: fx.Node, facts: Facts) -> str | None:
    x, fact = facts[arguments(node)[0]], facts[node]
    if _rename_refusal(node, facts) is None:
        return None
    if not _is_floats(x) or not _is_floats(fact) or x.dim() != 4 or fact.dim() != 4:
        return _MOVES
    if x.shape[0] != fact.shape[0] or not node.users:
        return _MOVES
    return None if all(user.target in MAPS for user in node.users) else _MOVES


# --- parts of channels, and parts put together


def _slice_refusal(node: fx.Node, facts: Facts) -> str | None:
    return None if _channels_of(node, facts) is not None else _MOVES


def _channels_of(node: fx.Node, facts: Facts) -> tuple[int, int] | None:
    """The first channel of a slice, and how many it has."""
    x, *rest = arguments(node)
    defaults: tuple[Any, ...] = (0, None, None, 1)
    dim, start, end, step = (*rest, *defaults[len(rest) :])
    fact, result = facts[x], facts[node]
    if not _is_floats(fact) or fact.dim() not in (2, 4) or not _is_floats(result):
        return None
    if dim not in (1, 1 - fact.dim()) or step != 1:
        return None
    if not all(number is None or isinstance(number, int) for number in (start, end)):
        return None
    begin, stop, _ = slice(start, end).indices(fact.shape[1])
    return begin, stop - begin


def _slice(builder: SubgraphBuilder, node: fx.Node) -> None:
    found = _channels_of(node, builder.facts)
    assert found is not None
    first, count = found
    source = builder.value(arguments(node)[0])
    lanes = source.layout.lanes
    if not source.layout.small and first % lanes == count % lanes == 0:
        builder.values[node] = Value(builder.layout(node), whole=(source, first))
    else:
        builder.append("gather", node, arguments(node)[0], copies=((first, 0, count),))


def _cat_refusal(node: fx.Node, facts: Facts) -> str | None:
    parts, dim = (*arguments(node), 0)[:2]
    fact = facts[node]
    if not _is_floats(fact) or fact.dim() not in (2, 4) or dim not in (1, 1 - fact.dim()):
        return _MOVES
    if not all(_is_floats(facts.get(part)) for part in parts):
        return "a part of it is no batch of images or vectors"
    if any(facts[part].shape[0] != fact.shape[0] for part in parts):
        return "a part of it stands for all images"
    same = all(facts[p].dtype == fact.dtype and facts[p].dim() == fact.dim() for p in parts)
    return None if same else "its parts have different dtypes"


def _cat(builder: SubgraphBuilder, node: fx.Node) -> None:
    """Parts are made where they belong as far as whole lines allow it; the others are copied."""
    whole = Value(builder.layout(node))
    builder.values[node] = whole
    parts = [builder.value(part) for part in arguments(node)[0]]
    builder.parts[whole] = parts
    first, index = 0, 0
    while index < len(parts):
        part = parts[index]
        count = 1
        # What begins as an earlier concatenation has that one for its first part.
        if part.whole is not None:
            earlier, offset = part.root
            same = builder.parts.get(earlier)
            if offset == 0 and same is not None and parts[index : index + len(same)] == same:
                part, count = earlier, len(same)
        channels = part.layout.channels
        lanes = whole.layout.lanes
        ends = index + count == len(parts)
        aligned = first % lanes == 0 and (channels % lanes == 0 or ends)
        is_free = part.whole is None and not part.layout.small and part not in parts[:index]
        if aligned and is_free:
            part.whole = (whole, first)
        else:
            op = Op("gather", node, part, whole, copies=((0, first, channels),))
            builder.result.ops.append(op)
        first += channels
        index += count


# --- neighbouring channels (ECA)


def _conv1d_refusal(node: fx.Node, facts: Facts) -> str | None:
    x, weight, bias, stride, padding, dilation, groups = _conv1d_arguments(node)
    filters = constant(weight)
    fact = facts[x]
    if filters is None or (bias is not None and constant(bias) is None):
        return "its weight is computed from the input"
    if not _is_floats(fact) or fact.dim() != 3 or fact.shape[1] != 1 or filters.shape[:2] != (1, 1):
        return "the native engine has no such form of it"
    same = 2 * padding + 1 == filters.shape[2] if isinstance(padding, int) else False
    if stride != 1 or dilation != 1 or groups != 1 or not same:
        return "the native engine has no such form of it"
    return None


def _conv1d_arguments(node: fx.Node) -> tuple[Any, ...]:
    defaults = (None, 1, 0, 1, 1)
    names = ("bias", "stride", "padding", "dilation", "groups")
    rest = [
        argument_of(node, index, name, default)
        for index, (name, default) in enumerate(zip(names, defaults, strict=True), start=2)
    ]
    single = [value[0] if isinstance(value, (list, tuple)) else value for value in rest[1:]]
    return (*arguments(node)[:2], rest[0], *single)


def _conv1d(builder: SubgraphBuilder, node: fx.Node) -> None:
    x, weight, bias, _, padding, _, _ = _conv1d_arguments(node)
    name, filters = named(weight)
    builder.append(
        "channel_convolution",
        node,
        x,
        weight=(name, filters),
        bias=None if bias is None else named(bias),
        window=Window(kernel=(int(filters.shape[2]), 1), padding=(padding, 0)),
    )


_RESHAPE = Rule(_reshape_refusal, _reshape, _reshape_is_lazy)
_TURN = Rule(_turn_refusal, _turn, _turn_is_lazy)
_EXPAND = Rule(_expand_refusal, _rename, lambda node, facts: bool(_rename_refusal(node, facts)))

RULES: dict[Any, Rule] = {
    aten.flatten.using_ints: _RESHAPE,
    aten.reshape.default: _RESHAPE,
    aten.view.default: _RESHAPE,
    aten.channel_shuffle.default: _RESHAPE,
    aten.transpose.int: _TURN,
    aten.clone.default: _TURN,
    aten.contiguous.default: _TURN,
    aten.permute.default: Rule(_rename_refusal, _rename),
    aten.squeeze.dim: Rule(_rename_refusal, _rename),
    aten.squeeze.dims: Rule(_rename_refusal, _rename),
    aten.unsqueeze.default: Rule(_rename_refusal, _rename),
    aten.expand.default: _EXPAND,
    aten.expand_as.default: _EXPAND,
    aten.slice.Tensor: Rule(_slice_refusal, _slice),
    aten.cat.default: Rule(_cat_refusal, _cat),
    aten.conv1d.default: Rule(_conv1d_refusal, _conv1d),
}
