"""A quantised graph's answers are integers: every engine's are held against the definition's.

Sums of products are exact, and what is made of them is rounded in one way only
(:mod:`fastres.kernels.quantized`), so that there is no tolerance: a difference is a defect.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from fastres.errors import VerificationError
from fastres.ir import ops
from fastres.quantization.calibration import Seen
from fastres.runtime.eager import EagerEngine
from fastres.runtime.runner import Runner

aten = torch.ops.aten

_ROUNDED_ONE_WAY = frozenset(
    {
        ops.quantize,
        ops.dequantize,
        ops.quantized_conv2d,
        ops.quantized_linear,
        ops.quantized_global_avg_pool,
        ops.quantized_add,
        ops.max_pool2d,
        ops.add_relu,
        operator.getitem,
        aten.add.Tensor,
        aten.cat.default,
        aten.clone.default,
        aten.flatten.using_ints,
        aten.mul.Tensor,
        aten.pad.default,
        aten.relu.default,
        aten.slice.Tensor,
        aten.to.dtype,
        aten.view.default,
    }
)
"""Operators whose result has one value in every engine and layout: nothing is summed up in float32,
and no function is approximated."""


def is_wholly_quantized(graph: fx.Graph) -> bool:
    """Whether nothing in a quantised graph rounds as its engine likes: answers have to be equal."""
    return all(
        node.target in _ROUNDED_ONE_WAY for node in graph.nodes if node.op == "call_function"
    )


def by_definition(runner: Runner, inputs: Sequence[Any]) -> Sequence[Any]:
    """The flattened results of the definition, operator by operator in torch."""
    return runner.run(EagerEngine().build(runner.module, inputs), inputs)


def refuse_others(engine: str, different: int) -> None:
    """Let pass a wholly quantised graph's answers of which ``different`` are not the definition's.

    Raises:
        VerificationError: there is one.
    """
    if different:
        raise VerificationError(
            f"the {engine} engine gives other integers than int8's definition: {different} answers "
            "differ. Nothing is returned. This is a defect of fastres: please report it, and use "
            "engine='eager' until it is mended"
        )


def compared(runner: Runner, seen: Seen) -> str:
    """How the answers on calibration images compare with the float32 graph's: a sentence."""
    error = size = 0.0
    images = agreeing = 0
    for call, answer in zip(seen.calls, seen.answers, strict=True):
        (ours, *_) = runner(call)
        error += float((ours.double() - answer.double()).square().sum())
        size += float(answer.double().square().sum())
        if answer.dim() == 2:
            images += len(answer)
            agreeing += int((ours.argmax(1) == answer.argmax(1)).sum())
    relative = (error / size) ** 0.5 if size else 0.0
    sentence = f"on calibration images, relative error {relative:.1e} against float32"
    if images:
        sentence += f", the same first choice for {agreeing} of {images}"
    return sentence
