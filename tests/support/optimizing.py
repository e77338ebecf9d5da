"""Optimise as a user would, and hold what comes back to what the receipt says."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

import fastres
from fastres.errors import FastresWarning, InputError
from tests.support.oracle import unchanged

BATCH_NORM_NODES = ("batch_norm", "native_batch_norm")


def optimize(model: nn.Module, example: Any = None, **options: Any) -> Any:
    """`fastres.optimize`, with the model found bitwise unchanged afterwards.

    A warning must come exactly when the receipt holds something refused or left to torch.
    """
    with unchanged(model), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fast = fastres.optimize(model, example, **options)
    ours = [str(entry.message) for entry in caught if entry.category is FastresWarning]
    assert bool(ours) != fast.report.complete, f"{ours}\n{fast.report}"
    others = [entry for entry in caught if entry.category is not FastresWarning]
    assert [str(entry.message) for entry in others if not _is_theirs(entry)] == []
    return fast


def _is_theirs(entry: warnings.WarningMessage) -> bool:
    """Whether torch warns of the model, or Triton's interpreter of itself (3.6 with NumPy 2)."""
    own = "padding='same' with even kernel lengths" in str(entry.message)
    return own or entry.filename.endswith(str(Path("triton", "runtime", "interpreter.py")))


def refusal_of(fast: Any, images: torch.Tensor) -> str | None:
    """Why an optimised model does not take these images, or None when it does."""
    try:
        fast(images)
    except InputError as error:
        return str(error)
    return None


def nodes(fast: Any, *names: str) -> list[fx.Node]:
    """Calls in the optimised graph whose operator has one of these names."""
    return [
        node
        for node in fast.graph_module.graph.nodes
        if node.op == "call_function" and operator_name(node) in names
    ]


def operator_name(node: fx.Node) -> str:
    """``conv2d`` for ``fastres.conv2d.default``, ``add`` for ``aten.add.Tensor``."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._opname.rstrip("_")
    return str(getattr(target, "__name__", target))


def assert_complete(fast: Any, **counts: int) -> None:
    """Everything found was done, nothing was refused, and as many as given were found.

    Args:
        fast: an optimised model.
        counts: batch_norm, convolution, addition and activation.
    """
    report = fast.report
    assert {kind: report.found[kind] for kind in counts} == counts, str(report)
    assert {kind: report.done[kind] for kind in counts} == counts, str(report)
    assert report.complete, str(report)
    left = nodes(fast, *BATCH_NORM_NODES, "relu", "relu6", "hardtanh", "add", "convolution")
    assert left == [], fast.graph_module.code
