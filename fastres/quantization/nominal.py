"""Scales without images: for a graph that is counted and read, and never run.

Kernels and their times depend on shapes, and on whether a zero point is 0, as it is behind a ReLU.
"""

from __future__ import annotations

import torch
from torch import fx

from fastres.ir import ops
from fastres.ir.graph import arguments
from fastres.ir.views import Conv2d, Linear
from fastres.quantization.calibration import Calibration
from fastres.quantization.observers import Scale
from fastres.quantization.quantize import observed, quantize
from fastres.quantization.settings import Quantization

aten = torch.ops.aten

ONE_SIDED, TWO_SIDED = Scale(1.0, 0), Scale(1.0, 128)


def quantize_nominally(module: fx.GraphModule) -> None:
    """Quantise a fused float32 graph in place, as with the ranges of images that nobody has."""
    settings = Quantization()
    nodes = observed(module.graph, settings)
    scales = {node.name: ONE_SIDED if _is_one_sided(node) else TWO_SIDED for node in nodes}
    quantize(module, Calibration(scales), settings)


def _is_one_sided(node: fx.Node) -> bool:
    """Whether a value is never below zero, as far as the graph tells."""
    if node.target in (ops.conv2d, ops.linear):
        view = Conv2d.of(node) if node.target is ops.conv2d else Linear.of(node)
        return view.activation in ("relu", "relu6")
    if node.target is ops.add_relu:
        return True
    if node.target in (ops.max_pool2d, ops.global_avg_pool, aten.flatten.using_ints):
        return _is_one_sided(arguments(node)[0])
    return False
