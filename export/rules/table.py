"""Every operator of the fused graph that has a translation into standard ONNX operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import fx

from fastres.export.builder import Builder
from fastres.export.rules.arithmetic import RULES as ARITHMETIC
from fastres.export.rules.choosing import RULES as CHOOSING
from fastres.export.rules.convolution import RULES as CONVOLUTION
from fastres.export.rules.fused import RULES as FUSED
from fastres.export.rules.movement import RULES as MOVEMENT
from fastres.export.rules.normalisation import RULES as NORMALISATION
from fastres.export.rules.pooling import RULES as POOLING
from fastres.export.rules.quantized import RULES as QUANTIZED
from fastres.export.rules.reduction import RULES as REDUCTION
from fastres.export.rules.resizing import RULES as RESIZING
from fastres.export.rules.size import RULES as SIZE

Rule: TypeAlias = "Callable[[Builder, fx.Node], Any]"

RULES: dict[Any, Rule] = {
    **FUSED,
    **ARITHMETIC,
    **CHOOSING,
    **CONVOLUTION,
    **MOVEMENT,
    **NORMALISATION,
    **POOLING,
    **QUANTIZED,
    **REDUCTION,
    **RESIZING,
    **SIZE,
}
"""Operator -> translation."""
