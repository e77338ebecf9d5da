"""From the fused graph to an engine's own calls, for inputs of known shapes.

An engine gives rules: ``operator -> rule(lowering, node) -> new node``. Whatever has no rule keeps
its plain-PyTorch meaning. The rest is the same for every engine and lives here: sizes become
numbers, outputs get memory of their own and the caller's layout, memory is counted beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from fastres.errors import OutOfMemory
from fastres.ir import ops
from fastres.ir.graph import (
    KERNELS_OF_SOME,
    aliases,
    arguments,
    copy_meta,
    module_of,
    output_nodes,
)
from fastres.ir.shapes import shapes
from fastres.report import Remark
from fastres.runtime.executable import Executable, compile_graph, dead_after
from fastres.system.target import available_memory

Rule: TypeAlias = "Callable[[Lowering, fx.Node], fx.Node]"


class Lowering:
    """One fused graph on its way to an executable.

    Attributes:
        source: the fused graph's module.
        facts: what every node of it is for these inputs.
        graph: the lowered graph so far.
        remarks, notes: for the receipt.
    """

    def __init__(self, source: fx.GraphModule, inputs: Sequence[Any]) -> None:
        self.source = source
        self.inputs = inputs
        self.facts = shapes(source, inputs)
        self.graph = fx.Graph()
        self.constants: dict[str, Any] = {}
        self.remarks: list[Remark] = []
        self.notes: list[str] = []
        self._inputs: dict[fx.Node, fx.Node] = {}
        self._values: dict[fx.Node, Any] = {}
        self._dead = dead_after(source.graph)

    def run(
        self, engine: str, rules: Mapping[Any, Rule], otherwise: Rule | None = None
    ) -> Executable:
        """Lower every node, those without a rule by ``otherwise``, and wrap up.

        Raises:
            OutOfMemory: the activations need more than the process may still take.
        """
        needed = self._peak_bytes()
        self._refuse_if_too_large(needed)
        for node in self.source.graph.find_nodes(op="placeholder"):
            # All of them first: a later one's name could be taken by then.
            self._inputs[node] = self.graph.node_copy(node)
        for node in self.source.graph.nodes:
            if node.op == "output":
                self._return(node)
            elif node.op == "get_attr":
                self.constants[str(node.target)] = getattr(self.source, str(node.target))
                self._values[node] = self.graph.node_copy(node)
            elif node.op == "call_function" and not holds_tensors(self.facts[node]):
                self._values[node] = self.facts[node]  # a size: now a number
            else:
                rule = rules.get(
                    node.op if node.op == "placeholder" else node.target, otherwise or keep
                )
                self._values[node] = copy_meta(rule(self, node), node)
                if node.target in KERNELS_OF_SOME and node.target not in rules:
                    self.remark(node, str(node.target), f"the {engine} engine has no kernel for it")
        self.graph.eliminate_dead_code()
        self.graph.lint()
        return compile_graph(self.graph, self.constants, engine, needed, self.remarks, self.notes)

    def value(self, argument: Any) -> Any:
        """An argument of the fused graph as an argument of the lowered one."""
        return fx.node.map_arg(argument, self._values.__getitem__)

    def call(
        self, target: Any, args: Sequence[Any], node: fx.Node, operation: str | None = None
    ) -> fx.Node:
        """A call in the lowered graph on behalf of ``node``; ``args`` are lowered arguments.

        ``operation`` is its name in profiles, by default that of the node's own operation.
        """
        new = self.graph.create_node("call_function", target, tuple(args), name=node.name)
        new.meta["operation"] = operation or _operation(node)
        new.meta["module"] = node.meta.get("module", "")
        return new

    def constant(self, name: str, value: Any) -> fx.Node:
        """Keep an engine's own constant (a packed weight) with the executable."""
        stem, number = name, 0
        while name in self.constants or hasattr(self.source, name):
            number += 1
            name = f"{stem}_{number}"
        self.constants[name] = value
        return self.graph.create_node("get_attr", name)

    def may_overwrite(self, value: Any, reader: fx.Node) -> bool:
        """Whether ``reader`` may write its result into ``value``'s memory.

        It may where ``value`` was computed by an operator of fastres (fresh memory), nobody reads
        it later, and nobody else holds a view of it.
        """
        return (
            isinstance(value, fx.Node)
            and value.target in ops.REFERENCE
            and value in self._dead.get(reader, ())
            and sum(argument is value for argument in arguments(reader)) == 1
            and all(user is reader or user.target in ops.REFERENCE for user in value.users)
        )

    def remark(self, node: fx.Node, what: str, reason: str) -> None:
        """Say on the receipt that a part of ``node`` runs in torch; the same is said once."""
        remark = Remark(module_of(node), what, reason)
        if remark not in self.remarks:
            self.remarks.append(remark)

    def _return(self, output: fx.Node) -> None:
        results = output_nodes(self.source.graph)
        image = next((v for node, v in self._inputs.items() if _is_image(self.facts[node])), None)
        returned = []
        for index, result in enumerate(results):
            fact = self.facts.get(result) if isinstance(result, fx.Node) else None
            if not isinstance(fact, Tensor):
                returned.append(self.value(result))
                continue
            own = self._is_fresh(result) and result not in results[:index]
            if fact.dim() == 4 and image is not None:
                returned.append(self.call(like_input, (self.value(result), image, own), result))
            elif not own:
                returned.append(self.call(torch.clone, (self.value(result),), result))
            else:
                returned.append(self.value(result))
        self.graph.output(tuple(returned))

    def _is_fresh(self, node: fx.Node) -> bool:
        """Whether a result is new memory for certain: no input, no possible view, a real cast."""
        if node.target is torch.ops.aten.to.dtype:
            return bool(self.facts[arguments(node)[0]].dtype != self.facts[node].dtype)
        return node.op == "call_function" and not aliases(node.target)

    def placeholder(self, node: fx.Node) -> fx.Node:
        """The graph's input as it comes."""
        return self._inputs[node]

    def _peak_bytes(self) -> int:
        """Most bytes of results alive at once in the fused graph, which has a result per operator.

        What may share memory with its argument is counted as if it did not: an upper bound on the
        activations, without the scratch memory inside a kernel.
        """
        live = peak = 0
        sizes: dict[fx.Node, int] = {}
        for node in self.source.graph.nodes:
            if node.op == "call_function":
                fact = self.facts[node]
                sizes[node] = fact.numel() * fact.element_size() if isinstance(fact, Tensor) else 0
                live += sizes[node]
                peak = max(peak, live)
            for value in self._dead.get(node, ()):
                live -= sizes.pop(value, 0)
        return peak

    def _refuse_if_too_large(self, needed: int) -> None:
        free = available_memory()
        if needed > free:
            shapes = ", ".join(str(list(v.shape)) for v in self.inputs if isinstance(v, Tensor))
            raise OutOfMemory(
                f"input {shapes} needs {needed / 2**30:.1f} GiB for activations, "
                f"{free / 2**30:.1f} GiB are available: use a smaller batch or image"
            )


