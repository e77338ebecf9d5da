"""A graph (``torch.fx``, ATen and fastres operators) as JSON, and back with every call checked.

::

    {"nodes": [{"kind": "input", "name": "x", "of": "x"},
               {"kind": "constant", "name": "w", "of": "conv1_weight_folded"},
               {"kind": "call", "name": "conv1", "of": "fastres::conv2d.default",
                "arguments": [{"node": "x"}, {"node": "w"}, ...], "named": {},
                "module": "conv1", "source": "conv2d", "asked": false}],
     "outputs": [{"node": "conv1"}]}

Names become names in a Python program (torch.fx writes one), so they are checked to be nothing but
names. A call's arguments are held against its operator's schema before the call is made a node.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, fx, nn

from fastres.artifact.arguments import accepts, argument_from_json, argument_to_json
from fastres.artifact.operators import PYTHON, operator_name, resolve, type_of
from fastres.artifact.strict import fields, identifier, items, of_type, text
from fastres.errors import ArtifactError
from fastres.ir import ops
from fastres.ir.graph import output_nodes
from fastres.kernels.activations import ACTIVATIONS
from fastres.transforms import Interpolation

MAX_NODES = 100_000
"""A ResNet-152 has about 800."""

_STRING_CHOICES: dict[str, tuple[str, ...]] = {
    "activation": tuple(ACTIVATIONS),
    "pre_activation": tuple(ACTIVATIONS),
    "interpolation": get_args(Interpolation),
}
"""What the arguments of fastres's operators that are texts may be."""

MAX_BITS = 256
"""Bits of a number computed from sizes, which themselves have 63."""


def graph_to_json(module: fx.GraphModule) -> dict[str, Any]:
    """A graph without its constants' values.

    Raises:
        ArtifactError: a node is none that a file can hold; the message names the user's module.
    """
    nodes = [_node_to_json(node) for node in module.graph.nodes if node.op != "output"]
    return {"nodes": nodes, "outputs": [argument_to_json(r) for r in output_nodes(module.graph)]}


def _node_to_json(node: fx.Node) -> dict[str, Any]:
    if node.op == "placeholder":
        return {"kind": "input", "name": node.name, "of": str(node.target)}
    if node.op == "get_attr":
        return {"kind": "constant", "name": node.name, "of": str(node.target)}
    module = str(node.meta.get("module") or "")
    if node.op != "call_function":
        raise ArtifactError(f"module {module or '(the model itself)'}: a node of kind {node.op}")
    try:
        return {
            "kind": "call",
            "name": node.name,
            "of": operator_name(node.target),
            "arguments": [argument_to_json(value) for value in node.args],
            "named": {name: argument_to_json(value) for name, value in node.kwargs.items()},
            "module": module,
            "source": str(node.meta.get("source") or ""),
            "asked": bool(node.meta.get("added")),
        }
    except ArtifactError as error:
        raise ArtifactError(f"module {module or '(the model itself)'}: {error}") from error


def graph_from_json(
    data: Any,
    constants: Mapping[str, Tensor],
    device: Callable[[torch.device], torch.device] = lambda device: device,
) -> fx.GraphModule:
    """The graph that :func:`graph_to_json` wrote, with these constants as buffers.

    Args:
        device: maps the device on which the graph created tensors to the one it is to use.

    Raises:
        ArtifactError: a name, an operator or an argument is not what it may be.
    """
    listed, outputs = fields(data, ("nodes", "outputs"), "graph")
    entries = items(listed, dict, "graph.nodes")
    if len(entries) > MAX_NODES:
        raise ArtifactError(f"graph: {len(entries)} nodes")
    module = fx.GraphModule(nn.Module(), fx.Graph())
    for name, value in constants.items():
        if hasattr(module, identifier(name, "a constant's name")):
            raise ArtifactError(f"graph: a constant cannot be called {name}")
        module.register_buffer(name, value)
    builder = _Builder(module, device)
    for index, entry in enumerate(entries):
        builder.add(entry, f"graph.nodes[{index}]")
    returned = of_type(outputs, list, "graph.outputs")
    module.graph.output(tuple(builder.argument(r, "graph.outputs") for r in returned))
    module.graph.lint()
    module.recompile()
    return module


@dataclass(frozen=True)
class _Value:
    """The kind of a node's value.

    Attributes:
        kind: a type of schemas, or ``"number"`` for arithmetic on sizes.
        bits: of a number, how many it can have at most.
        items: of a list or tuple, the kinds of its items.
    """

    kind: str
    bits: int = 0
    items: tuple[str, ...] = ()


