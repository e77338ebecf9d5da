"""Small helpers on ``torch.fx`` graphs: constants, the user's module names, replacing nodes.

The intermediate representation is a plain ``torch.fx.GraphModule`` of ATen and fastres operators.
Weights are buffers of its root, read by ``get_attr`` nodes. These entries of ``node.meta`` are
ours:

- ``"module"``: dotted name of the user's module that the node came from ("" for the model itself);
- ``"source"``: name of the captured node whose value this node computes, so that a value can be
  compared with the same value in another graph of the same model;
- ``"lowered"``: the node is a cast that ``torch.autocast`` makes in the user's model;
- ``"of_maps"``: the node computes with one of several maps that the user's model has stacked;
- ``"added"``: the node is no part of the user's model, an option of ``optimize`` added it.
"""

from __future__ import annotations

import keyword
import operator
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from fastres.ir import ops
from fastres.kernels.activations import BY_ATEN
from fastres.kernels.spec import pair

INNER = "fastres_network"
"""Under this name a wrapper of fastres's own holds the user's model; users never see it."""


def user_path(path: str) -> str:
    """A module's or a tensor's dotted name in the user's model, of its name inside a wrapper."""
    return "" if path == INNER else path.removeprefix(f"{INNER}.")


def module_path(node: fx.Node) -> str:
    """``layer1.0.conv1`` from the stack of modules that torch.export records with each node."""
    return ".".join(part.split("@")[0] for part in user_path(module_stack(node)).split("."))


def module_stack(node: fx.Node) -> str:
    """The innermost module that ran a node, by its name in what was exported."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(next(reversed(stack.values()))[0]) if stack else ""


def module_of(node: fx.Node) -> str:
    """The user's module behind a node, worded for messages."""
    return str(node.meta.get("module") or "(the model itself)")


def label(node: fx.Node) -> str:
    """``layer1.0.conv1`` where a module is known, else the node's own name, unique in its graph."""
    return str(node.meta.get("module") or node.name)


def is_call(node: Any, *targets: Any) -> bool:
    """Whether ``node`` calls one of ``targets``."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def is_added_softmax(node: fx.Node) -> bool:
    """Whether a node is the softmax that ``optimize`` adds: probabilities are float32 or more."""
    return bool(node.meta.get("added")) and node.target is torch.ops.aten.softmax.int


def constant(node: Any) -> Tensor | None:
    """The tensor behind a ``get_attr`` node; None for anything else."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    owner = node.graph.owning_module
    if owner is None:
        return None
    value = getattr(owner, str(node.target))
    return value if isinstance(value, Tensor) else None


def add_constant(graph: fx.Graph, name: str, value: Tensor, folded: bool = False) -> fx.Node:
    """Store ``value`` as a buffer of the graph's module and read it at the insert point.

    A name that is taken gets a number; what cannot be in a name becomes an underscore. ``folded``
    marks a pass's own float64 value, which the last pass casts; a float64 constant of the user's
    stays one.
    """
    owner = graph.owning_module
    assert owner is not None
    stem = re.sub(r"[^0-9A-Za-z_]", "_", name) or "constant"
    if not stem.isidentifier() or keyword.iskeyword(stem):
        stem = f"_{stem}"  # the modules of nn.Sequential are numbers
    free, number = stem, 0
    while hasattr(owner, free):
        number += 1
        free = f"{stem}_{number}"
    owner.register_buffer(free, value.detach())
    if folded:
        owner.meta.setdefault("folded", set()).add(free)
    # Graph.get_attr warns that the attribute does not exist when the owner is being edited.
    return graph.create_node("get_attr", free)


def call(graph: fx.Graph, target: Any, args: Iterable[Any], name: str) -> fx.Node:
    """A call of an operator at the insert point, named after the user's module it stands for."""
    return graph.create_node("call_function", target, tuple(args), name=name.replace(".", "_"))


def value_of(node: fx.Node) -> Any:
    """The fake tensor (or symbolic number) that capture recorded for a node's value."""
    return node.meta.get("val")


def same_shape(a: Any, b: Any) -> bool:
    """Whether two nodes are tensors of the same dtype and, for every image size, the same shape."""
    x, y = (value_of(node) if isinstance(node, fx.Node) else None for node in (a, b))
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or x.dtype != y.dtype:
        return False
    return x.dim() == y.dim() and all(map(_same_size, x.shape, y.shape))


def _same_size(a: Any, b: Any) -> bool:
    """Equal as written, or equal for every value of the one symbol that both depend on.

    ``(s + 1) // 2`` and ``(s - 1) // 2 + 1`` are one size; sympy cannot tell. Sizes are sums and
    whole-number quotients, so those that agree from 2 to 257 agree. (An engine looks again at the
    real sizes.)
    """
    if str(a) == str(b):
        return True
    if not isinstance(a, torch.SymInt) or not isinstance(b, torch.SymInt):
        return False
    left, right = a.node.expr, b.node.expr
    if left.free_symbols != right.free_symbols or len(left.free_symbols) != 1:
        return False
    (symbol,) = left.free_symbols
    return all(left.subs(symbol, n) == right.subs(symbol, n) for n in range(2, 258))


def copy_meta(new: fx.Node, old: fx.Node) -> fx.Node:
    """Give ``new`` the recorded value, module and source of the node whose value it computes."""
    for key in ("val", "module", "source", "added", "lowered", "stack_trace"):
        if key in old.meta:
            new.meta[key] = old.meta[key]
    return new