def like_input(result: Tensor, image: Tensor, own: bool) -> Tensor:
    """A feature map in the layout of the input image, as torch eager would return it.

    Code behind the model may call ``view`` on it, which needs NCHW where the input was NCHW.
    """
    layout = torch.channels_last if is_channels_last(image) else torch.contiguous_format
    dense = result.contiguous(memory_format=layout)
    return dense if own or dense is not result else dense.clone(memory_format=torch.preserve_format)


def is_channels_last(image: Tensor) -> bool:
    """By the strides, as torch decides it: a slice of a channels-last tensor is channels-last."""
    _, channels, height, width = image.shape
    batch_step, channel_step, row_step, step = image.stride()
    if channels == 1 or image.is_contiguous():
        return False
    rows = channel_step == 1 and step >= channels and row_step >= step * width
    return rows and (image.shape[0] == 1 or batch_step >= row_step * height)


def _is_image(fact: Any) -> bool:
    return isinstance(fact, Tensor) and fact.dim() == 4


def keep(lowering: Lowering, node: fx.Node) -> fx.Node:
    """The rule for what has none: an operator's plain-PyTorch meaning, torch's own as it is."""
    if node.op == "placeholder":
        return lowering.placeholder(node)
    new = lowering.graph.node_copy(node, lowering.value)
    new.target = ops.REFERENCE.get(node.target, node.target)
    new.meta["operation"] = _operation(node)
    return new


def _operation(node: fx.Node) -> str:
    return str(node.target).removesuffix(".default")


def holds_tensors(fact: Any) -> bool:
    """Whether a value is a tensor or has some; sizes and numbers are not."""
    if isinstance(fact, (tuple, list)):
        return any(isinstance(item, Tensor) for item in fact)
    return isinstance(fact, Tensor)
