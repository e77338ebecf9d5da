"""How right a model's k largest answers are, when the k largest themselves may rightly differ.

Two answers closer than the rounding of a precision change places in it. So indices are not compared
with indices: what counts is how large, in float64, the answers are that were named.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TopK:
    """The k largest answers [N, k] as given, and what float64 says about those named.

    Attributes:
        values: as given.
        exact_values: the float64 answers at the given indices.
        first: the index of the largest, [N].
    """

    values: Tensor
    exact_values: Tensor
    first: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        """What is compared with float64's own."""
        return [self.values, self.exact_values]


def of_answers(answers: Tensor, exact: Tensor, k: int) -> TopK:
    """The leaders of all answers [N, classes]; ``exact`` are those of the model in float64."""
    values, indices = torch.topk(answers, k, dim=1)
    return of_choice(values, indices, exact)


def of_choice(values: Tensor, indices: Tensor, exact: Tensor) -> TopK:
    """The leaders as a model with ``top_k`` names them."""
    return TopK(values, exact.gather(1, indices), indices[:, 0])
