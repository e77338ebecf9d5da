"""What every pass gets besides the graph: the receipt and the final dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastres.ir.precision import fits_float16
from fastres.report import Report


@dataclass
class Context:
    """The receipt to write to, and the dtype that the weights will be cast to in the end.

    Attributes:
        has_wide_head: the last layers stay in float32: see :mod:`fastres.passes.wide_head`.
    """

    report: Report
    dtype: torch.dtype
    has_wide_head: bool = False

    def fits(self, value: torch.Tensor) -> bool:
        """Whether the final dtype holds folded weights as well as its precision promises.

        The dtypes beside float16 have the exponents of float32.
        """
        return self.dtype != torch.float16 or fits_float16(value)
