"""The engine ``native``: kernels of our own on the CPU.

The fused graph is cut into subgraphs that the library runs in one call each, threads, order and
memory planned beforehand; a ResNet is one subgraph. What the library has no operation for runs as
in the oneDNN engine, and the receipt says so. The library computes float32 with AVX2, AVX-512 or
NEON, bfloat16 with AVX-512's bfloat16 instructions, AMX or Arm's, and uint8 with AVX2, VNNI, AMX or
Arm's int8 instructions, whichever the processor has; float16 is computed in float32.

NaN and infinity: a Winograd convolution would spread them over a tile, and multiplications by the
zeros that fill up channel blocks over a pixel. The library therefore looks at what goes in and out,
and a call with numbers that are not finite is answered by the eager engine.

An image's answer does not depend on the other images of its batch, nor on the number of threads:
each sum is made in the same order whatever is computed beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from fastres.dtypes import BY_DTYPE, NATIVE
from fastres.ir.graph import module_of
from fastres.ir.shapes import shapes
from fastres.options import Options
from fastres.runtime import float16
from fastres.runtime.executable import Executable
from fastres.runtime.lowering import Lowering, Rule, holds_tensors, keep
from fastres.runtime.native.library import Library, load
from fastres.runtime.native.lower import no_instructions
from fastres.runtime.native.operations import LoweredSubgraph
from fastres.runtime.native.packed_weights import PackedWeights
from fastres.runtime.native.partition import partition, rewrite
from fastres.runtime.native.subgraph import NativeSubgraph
from fastres.runtime.onednn.engine import OneDnnEngine, keep_and_check, placeholder
from fastres.system.threads import ThreadLimit


class NativeEngine:
    """Runs graphs of all precisions on the CPU; see :class:`fastres.runtime.engine.Engine`."""

    name = "native"
    plans_threads = True
    reads_in_place = True

    def __init__(self, options: Options | None = None) -> None:
        self._options = options or Options()
        self._packed = PackedWeights()
        self._widened = float16.Widened()
        self._fallback = OneDnnEngine()

    def unpacked(self) -> NativeEngine:
        """The same engine, with nothing packed."""
        return NativeEngine(self._options)

    def refusal(self, module: fx.GraphModule) -> str | None:
        """Why the library cannot run a graph here, or None."""
        library = load()
        if isinstance(library, str):
            return library
        for value in module.buffers():
            dtype = _COMPUTED_IN.get(value.dtype)
            if dtype is not None and _isa(library, dtype) is None:
                return no_instructions(dtype)
        return self._fallback.refusal(module)

    def build(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Executable:
        """An executable for inputs of these shapes; packs the weights that no other one has."""
        library = load()
        assert isinstance(library, Library), library
        given, module = module, self._widened(module, inputs)
        facts = shapes(module, inputs)
        known = [dtype for dtype in NATIVE if _isa(library, dtype) is not None]
        parts = partition(module.graph, facts, known)
        threads = ThreadLimit(self._options.threads_per_call).threads
        subgraphs: list[NativeSubgraph] = []

        def make(lowered: LoweredSubgraph, sources: list[torch.dtype]) -> NativeSubgraph:
            isas: dict[torch.dtype, str] = {}
            for dtype in lowered.dtypes:
                isa = _isa(library, dtype)
                assert isa is not None, dtype
                isas[dtype] = isa
            subgraphs.append(
                NativeSubgraph(lowered, sources, facts, library, self._packed, isas, threads)
            )
            return subgraphs[-1]

        outer = rewrite(module, parts.subgraphs, facts, make)
        rules: dict[Any, Rule] = {**self._fallback.rules(), "placeholder": _placeholder}
        lowering = Lowering(outer, inputs)
        executable = lowering.run(self.name, rules, keep_and_check)
        remarked = {remark.module for remark in executable.remarks}
        executable.notes += [
            f"{module_of(node)}: {reason}; it runs as in the onednn engine"
            for node, reason in parts.left
            if module_of(node) not in remarked
        ]
        for number, subgraph in enumerate(subgraphs):
            executable.code += "\n".join(
                (
                    "",
                    f"# native subgraph {number}",
                    *(f"#   {line}" for line in subgraph.describe()),
                    "",
                )
            )
        if module is not given:
            executable.notes.append(float16.NOTE)
        executable.peak_bytes += sum(subgraph.arena_bytes for subgraph in subgraphs)
        return executable


_COMPUTED_IN = {
    torch.float32: torch.float32,
    torch.bfloat16: torch.bfloat16,
    torch.float16: torch.float32,
    torch.int8: torch.uint8,
}
"""The dtype of activations by that of the weights that they are multiplied by."""


def _isa(library: Library, dtype: torch.dtype) -> str | None:
    return next((isa for isa in BY_DTYPE[dtype].instruction_sets if isa in library.isas), None)


def _placeholder(lowering: Lowering, node: fx.Node) -> fx.Node:
    """A subgraph takes any layout, and looks at its inputs itself."""
    readers = [
        user for user in node.users if user.op == "output" or holds_tensors(lowering.facts[user])
    ]
    if all(isinstance(user.target, NativeSubgraph) for user in readers):
        return keep(lowering, node)
    return placeholder(lowering, node)
