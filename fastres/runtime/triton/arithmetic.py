"""In which precision float32 products are computed on a GPU: as torch's own flags say.

torch has one flag for convolutions and one for matrix products. Nothing is computed in TF32 unless
torch would do so itself, and nothing at all where float32 was asked for by name. AMD's convolutions
know no TF32 in torch, though the flag for them is set there too
(https://github.com/pytorch/pytorch/pull/190711).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastres.dtypes import BY_DTYPE
from fastres.kernels.tuning.gpus import Architecture


@dataclass(frozen=True)
class Arithmetic:
    """Precisions of float32 convolutions and of float32 matrix products: ``fp32`` or ``tf32``."""

    convolution: str = "fp32"
    product: str = "fp32"

    def of_convolution(self, dtype: torch.dtype) -> str:
        """The kernels' name for the precision of a convolution of such tensors."""
        return _name(dtype, self.convolution)

    def of_product(self, dtype: torch.dtype) -> str:
        """The kernels' name for the precision of a matrix product of such tensors."""
        return _name(dtype, self.product)


def _name(dtype: torch.dtype, float32: str) -> str:
    row = BY_DTYPE.get(dtype)
    return float32 if row is None or dtype == torch.float32 else row.name


def arithmetic(precision: str | None, target: Architecture | None) -> Arithmetic:
    """What torch's flags say now.

    Args:
        precision: of ``fastres.optimize``; ``"fp32"`` by name means full float32.
        target: the GPU's; None under the interpreter, where torch itself knows no TF32.
    """
    if precision == "fp32" or target is None or not target.tf32:
        return Arithmetic()
    # Both also follow the flags that are older and the ones that are more general.
    convolution = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    product = torch.backends.cuda.matmul.fp32_precision
    if target.backend == "hip":
        convolution = "ieee"
    return Arithmetic(*("tf32" if each == "tf32" else "fp32" for each in (convolution, product)))
