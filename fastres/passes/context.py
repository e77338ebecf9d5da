"""What every pass gets besides the graph: the receipt and the final dtype."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fastres.report import Report


@dataclass
class Context:
    """The receipt to write to, and the dtype that the weights will be cast to in the end."""

    report: Report
    dtype: torch.dtype

    def fits(self, value: torch.Tensor) -> bool:
        """Whether the final dtype holds folded weights as well as its precision promises.

        float16 ends at 65504 and thins out below 6e-5, where a small BatchNorm weight times a small
        convolution weight may land. The other dtypes have the exponents of float32.
        """
        if self.dtype != torch.float16:
            return True
        error = torch.linalg.vector_norm(value.to(self.dtype).double() - value.double())
        norm = torch.linalg.vector_norm(value.double())
        return not math.isfinite(norm) or bool(error <= torch.finfo(self.dtype).eps * norm)
