"""What every pass is given beside the graph."""

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
        """Whether finite numbers stay finite in the final dtype (float16 ends at 65504)."""
        if not value.numel():
            return True
        low, high = (float(bound) for bound in torch.aminmax(value))
        largest = max(-low, high)
        return not math.isfinite(largest) or largest <= torch.finfo(self.dtype).max
