"""In-place operations made functional: ``relu_(x)`` becomes ``relu(x)``, read by x's later readers.

Exact as long as nobody reads the same memory under another name, so views are looked for first;
where somebody does, torch's own functionalisation has to be used (right in every case, but seconds
for a ResNet-50).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fastres.ir.graph import arguments


def is_in_place(node: Any) -> bool:
    """Whether a node writes to one of its arguments, by its operator's schema."""
    schema = getattr(getattr(node, "target", None), "_schema", None)
    return bool(node.op == "call_function" and schema is not None and schema.is_mutable)


def is_view(node: Any) -> bool:
    """Whether a node's result may share memory with an argument that it does not write."""
    schema = getattr(getattr(node, "target", None), "_schema", None)
    if node.op != "call_function" or schema is None or schema.is_mutable:
        return False
    return any(result.alias_info is not None for result in schema.returns)


def can_make_functional(graph: fx.Graph) -> bool:
    """Whether :func:`make_functional` is exact for this graph."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    roots: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if is_in_place(node):
            written = arguments(node)[0] if arguments(node) else None
            if not isinstance(written, fx.Node) or _functional(node) is None:
                return False
            roots[node] = roots.get(written, written)
    members: dict[fx.Node, set[fx.Node]] = {}
    for node, root in roots.items():
        members.setdefault(root, {root}).add(node)
    for root, aliases in members.items():
        last_write = max(order[node] for node in aliases)
        first_write = min(order[node] for node in aliases - {root})
        if is_view(root) and not _is_all_that_is_read(root, order, first_write, roots):
            return False
        for alias in aliases:
            if any(is_view(user) and order[user] < last_write for user in alias.users):
                return False
    return True


def _is_all_that_is_read(
    view: fx.Node, order: dict[fx.Node, int], write: int, roots: dict[fx.Node, fx.Node]
) -> bool:
    """Whether from a write on, nobody reads a view's memory but through the view.

    GhostNet adds to ``torch.cat([...])[:, :c]``, of which it never reads the rest.
    """
    while is_view(view):
        source = arguments(view)[0]
        if not isinstance(source, fx.Node) or source.op != "call_function" or source in roots:
            return False  # the caller's memory, the model's, or what was written to already
        others = [user for user in source.users if user is not view]
        if any(is_view(user) or is_in_place(user) or order[user] > write for user in others):
            return False
        view = source
    return True


def make_functional(graph: fx.Graph) -> list[fx.Node]:
    """Replace every ``op_`` by its ``op``.

    Returns:
        The placeholders that the model would have written to, for the receipt.
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    written_inputs: list[fx.Node] = []
    for node in list(graph.nodes):
        if not is_in_place(node):
            continue
        written = arguments(node)[0]
        if written.op == "placeholder":
            written_inputs.append(written)
        node.target = _functional(node)
        later = [user for user in written.users if order[user] > order[node]]
        for user in later:
            user.replace_input_with(written, node)
    return written_inputs


def _functional(node: fx.Node) -> Any:
    """``aten.add.Tensor`` for a call of ``aten.add_.Tensor``; None where that is not the same."""
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    name = target._opname
    packet = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") else None
    if packet is None or target._overloadname not in packet.overloads():
        return None
    dtypes = {
        a.meta["val"].dtype for a in node.all_input_nodes if isinstance(a.meta.get("val"), Tensor)
    }
    # Written in place, a result keeps the dtype of what it replaces; the functional form promotes.
    return getattr(packet, target._overloadname) if len(dtypes) == 1 else None
