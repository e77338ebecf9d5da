"""From a graph and the shapes of one call to a :class:`~fastres.runtime.triton.plan.Plan`.

Rules turn operators into steps of our kernels (:mod:`fastres.runtime.triton.rules`); what has none,
or has tensors that the kernels do not take, keeps its plain-PyTorch meaning as a step of torch's.
Casts at the model's border are part of copying arguments in and results out.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from fastres.ir import ops
from fastres.ir.graph import (
    KERNELS_OF_SOME,
    aliases,
    arguments,
    constant,
    module_of,
    output_nodes,
)
from fastres.kernels.launch.call import KernelCall
from fastres.report import Remark
from fastres.runtime.triton.fill_channels import added_channels
from fastres.runtime.triton.layouts import laid_out
from fastres.runtime.triton.plan import (
    Constant,
    KernelStep,
    Plan,
    Ref,
    Result,
    Step,
    TorchStep,
    Value,
    dense,
    row_major,
)

aten = torch.ops.aten

Rule: TypeAlias = "Callable[[PlanBuilder, fx.Node], bool]"
"""Plans a node, or returns False to leave it to torch."""


class PlanBuilder:
    """One graph on its way to a plan.

    Attributes:
        facts: what every node of the graph is.
        steps: the plan's so far.
        remarks, notes: for the receipt.
    """

    def __init__(self, module: fx.GraphModule, facts: Mapping[fx.Node, Any]) -> None:
        self.module = module
        self.facts = facts
        self.steps: list[Step] = []
        self.remarks: list[Remark] = []
        self.notes: list[str] = []
        self._inputs: list[tuple[int, Value]] = []
        self._numbers: dict[fx.Node, int] = {}
        self._filled: set[str] = set()
        self._values: dict[str, Value] = {}  # in the arena
        self._others: dict[str, Value] = {}  # in torch's memory, as if without gaps
        self._known: dict[fx.Node, Any] = {}
        self._constants: dict[str, Constant] = {}
        self._to_make: dict[str, TorchStep] = {}  # for kernels, if one is to read it

    def run(self, rules: Mapping[Any, Rule]) -> Plan:
        """Plan every node, those without a rule by torch."""
        placeholders = self.module.graph.find_nodes(op="placeholder")
        self._numbers = {node: number for number, node in enumerate(placeholders)}
        for node in self.module.graph.nodes:
            if node.op == "output":
                break
            if node.op == "placeholder":
                self._argument(node)
            elif node.op == "get_attr":
                self._constant(node)
            elif not _holds_tensors(self.facts[node]):
                self._known[node] = self.facts[node]  # a size: now a number
            elif node in self._known or self._is_cast_at_border(node) or self._is_item(node):
                pass
            elif not rules.get(node.target, _no_rule)(self, node):
                self.leave(node)
        images = (n for n, node in enumerate(placeholders) if _is_image(self.facts[node]))
        results = [self._result(value) for value in output_nodes(self.module.graph)]
        used = {result.source for result in results if result.kind == "constant"}
        return Plan(
            self._inputs,
            next(images, None),
            self.steps,
            results,
            [self._constants[name] for name in used],
            self.remarks,
            self.notes,
            frozenset(self._filled),
        )

    # What rules use.

    def input(self, argument: fx.Node) -> str:
        """Name of a value as kernels read it: without gaps, channels-last if it is an image."""
        return self._in_layout(argument, dense, "to channels-last")

    def pixels(self, argument: fx.Node) -> str:
        """Name of a value as an image is decoded: without gaps, its last axis innermost."""
        return self._in_layout(argument, row_major, "to row-major")

    def _in_layout(self, argument: fx.Node, layout: Callable[..., Value], operation: str) -> str:
        name = str(self._known[argument].name)
        fact = self.facts[argument]
        value = layout(f"{name}:{operation}", fact.shape, fact.dtype)
        if name in self._values and self._values[name].strides == value.strides:
            return name
        if value.name not in self._others:
            self._others[value.name] = value
            self._to_make[value.name] = self._torch(
                argument,
                operation,
                laid_out,
                (Ref(name), value.strides),
                {},
                result=value.name,
                may_alias=True,
            )
        return value.name

    def weight(self, argument: Any, form: str, make: Callable[..., Tensor]) -> Constant:
        """A constant of the graph in the form that a kernel reads."""
        return self.weights((argument,), form, make)

    def weights(
        self, arguments: Sequence[fx.Node], form: str, make: Callable[..., Tensor]
    ) -> Constant:
        """The same, made of several constants."""
        sources = tuple(str(node.target) for node in arguments)
        made = make(*(_on_meta(node) for node in arguments))
        name = f"{'+'.join(sources)}:{form}"
        return Constant(name, sources, form, made.numel() * made.element_size(), make)

    def bias(self, argument: fx.Node | None) -> Constant | None:
        """A bias as every kernel reads it, in float32; None if there is none."""
        return None if argument is None else self.weight(argument, "float32", _float32)

    def output(self, node: fx.Node, index: int | None = None) -> Value:
        """The value that a kernel writes for ``node``, or for item ``index`` of its results."""
        fact = self.facts[node] if index is None else self.facts[node][index]
        name = node.name if index is None else f"{node.name}:{index}"
        return dense(name, fact.shape, fact.dtype)

    def scratch(
        self, node: fx.Node, nbytes: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Value, ...]:
        """Memory for a step's own use, in a ``dtype`` of four bytes; none for no bytes."""
        if nbytes == 0:
            return ()
        return (dense(f"{node.name}:scratch", (-(-nbytes // 4),), dtype),)

    def counters(self, node: fx.Node, count: int) -> tuple[Value, ...]:
        """So many numbers in int32 that a step's kernels count with, from zero; none for none."""
        if count == 0:
            return ()
        return (dense(f"{node.name}:counters", (count,), torch.int32),)

    def kernel_step(
        self,
        node: fx.Node,
        reads: Sequence[str],
        writes: Sequence[Value],
        calls: Callable[[Mapping[str, Any]], list[KernelCall]],
        constants: Sequence[Constant | None] = (),
        scratch: Sequence[Value] = (),
        overwrites: Sequence[str] = (),
        tactic: str = "",
        zeroed: Sequence[Value] = (),
    ) -> KernelStep:
        """A step of our kernels for ``node``."""
        return KernelStep(
            str(node.meta.get("module", "")),
            _operation(node),
            tuple(reads),
            tuple(writes),
            calls,
            tuple(each for each in constants if each is not None),
            tuple(scratch),
            tuple(overwrites),
            tactic,
            tuple(zeroed),
        )

    def torch_step(
        self,
        node: fx.Node,
        function: Callable[..., Any] | None = None,
        args: Sequence[Any] | None = None,
        tactic: str = "torch",
        weight: Constant | None = None,
    ) -> TorchStep:
        """A step of torch's: ``function`` on ``args``, or the operator's own meaning.

        Args:
            args: of the graph.
            weight: stands for the second argument.
        """
        target: Any = ops.REFERENCE.get(node.target, node.target)
        tree = list(arguments(node) if args is None else args)
        lowered = [fx.node.map_arg(argument, self._known.__getitem__) for argument in tree]
        if weight is not None:
            lowered[1] = Ref(weight.name)
            self._constants[weight.name] = weight
        named = fx.node.map_arg(dict(node.kwargs), self._known.__getitem__)
        may_alias = node.target not in ops.REFERENCE and aliases(node.target)
        return self._torch(
            node,
            _operation(node),
            function or target,
            tuple(lowered),
            named,
            result=node.name,
            may_alias=may_alias,
            tactic=tactic,
        )

    def append(self, node: fx.Node, step: Step) -> bool:
        """Let ``step`` compute ``node``; True, as a rule answers that has planned its node."""
        self.steps += [self._to_make.pop(n) for n in step.reads if n in self._to_make]
        self.steps.append(step)
        fact = self.facts[node]
        if isinstance(step, TorchStep):
            self._known[node] = Ref(step.result)
            if isinstance(fact, Tensor):
                self._others[step.result] = dense(step.result, fact.shape, fact.dtype)
            return True
        for value in step.writes:
            self._values[value.name] = value
        names = [Ref(value.name) for value in step.writes]
        self._known[node] = names if isinstance(fact, (list, tuple)) else names[0]
        return True

    def leave(self, node: fx.Node) -> bool:
        """Let torch compute ``node`` by the operator's own meaning."""
        if node.target in KERNELS_OF_SOME:
            has_kernel = node.target is torch.ops.aten.avg_pool2d.default
            reason = (
                "the kernel takes images [N, C, H, W] of floats"
                if has_kernel
                else "the triton engine has no kernel for it"
            )
            self.remark(node, str(node.target), reason)
        return self.append(node, self.torch_step(node))

    def value(self, name: str) -> Value:
        """What a step reads or writes under a name."""
        return self._values[name] if name in self._values else self._others[name]

    def remark(self, node: fx.Node, what: str, reason: str) -> None:
        """Say on the receipt that a part of ``node`` runs in torch; the same is said once."""
        remark = Remark(module_of(node), what, reason)
        if remark not in self.remarks:
            self.remarks.append(remark)

    # What the walk uses.

    def _torch(
        self,
        node: fx.Node,
        operation: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Any,
        *,
        result: str,
        may_alias: bool,
        tactic: str = "torch",
    ) -> TorchStep:
        reads, constants = self._reads_and_constants((args, kwargs))
        return TorchStep(
            module=str(node.meta.get("module", "")),
            operation=operation,
            function=function,
            args=args,
            kwargs=kwargs,
            reads=reads,
            constants=constants,
            result=result,
            may_alias=may_alias,
            nbytes=0 if may_alias else _nbytes(self.facts[node]),
            tactic=tactic,
            synchronises=synchronises(node, self.facts),
        )

    def _argument(self, node: fx.Node) -> None:
        fact = self.facts[node]
        if not isinstance(fact, Tensor):
            self._known[node] = fact
            return
        # A cast is part of copying the argument in, and so are channels of zeros behind its own.
        casts = [user for user in node.users if user.target is aten.to.dtype]
        for source in (node, *casts):
            others = [user for user in source.users if not added_channels(user)]
            for user in filter(added_channels, source.users):
                self._known[user] = self._copied_in(node, self.facts[user])
                self._filled.add(self._known[user].name)
            if source is node:
                others = [user for user in others if user not in casts and user.op != "output"]
            if others:
                self._known[source] = self._copied_in(node, self.facts[source])

    def _copied_in(self, node: fx.Node, fact: Tensor) -> Ref:
        """The value that the argument of ``node`` is copied into; ``fact`` is what it is then."""
        name = f"{node.name}:{str(fact.dtype).removeprefix('torch.')}"
        if fact.shape != self.facts[node].shape:
            name += f":{'x'.join(map(str, fact.shape))}"
        if name not in self._values:
            # What is no number yet is an image as it is decoded, and no kernel reads it otherwise.
            layout = dense if fact.dtype.is_floating_point else row_major
            self._values[name] = layout(name, fact.shape, fact.dtype)
            self._inputs.append((self._numbers[node], self._values[name]))
        return Ref(name)

    def _constant(self, node: fx.Node) -> None:
        kept = self.weight(node, "as it is", _same)
        self._constants[kept.name] = kept
        self._known[node] = Ref(kept.name)

    def _is_cast_at_border(self, node: fx.Node) -> bool:
        """A cast of an argument that is read with its channels filled up, or of a result."""
        if node.target is not aten.to.dtype:
            return False
        if arguments(node)[0] in self._numbers:
            return True
        return all(user.op == "output" for user in node.users)

    def _is_item(self, node: fx.Node) -> bool:
        """One of the results of a step of ours."""
        if node.target is not operator.getitem:
            return False
        source, index = arguments(node)
        known = self._known[source]
        if not isinstance(known, list):
            return False
        self._known[node] = known[index]
        return True

    def _result(self, result: Any) -> Result:
        if not isinstance(result, fx.Node):
            return Result("plain", result)
        fact = self.facts[result]
        if not isinstance(fact, Tensor):
            return Result("plain", fact)
        strides = torch.empty_like(fact).stride()  # of a copy: without gaps and overlaps
        value = Value(result.name, tuple(map(int, fact.shape)), tuple(strides), fact.dtype)
        if result.op == "placeholder":
            return Result("argument", self._numbers[result], value)
        if result not in self._known:  # a cast at the border
            result = arguments(result)[0]
        name = self._known[result].name
        return Result("constant" if name in self._constants else "value", name, value)

    def _reads_and_constants(self, tree: Any) -> tuple[tuple[str, ...], tuple[Constant, ...]]:
        names: list[str] = []
        _collect(tree, names)
        reads = tuple(name for name in names if name not in self._constants)
        used = dict.fromkeys(name for name in names if name in self._constants)
        return reads, tuple(self._constants[name] for name in used)


def _no_rule(builder: PlanBuilder, node: fx.Node) -> bool:
    return False


def _collect(tree: Any, names: list[str]) -> None:
    if isinstance(tree, Ref):
        names.append(tree.name)
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            _collect(item, names)
    elif isinstance(tree, dict):
        for item in tree.values():
            _collect(item, names)


def _on_meta(node: fx.Node) -> Tensor:
    weight = constant(node)
    assert weight is not None
    return weight.to("meta")


def _same(weight: Tensor) -> Tensor:
    return weight


def _float32(weight: Tensor) -> Tensor:
    return weight.float().contiguous()


def _operation(node: fx.Node) -> str:
    return str(node.target).removesuffix(".default")


def _holds_tensors(fact: Any) -> bool:
    if isinstance(fact, (tuple, list)):
        return any(isinstance(item, Tensor) for item in fact)
    return isinstance(fact, Tensor)


def _nbytes(fact: Any) -> int:
    if isinstance(fact, (tuple, list)):
        return sum(map(_nbytes, fact))
    return fact.numel() * fact.element_size() if isinstance(fact, Tensor) else 0


def _is_image(fact: Any) -> bool:
    return isinstance(fact, Tensor) and fact.dim() == 4


def synchronises(node: fx.Node, facts: Mapping[fx.Node, Any]) -> bool:
    """Whether the host waits for the device in an operator of torch's.

    It does where the result's size depends on values, where it is a number, and where a tensor is
    brought to the host. Indexing is tagged for masks; by numbers it waits for nothing.
    """
    tags = getattr(node.target, "tags", ())
    if node.target in _INDEXING:
        indices = node.args[1]
        assert isinstance(indices, (list, tuple))
        kinds = {facts[index].dtype for index in indices if isinstance(index, fx.Node)}
        return not kinds.isdisjoint({torch.bool, torch.uint8})
    if torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags:
        return True
    device = node.kwargs.get("device")
    read = [facts[each] for each in node.all_input_nodes if isinstance(facts[each], Tensor)]
    return device is not None and any(value.device != device for value in read)


_INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
