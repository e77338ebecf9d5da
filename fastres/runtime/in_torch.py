"""Calls that no kernel can run: traced, transformed, watched, or on what only passes for a tensor.

They run through torch's own operators one by one, which torch can record, batch, and compute on
tensors of any kind.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode

from fastres.capture.contract import Contract
from fastres.errors import FastresError, InputError
from fastres.ir import ops
from fastres.ir.graph import aliases, output_nodes
from fastres.runtime.autocast import without_autocast
from fastres.runtime.derivatives import refuse_derivatives
from fastres.system.plain_tensors import active_tracer, lost_memory

INSTEAD = (
    "fast.graph_module is the optimised model's graph; torch.export, torch.compile and make_fx "
    "trace it, fast.save and fastres.export.to_onnx store it"
)
"""What to use where a call is refused."""


def run_in_torch(
    module: fx.GraphModule, contract: Contract, values: Sequence[Any]
) -> Sequence[Any]:
    """The graph's results for flattened arguments, computed by torch's operators alone.

    Raises:
        InputError: the arguments do not fit the contract, torch's operators cannot compute with
            them, what traces the call would record something else, or a derivative is wanted.
    """
    exporting = torch.compiler.is_exporting()
    refuse_tracing(values)
    check(contract, values)
    if not exporting:
        refuse_derivatives(values)
    try:
        with without_autocast(), _weights_allowed(values):
            if exporting and not torch.onnx.is_in_onnx_export():
                return _fresh(module.graph, module(*values))
            return _fresh(module.graph, _InTorch(module).run(*values))
    except FastresError:
        raise
    except Exception as error:
        if exporting:  # it knows its own
            raise
        under = active_tracer()
        kinds = ", ".join(sorted({type(value).__name__ for value in values}))
        first = (str(error).strip().splitlines() or [""])[0]
        raise InputError(
            f"torch's operators cannot compute this call on {kinds}"
            f"{'' if under is None else f' under {under}'} ({type(error).__name__}: {first}); "
            f"pass plain tensors. {INSTEAD}"
        ) from error


def refuse_tracing(values: Sequence[Any]) -> None:
    """Let pass what is no tracer that records one call's sizes, or knows no sizes at all.

    Raises:
        InputError: ``torch.fx.symbolic_trace`` or ``torch.jit.trace`` makes this call.
    """
    if any(isinstance(value, fx.Proxy) for value in values):
        raise InputError(f"torch.fx.symbolic_trace cannot follow an optimised model: {INSTEAD}")
    if torch._C._get_tracing_state() is not None:
        raise InputError(
            f"torch.jit.trace would record the sizes of this one call as they are: {INSTEAD}"
        )


def check(contract: Contract, values: Sequence[Any]) -> None:
    """``contract.check``, for tensors of any kind.

    Raises:
        InputError: as there, and for a tensor that has no one shape, or no values any more.
    """
    for value in values:
        if not isinstance(value, Tensor):
            continue
        if value.is_nested:
            raise InputError(
                "got a nested tensor, expected one image size for the whole batch: call the "
                "optimised model once per size, or use x.to_padded_tensor(0.0)"
            )
        lost = lost_memory(value)
        if lost is not None:
            raise InputError(f"got a tensor without its values: {lost}; pass one that has them")
    contract.check(values)


class _InTorch(fx.Interpreter):
    """Runs a fused graph with each operator of fastres by its meaning in torch's own."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        function: Callable[..., Any] = ops.REFERENCE.get(target, target)
        return super().call_function(function, args, kwargs)


def _fresh(graph: fx.Graph, results: Sequence[Any]) -> list[Any]:
    """The results, copied where they may share memory with an input, a weight or one another."""
    nodes = output_nodes(graph)
    fresh = []
    for index, (node, result) in enumerate(zip(nodes, results, strict=True)):
        own = (
            isinstance(node, fx.Node)
            and node.op == "call_function"
            and not aliases(node.target)
            and node not in nodes[:index]
        )
        fresh.append(result.clone() if isinstance(result, Tensor) and not own else result)
    return fresh


@contextlib.contextmanager
def _weights_allowed(values: Sequence[Any]) -> Iterator[None]:
    """Let fake tensors meet the weights, which are real; those of a model made there are fake."""
    mode = detect_fake_mode(values)
    if mode is None or mode.allow_non_fake_inputs:
        yield
        return
    mode.allow_non_fake_inputs = True
    try:
        yield
    finally:
        mode.allow_non_fake_inputs = False
