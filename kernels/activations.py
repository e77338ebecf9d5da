"""The activations that fused operators apply: one row each, with what every implementation needs.

Where a column holds a sentence instead, that implementation has none, and the sentence says what
happens then. ``tests/kernels/test_activations.py`` holds every implementation against this table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """An element-wise function of one tensor; NaN stays NaN in every implementation.

    Attributes:
        name: in the arguments of the fused operators; torch's own name.
        reference: the definition, for any floating-point dtype.
        in_place: the same, written into its argument.
        aten: torch's operators that compute it by themselves.
        bounds_above: large numbers are cut off, so that rounding errors made beside them show.
        onednn: attribute of oneDNN's convolution in torch, and its scalars. Where it has none, a
            sentence: the activation is then computed behind the convolution, by ``in_place``.
        onednn_sum: whether that convolution also applies it behind an addition.
        exact: nothing in it is approximated, so that every implementation gives the same bits.
        onnx: operators that :mod:`fastres.export.rules.activations` writes, in order.
    """

    name: str
    reference: Callable[[Tensor], Tensor]
    in_place: Callable[[Tensor], Tensor]
    aten: tuple[Any, ...]
    onednn: tuple[str, tuple[float, ...]] | str
    onnx: tuple[str, ...]
    onednn_sum: bool = False
    bounds_above: bool = False
    exact: bool = True


def _same(x: Tensor) -> Tensor:
    return x


def _relu6_in_place(x: Tensor) -> Tensor:
    return F.relu6(x, inplace=True)


def _silu_in_place(x: Tensor) -> Tensor:
    return F.silu(x, inplace=True)


def _hardswish_in_place(x: Tensor) -> Tensor:
    return F.hardswish(x, inplace=True)


_ROWS = (
    Activation(
        name="none",
        reference=_same,
        in_place=_same,
        aten=(),
        onednn=("none", ()),
        onednn_sum=True,
        onnx=(),
    ),
    Activation(
        name="relu",
        reference=torch.relu,
        in_place=torch.relu_,
        aten=(aten.relu.default,),
        onednn=("relu", ()),
        onednn_sum=True,
        onnx=("Relu",),
    ),
    Activation(
        name="relu6",
        reference=F.relu6,
        in_place=_relu6_in_place,
        aten=(aten.relu6.default,),
        bounds_above=True,
        onednn=("hardtanh", (0.0, 6.0)),
        onnx=("Clip",),
    ),
    Activation(
        name="silu",
        reference=F.silu,
        in_place=_silu_in_place,
        aten=(aten.silu.default,),
        onednn=("swish", ()),
        exact=False,
        onnx=("Sigmoid", "Mul"),
    ),
    Activation(
        name="hardswish",
        reference=F.hardswish,
        in_place=_hardswish_in_place,
        aten=(aten.hardswish.default,),
        onednn=("hardswish", ()),
        onnx=("HardSigmoid", "Mul"),  # the operator HardSwish is not on TensorRT's list
    ),
)

ACTIVATIONS: dict[str, Activation] = {row.name: row for row in _ROWS}
"""The rows by name, in the order in which messages list them."""

BY_ATEN: dict[Any, Activation] = {overload: row for row in _ROWS for overload in row.aten}
"""The rows by torch's operators."""