class _Builder:
    """A graph under construction, with what is known about each value."""

    def __init__(
        self, module: fx.GraphModule, device: Callable[[torch.device], torch.device]
    ) -> None:
        self.module = module
        self.graph = module.graph
        self.device = device
        self.nodes: dict[str, fx.Node] = {}
        self.values: dict[fx.Node, _Value] = {}

    def add(self, entry: dict[str, Any], where: str) -> None:
        """Append one node."""
        kind = entry.get("kind")
        if kind == "call":
            self._call(entry, where)
            return
        _, name, of = fields(entry, ("kind", "name", "of"), where)
        target = identifier(of, where)
        if kind == "input":
            if any(node.op == "call_function" for node in self.nodes.values()):
                raise ArtifactError(f"{where}: an input behind what is computed")
            self._append("placeholder", target, (), {}, name, where)
        elif kind == "constant":
            if target not in self.module._buffers:
                raise ArtifactError(f"{where}: there is no constant {target}")
            self._append("get_attr", target, (), {}, name, where)
        else:
            raise ArtifactError(f"{where}: a node of kind {ascii(kind)[:40]}")

    def argument(self, data: Any, where: str) -> Any:
        """An argument, with its devices replaced."""
        parsed = argument_from_json(data, self.nodes, where)
        return fx.node.map_aggregate(
            parsed,
            lambda value: self.device(value) if isinstance(value, torch.device) else value,
        )

    def _call(self, entry: dict[str, Any], where: str) -> None:
        names = ("kind", "name", "of", "arguments", "named", "module", "source", "asked")
        _, name, of, arguments, named, module, source, added = fields(entry, names, where)
        target = resolve(of_type(of, str, where))
        args = [self.argument(a, where) for a in of_type(arguments, list, where)]
        kwargs = {k: self.argument(v, where) for k, v in of_type(named, dict, where).items()}
        value = self._checked(target, args, kwargs, where)
        node = self._append("call_function", target, tuple(args), kwargs, name, where)
        self.values[node] = value
        node.meta["module"] = text(module, where)
        if source:
            node.meta["source"] = text(source, where)
        if of_type(added, bool, where):
            node.meta["added"] = True

    def _append(
        self, kind: str, target: Any, args: Any, kwargs: Any, name: Any, where: str
    ) -> fx.Node:
        node_name = identifier(name, where)
        node = self.graph.create_node(kind, target, args, kwargs, name=node_name)
        if node.name != node_name:
            raise ArtifactError(f"{where}: the name {node_name} is taken")
        self.nodes[node_name] = node
        self.values[node] = _Value("Tensor")
        return node

    def _checked(self, target: Any, args: list[Any], kwargs: dict[str, Any], where: str) -> _Value:
        """The value that a call of ``target`` returns.

        Raises:
            ArtifactError: its schema does not take these arguments.
        """
        if target is operator.getitem:
            return self._item(args, kwargs, where)
        if not isinstance(target, torch._ops.OpOverload):
            return self._number(target, args, kwargs, where)
        schema = target._schema
        positional = [a for a in schema.arguments if not a.kwarg_only]
        bound = dict(zip((a.name for a in positional), args, strict=False))
        if len(args) > len(positional) or bound.keys() & kwargs.keys():
            raise ArtifactError(f"{where}: too many arguments for {target}")
        bound.update(kwargs)
        for argument in schema.arguments:
            if argument.name not in bound:
                if not argument.has_default_value():
                    raise ArtifactError(f"{where}: {target} lacks its {argument.name}")
                continue
            value = bound.pop(argument.name)
            words = _STRING_CHOICES.get(argument.name) if target in ops.REFERENCE else None
            known = words is None or value in words
            if not known or not accepts(type_of(argument), value, self._kind):
                raise ArtifactError(
                    f"{where}: {target} takes {type_of(argument)} as {argument.name}, "
                    f"not {ascii(value)[:60]}"
                )
        if bound:
            raise ArtifactError(f"{where}: {target} takes no {ascii(next(iter(bound)))[:60]}")
        kinds = tuple(_result_kind(result) for result in schema.returns)
        return _Value(kinds[0], 64) if len(kinds) == 1 else _Value("tuple", items=kinds)

    def _kind(self, node: fx.Node) -> str:
        return self.values[node].kind

    def _item(self, args: list[Any], kwargs: dict[str, Any], where: str) -> _Value:
        container = self.values.get(args[0]) if args and isinstance(args[0], fx.Node) else None
        index = args[1] if len(args) == 2 else None
        if container is None or kwargs or type(index) is not int or not -(2**31) < index < 2**31:
            raise ArtifactError(f"{where}: no item of a list")
        if container.kind == "List[Tensor]":
            return _Value("Tensor")
        if container.kind == "tuple" and -len(container.items) <= index < len(container.items):
            return _Value(container.items[index], 64)
        raise ArtifactError(f"{where}: item {index} of a {container.kind}")

    def _number(self, target: Any, args: list[Any], kwargs: dict[str, Any], where: str) -> _Value:
        """Arithmetic on sizes, whose results have a limited number of digits."""
        expected = 1 if target in _OF_ONE else 2
        if kwargs or len(args) != expected:
            raise ArtifactError(f"{where}: arithmetic on {len(args)} arguments, not {expected}")
        bits = []
        for value in args:
            if isinstance(value, fx.Node) and self._kind(value) == "number":
                bits.append(self.values[value].bits)
            elif type(value) in (bool, int, float):
                bits.append(int(abs(value)).bit_length() if abs(value) < 2**63 else 64)
            else:
                raise ArtifactError(f"{where}: arithmetic on what is no number")
        total = sum(bits) if target is operator.mul else max(bits) + 1
        if total > MAX_BITS:
            raise ArtifactError(f"{where}: a number of {total} bits is no size")
        return _Value("number", total)


_OF_ONE = {PYTHON[name] for name in ("neg", "sym_float", "sym_int", "sym_not")}


def _result_kind(result: Any) -> str:
    kind = type_of(result)
    return "number" if kind in ("int", "float", "bool", "number") else kind