def replace(old: fx.Node, new: fx.Node) -> None:
    """Let ``new`` stand for ``old`` everywhere, and remove ``old``."""
    copy_meta(new, old)
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)


def erase_unused(nodes: Iterable[Any]) -> None:
    """Remove those of ``nodes`` that nothing reads any more."""
    for node in nodes:
        if isinstance(node, fx.Node) and not node.users and node.op != "placeholder":
            node.graph.erase_node(node)


def drop_unused_constants(module: fx.GraphModule) -> None:
    """Remove buffers that no ``get_attr`` node reads."""
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in module.named_buffers(recurse=False)]:
        if name not in read:
            delattr(module, name)


def output_nodes(graph: fx.Graph) -> list[Any]:
    """What the graph returns, as a flat list of nodes and plain values."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    returned = output.args[0]
    return list(returned) if isinstance(returned, (tuple, list)) else [returned]


def aliases(target: Any) -> bool:
    """Whether an operator's result may share memory with an argument, by its schema.

    Functions without a schema are assumed to, unless they say ``returns_fresh``.
    """
    if getattr(target, "returns_fresh", False):
        return False
    schema = getattr(target, "_schema", None)
    if schema is None or not isinstance(target, torch._ops.OpOverload):
        return True
    return any(result.alias_info is not None for result in schema.returns)


def activation_of(node: Any) -> str:
    """Name of the activation that a stand-alone ATen node applies, or "none"."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return "none"
    row = BY_ATEN.get(node.target)
    if row is not None:
        return row.name
    bounds = list(node.args[1:])
    if node.target is torch.ops.aten.hardtanh.default and bounds == [0.0, 6.0]:
        return "relu6"
    if node.target is torch.ops.aten.clamp_min.default and bounds == [0]:
        return "relu"
    if node.target is torch.ops.aten.clamp.default and bounds in ([0], [0, None]):
        return "relu"
    return "none"


def arguments(node: fx.Node) -> tuple[Any, ...]:
    """A node's positional arguments, without the dozen types that torch declares for each."""
    return node.args


def argument_of(node: fx.Node, index: int, name: str, default: Any) -> Any:
    """An argument of a torch operator, given by position, by name or not at all."""
    args = arguments(node)
    return args[index] if len(args) > index else node.kwargs.get(name, default)


def pair_of(value: Any) -> tuple[int, int] | None:
    """A two-sided argument, or None where a part of it is computed from the image's size."""
    parts = [value] if isinstance(value, int) else list(value)
    return pair(parts) if all(isinstance(part, int) for part in parts) else None


MOVES_DATA: tuple[Any, ...] = (
    torch.ops.aten.flatten.using_ints,
    torch.ops.aten.reshape.default,
    torch.ops.aten.expand.default,
    torch.ops.aten.expand_as.default,
    torch.ops.aten.cat.default,
    torch.ops.aten.pad.default,
    torch.ops.aten.constant_pad_nd.default,
    torch.ops.aten.permute.default,
    torch.ops.aten.transpose.int,
    torch.ops.aten.slice.Tensor,
    torch.ops.aten.select.int,
    torch.ops.aten.split.Tensor,
    torch.ops.aten.split_with_sizes.default,
    torch.ops.aten.chunk.default,
    torch.ops.aten.unbind.int,
    torch.ops.aten.squeeze.default,
    torch.ops.aten.squeeze.dim,
    torch.ops.aten.squeeze.dims,
    torch.ops.aten.unsqueeze.default,
    torch.ops.aten.to.dtype,
    torch.ops.aten.clone.default,
    torch.ops.aten.sym_size.int,
    operator.getitem,
)
"""Operations that compute nothing: no reason to list them as left to torch."""

KERNELS_OF_SOME: tuple[Any, ...] = (
    torch.ops.aten.add.Scalar,
    torch.ops.aten.add.Tensor,
    torch.ops.aten.adaptive_avg_pool2d.default,
    torch.ops.aten.avg_pool2d.default,
    torch.ops.aten.channel_shuffle.default,
    torch.ops.aten.clamp.default,
    torch.ops.aten.clamp_max.default,
    torch.ops.aten.clamp_min.default,
    torch.ops.aten.conv1d.default,
    torch.ops.aten.conv_transpose2d.input,
    torch.ops.aten.div.Scalar,
    torch.ops.aten.div.Tensor,
    torch.ops.aten.elu.default,
    torch.ops.aten.gelu.default,
    torch.ops.aten.group_norm.default,
    torch.ops.aten.hardsigmoid.default,
    torch.ops.aten.hardswish.default,
    torch.ops.aten.hardtanh.default,
    torch.ops.aten.instance_norm.default,
    torch.ops.aten.leaky_relu.default,
    torch.ops.aten.mish.default,
    torch.ops.aten.mul.Scalar,
    torch.ops.aten.mul.Tensor,
    torch.ops.aten.prelu.default,
    torch.ops.aten.relu.default,
    torch.ops.aten.relu6.default,
    torch.ops.aten.rsub.Scalar,
    torch.ops.aten.selu.default,
    torch.ops.aten.sigmoid.default,
    torch.ops.aten.silu.default,
    torch.ops.aten.sub.Scalar,
    torch.ops.aten.sub.Tensor,
    torch.ops.aten.tanh.default,
    torch.ops.aten.upsample_bilinear2d.vec,
    torch.ops.aten.upsample_nearest2d.vec,
    ops.layer_norm2d,
)
"""What torch can do and some engines have kernels for: each says itself what it leaves to torch."""
