"""The engine ``native``: kernels of our own on the CPU.

The fused graph is cut into pieces that the library runs in one call each, threads, order and memory
planned beforehand; a ResNet is one piece. What the library has no operation for runs as in the
oneDNN engine, and the receipt says so. The library computes float32 with AVX2 or AVX-512 and
bfloat16 with AVX-512's bfloat16 instructions or AMX, whichever the processor has.

NaN and infinity: a Winograd convolution would spread them over a tile, and multiplications by the
zeros that fill up channel blocks over a pixel. The library therefore looks at what goes in and out,
and a call with numbers that are not ordinary is answered by the eager engine.

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
from fastres.runtime.executable import Executable
from fastres.runtime.lowering import Lowering, Rule, keep
from fastres.runtime.native.library import Library, load
from fastres.runtime.native.lower import Draft
from fastres.runtime.native.packed import PackedPanels
from fastres.runtime.native.partition import cut, rewrite
from fastres.runtime.native.subgraph import Piece
from fastres.runtime.onednn.engine import OneDnnEngine, keep_and_look, placeholder
from fastres.system.threads import ThreadLimit


class NativeEngine:
    """Runs float32 and bfloat16 graphs on the CPU; see :class:`fastres.runtime.engine.Engine`."""

    name = "native"
    device_types: tuple[str, ...] = ("cpu",)
    plans_threads = True
    reads_in_place = True

    def __init__(self, options: Options | None = None) -> None:
        self._options = options or Options()
        self._packed = PackedPanels()
        self._beside = OneDnnEngine()

    def renewed(self) -> NativeEngine:
        """The same engine, with nothing packed."""
        return NativeEngine(self._options)

    def refusal(self, module: fx.GraphModule) -> str | None:
        """Why the library cannot run a graph here, or None."""
        library = load()
        if isinstance(library, str):
            return library
        for value in module.buffers():
            known = value.is_floating_point() and value.dtype in NATIVE
            if known and _isa(library, value.dtype) is None:
                return f"this processor has no instructions for {value.dtype} that it knows"
        return self._beside.refusal(module)

    def build(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Executable:
        """An executable for inputs of these shapes; packs the weights that no other one has."""
        library = load()
        assert isinstance(library, Library), library
        facts = shapes(module, inputs)
        where = cut(module.graph, facts)
        threads = ThreadLimit(self._options.threads).threads
        pieces: list[Piece] = []

        def make(draft: Draft, sources: list[torch.dtype]) -> Piece:
            isa = _isa(library, draft.dtype)
            assert isa is not None
            pieces.append(Piece(draft, sources, facts, library, self._packed, isa, threads))
            return pieces[-1]

        outer = rewrite(module, where.pieces, facts, make)
        rules: dict[Any, Rule] = {**self._beside.rules(), "placeholder": _placeholder}
        lowering = Lowering(outer, inputs)
        executable = lowering.run(self.name, rules, keep_and_look)
        told = {remark.module for remark in executable.remarks}
        executable.notes += [
            f"{module_of(node)}: {reason} for the native engine; it runs as in the onednn engine"
            for node, reason in where.left
            if module_of(node) not in told
        ]
        for number, piece in enumerate(pieces):
            executable.code += "\n".join(
                ("", f"# native piece {number}", *(f"#   {line}" for line in piece.describe()), "")
            )
        executable.peak_bytes += sum(piece.arena_bytes for piece in pieces)
        return executable


def _isa(library: Library, dtype: torch.dtype) -> str | None:
    return next((isa for isa in BY_DTYPE[dtype].instruction_sets if isa in library.isas), None)


def _placeholder(lowering: Lowering, node: fx.Node) -> fx.Node:
    """A piece takes any layout, and looks at its inputs itself."""
    if all(isinstance(user.target, Piece) for user in node.users):
        return keep(lowering, node)
    return placeholder(lowering, node)
