"""From a model to its operators with their sizes: what each reads, computes and writes.

The graph is the one that ``optimize`` makes; sizes come from fake tensors, so that any batch costs
nothing. Whatever only views memory is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastres.capture.capture import capture, in_eval_mode, model_dtype
from fastres.dtypes import PRECISIONS
from fastres.errors import OptionError
from fastres.ir import ops
from fastres.ir.graph import aliases, label
from fastres.ir.propagate import propagate
from fastres.ir.views import (
    Bottleneck,
    Conv2d,
    Linear,
    PoolLinear,
    QuantizedBottleneck,
    QuantizedConv2d,
    QuantizedLinear,
    QuantizedStem,
    Stem,
)
from fastres.kernels.tuning.traffic import ELEMENT_BYTES, Spec, flops, least_bytes
from fastres.passes import rewrite
from fastres.quantization.nominal import quantize_nominally
from fastres.report import Report
from fastres.runtime.triton import fill_channels, fuse_blocks
from fastres.runtime.triton.fill_channels import Pays, added_channels


@dataclass(frozen=True)
class Layer:
    """One operator of a graph.

    Attributes:
        name: the user's module, or the node where there is none.
        operator: e.g. ``conv2d``.
        spec: its sizes; None for what only moves numbers.
        residual: whether a convolution adds a tensor like its output.
        elements: numbers read and written by an operator without a spec.
        moved: bytes of those, where they are of several dtypes; 0 where the precision tells.
    """

    name: str
    operator: str
    spec: Spec | None
    residual: bool = False
    elements: int = 0
    moved: int = 0

    def least_bytes(self, precision: str) -> int:
        """Bytes that any kernel for it moves."""
        if self.spec is None:
            return self.moved or self.elements * ELEMENT_BYTES[precision]
        return least_bytes(self.spec, precision, self.residual)

    @property
    def flops(self) -> int:
        """Multiplications and additions of its products."""
        return 0 if self.spec is None else flops(self.spec)


def graph_of(
    model: nn.Module, dtype: torch.dtype | None = None, *, quantized: bool = False
) -> fx.GraphModule:
    """The fused graph of a model, before anything is decided about a device.

    Args:
        model: any that ``optimize`` takes.
        dtype: to compute in; None for the model's own.
        quantized: in int8, with scales that no image chose.
    """
    evaluated, _ = in_eval_mode(model)
    with torch.no_grad():
        captured = capture(evaluated, None)
        own_dtype = model_dtype(evaluated)
        wanted = PRECISIONS["int8"].folded if quantized else dtype or own_dtype
        rewrite(
            captured.module,
            Report(type(model).__name__),
            own_dtype,
            wanted,
            torch.device("cuda"),
        )
        if quantized:
            quantize_nominally(captured.module)
    return captured.module


def layers_of(
    module: fx.GraphModule,
    batch: int,
    size: int,
    policy: fuse_blocks.FusionPolicy | None = None,
    filling: Pays | None = None,
) -> list[Layer]:
    """The operators of a graph for ``batch`` square images, in order.

    Args:
        module: of :func:`graph_of`; not changed.
        batch: images per call.
        size: pixels of a side.
        policy: decides which blocks become one kernel; None for none.
        filling: decides which images get channels of zeros; None for none.

    Raises:
        InputError: the model does not take images of this size.
    """
    facts = propagate(module, images_for(module, batch, size))
    if policy is not None:
        module = fuse_blocks.copy(module)
        facts = propagate(module, images_for(module, batch, size))
        if filling is not None and fill_channels.run(module, facts, filling):
            facts = propagate(module, images_for(module, batch, size))
        fuse_blocks.run(module, fuse_blocks.BlockContext(facts, policy))
        facts = propagate(module, images_for(module, batch, size))
    found = (_layer(node, facts) for node in module.graph.nodes if node.op == "call_function")
    return [layer for layer in found if layer is not None]


def images_for(module: fx.GraphModule, batch: int, size: int) -> list[Tensor]:
    """Arguments of that size: one number, read again and again."""
    placeholders = module.graph.find_nodes(op="placeholder")
    values = [node.meta["val"] for node in placeholders]
    if len(values) != 1 or not isinstance(values[0], Tensor) or values[0].dim() != 4:
        raise OptionError(
            f"the model takes {len(values)} inputs: expected one image tensor [N, C, H, W]"
        )
    (value,) = values
    scalar = torch.zeros((), dtype=value.dtype, device="cpu")
    return [scalar.expand(batch, int(value.shape[1]), size, size)]


def _layer(node: fx.Node, facts: Mapping[fx.Node, Any]) -> Layer | None:
    operator = str(node.target).removesuffix(".default").removeprefix("fastres.")
    view = next((each.of(node) for each in _WITH_SPEC if each.target is node.target), None)
    if view is not None:
        residual = isinstance(view, Conv2d | QuantizedConv2d) and view.residual is not None
        return Layer(label(node), operator, view.spec(facts), residual)
    if aliases(node.target) or added_channels(node):  # which is part of copying the image in
        return None
    tensors = [facts[each] for each in node.all_input_nodes if isinstance(facts[each], Tensor)]
    results = facts[node] if isinstance(facts[node], (list, tuple)) else [facts[node]]
    tensors += [each for each in results if isinstance(each, Tensor)]
    elements = sum(int(t.numel()) for t in tensors)
    several = node.target in (ops.quantize, ops.dequantize)
    moved = sum(int(t.numel()) * t.element_size() for t in tensors) if several else 0
    return Layer(label(node), operator, None, elements=elements, moved=moved)


_WITH_SPEC: tuple[
    type[
        Conv2d
        | Linear
        | QuantizedConv2d
        | QuantizedLinear
        | Bottleneck
        | QuantizedBottleneck
        | Stem
        | QuantizedStem
        | PoolLinear
    ],
    ...,
] = (
    Conv2d,
    Linear,
    QuantizedConv2d,
    QuantizedLinear,
    Bottleneck,
    QuantizedBottleneck,
    Stem,
    QuantizedStem,
    PoolLinear,
)
"""The operators that have a geometry."""
