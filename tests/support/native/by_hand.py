"""Single operators as subgraphs of the native engine, planned and run without ``optimize``.

The judge is the operator's plain-PyTorch meaning in float64; what is held against the engine is
torch's own error in the same precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fastres.ir import ops
from fastres.ir.graph import output_nodes
from fastres.ir.shapes import shapes
from fastres.kernels import reference
from fastres.kernels.spec import ConvSpec
from fastres.runtime.native.lower import lower, refusal
from fastres.runtime.native.operations import LoweredSubgraph
from fastres.runtime.native.packed_weights import PackedWeights
from fastres.runtime.native.subgraph import NativeSubgraph
from tests.support.native.emulator import loaded
from tests.support.oracle import PRECISIONS, Error, assert_as_accurate

SETS = (("fp32", "avx2"), ("fp32", "avx512"), ("bf16", "avx512_bf16"))
"""Precisions with the instruction sets that compute in them."""

each_set = pytest.mark.parametrize(("precision", "isa"), SETS, ids=[isa for _, isa in SETS])


def needs(isa: str) -> None:
    """Skip the test where the library or the instruction set is missing."""
    if isa not in loaded().isas:
        pytest.skip(f"needs a processor with {isa}")


class Convolution(nn.Module):
    """``fastres::conv2d`` with weights of its own, whose numbers bfloat16 can hold.

    Args:
        weight_scale: of the weights, beside what keeps sums at the size of the input's numbers.
    """

    def __init__(
        self,
        spec: ConvSpec,
        before: str = "none",
        after: str = "none",
        bias: bool = True,
        weight_scale: float = 1.0,
    ) -> None:
        super().__init__()
        per_group = spec.c // spec.groups
        weight = torch.randn(spec.k, per_group, spec.r, spec.s)
        weight *= weight_scale * (per_group * spec.r * spec.s) ** -0.5
        self.register_buffer("weight", rounded(weight))
        self.register_buffer("bias", rounded(torch.randn(spec.k)) if bias else None)
        self.rest = (spec.stride, spec.padding, spec.dilation, spec.groups, before, after)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return reference.conv2d(x, self.weight, self.bias, residual, *self.rest)  # type: ignore[arg-type]

    def graph(self, residual: bool) -> fx.Graph:
        """The one call as a graph."""
        graph = fx.Graph()
        x = graph.placeholder("x")
        addend = graph.placeholder("residual") if residual else None
        weight = graph.get_attr("weight")
        bias = None if self.bias is None else graph.get_attr("bias")
        stride, padding, dilation, *others = self.rest
        arguments: tuple[Any, ...] = (
            x,
            weight,
            bias,
            addend,
            list(stride),
            list(padding),
            list(dilation),
            *others,
        )
        graph.output((graph.call_function(ops.conv2d, arguments),))
        return graph


def rounded(x: Tensor) -> Tensor:
    """The nearest numbers that bfloat16 can hold."""
    return x.bfloat16().float()


def lowered(
    root: nn.Module, graph: fx.Graph, inputs: Sequence[Tensor]
) -> tuple[LoweredSubgraph, Any]:
    """The whole graph as one lowered subgraph, and what each node is at this size."""
    module = fx.GraphModule(root, graph)
    facts = shapes(module, inputs)
    nodes = [node for node in module.graph.nodes if node.op == "call_function"]
    assert [refusal(node, facts) for node in nodes] == [None] * len(nodes)
    wanted = [(node, facts[node].dtype) for node in output_nodes(module.graph)]
    return lower(nodes, wanted, facts), facts


def subgraph(
    root: nn.Module,
    graph: fx.Graph,
    inputs: Sequence[Tensor],
    isa: str,
    threads: int = 1,
    guarded: bool = False,
    sources: Sequence[torch.dtype] | None = None,
) -> NativeSubgraph:
    """The whole graph as one subgraph for inputs like these.

    Args:
        sources: dtypes that the inputs will really have.
    """
    found, facts = lowered(root, graph, inputs)
    sources = sources or [facts[node].dtype for node in found.inputs]
    return NativeSubgraph(found, sources, facts, loaded(), PackedWeights(), isa, threads, guarded)


def inputs_of(native: NativeSubgraph, graph: fx.Graph, given: Sequence[Tensor]) -> list[Tensor]:
    """Those of a graph's inputs that a subgraph reads, in its order."""
    names = [node.name for node in graph.find_nodes(op="placeholder")]
    return [given[names.index(node.name)] for node in native.lowered.inputs]


def arguments_of(spec: ConvSpec, residual: bool) -> list[Tensor]:
    """An image and a residual, of numbers that bfloat16 can hold."""
    tensors = [torch.randn(spec.n, spec.c, spec.h, spec.w)]
    if residual:
        tensors.append(torch.randn(spec.n, spec.k, spec.p, spec.q))
    return [rounded(tensor) for tensor in tensors]


def check(
    spec: ConvSpec,
    precision: str,
    isa: str,
    threads: int = 1,
    residual: bool = False,
    guarded: bool = False,
    change: Callable[[Tensor], Tensor] = lambda x: x,
    **options: Any,
) -> Error:
    """Run a convolution on random tensors, and hold its error against torch's own.

    Args:
        change: puts the tensors into other places in memory.
        options: of :class:`Convolution`.
    """
    needs(isa)
    dtype = PRECISIONS[precision]
    model = Convolution(spec, **options)
    inputs = arguments_of(spec, residual)
    given = [change(tensor.to(dtype)) for tensor in inputs]
    native = subgraph(model.to(dtype), model.graph(residual), given, isa, threads, guarded)
    return assert_as_accurate(
        model.float(), lambda *_: native(*given), *inputs, precision=precision
    )
