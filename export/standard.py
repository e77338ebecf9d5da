"""An optimised model as a ``torch.export`` program of standard ATen operators.

Folding and rewriting stay; the operators ``fastres::*`` are replaced by their plain-PyTorch
meaning. Such a program needs no fastres to run: ``torch.export.save`` stores it, and whatever
reads exported programs takes it from there.
"""

from __future__ import annotations

import inspect
import warnings

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from fastres.capture.export_program import dynamic_sizes, with_batch_of_two
from fastres.errors import VerificationError
from fastres.ir import ops
from fastres.optimized import OptimizedModule
from fastres.system.plain_tensors import refuse_under_tracing
from fastres.system.threads import safe_threads


@safe_threads()
def to_standard(fast: OptimizedModule) -> ExportedProgram:
    """Export ``fast`` with the sizes that it accepts kept dynamic, and check the result.

    Returns:
        A program without any operator of fastres; same inputs and outputs as ``fast``.

    Raises:
        VerificationError: the program answers differently from ``fast``'s own graph.
        OptionError: something watches this thread's calls (a fake mode, say).
    """
    refuse_under_tracing("to_standard")
    args, kwargs = with_batch_of_two(*fast.example)
    arguments = inspect.signature(fast.forward).bind(*args, **kwargs).arguments
    sizes = dynamic_sizes(dict(arguments))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of its own classes
        program: ExportedProgram = torch.export.export(
            fast, args, kwargs, dynamic_shapes=sizes, strict=False
        ).run_decompositions(dict(ops.REFERENCE))
    left = [str(n.target) for n in program.graph.nodes if n.target in ops.REFERENCE]
    if left:
        raise VerificationError(f"{left[0]} is still in the exported program")
    _compare(fast, program)
    return program


def _compare(fast: OptimizedModule, program: ExportedProgram) -> None:
    """Both run the same ATen operators on the same weights: the answers are bitwise equal."""
    args, kwargs = with_batch_of_two(*fast.example)
    generator = torch.Generator().manual_seed(0)

    def image(leaf: object) -> object:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return torch.randn(
                leaf.shape, generator=generator, dtype=torch.float32, device="cpu"
            ).to(leaf.device, leaf.dtype)
        return leaf

    args, kwargs = pytree.tree_map(image, (args, kwargs))
    with torch.no_grad():
        expected = fast.graph_module(*pytree.tree_leaves((args, kwargs)))
        actual = pytree.tree_leaves(program.module()(*args, **kwargs))
    for y, z in zip(expected, actual, strict=True):
        if isinstance(y, Tensor) and not torch.equal(y, z):
            raise VerificationError(
                f"the exported program differs by {float((y - z).abs().max()):.2e} from the "
                "optimised model; nothing is returned"
            )
