"""Weights in the layout that oneDNN's kernels read, packed once and shared between shapes."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor


class PackedWeights:
    """The packed weights of one model.

    oneDNN chooses the layout by the whole problem, so two image sizes may want two layouts of one
    weight. Equal layouts are kept once. A packed weight lives as long as an executable reads it.
    """

    def __init__(self) -> None:
        self._known: weakref.WeakValueDictionary[tuple[str, bytes], Tensor] = (
            weakref.WeakValueDictionary()
        )

    def convolution(
        self,
        name: str,
        weight: Tensor,
        padding: Sequence[int],
        stride: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        input_size: Sequence[int],
    ) -> Tensor:
        """``weight`` [K, C / groups, R, S] as oneDNN wants it for an input of ``input_size``."""
        packed = torch.ops.mkldnn._reorder_convolution_weight(
            weight, list(padding), list(stride), list(dilation), groups, list(input_size)
        )
        return self.shared(name, packed)

    def linear(self, name: str, weight: Tensor, rows: int) -> Tensor:
        """``weight`` [K, C] as oneDNN wants it for ``rows`` rows."""
        return self.shared(name, torch.ops.mkldnn._reorder_linear_weight(weight, rows))

    def shared(self, name: str, packed: Tensor) -> Tensor:
        """The one of this name and layout that is in use, or ``packed`` from now on."""
        if not packed.is_mkldnn:  # oneDNN reads it as it is
            return packed
        layout = torch.ops.mkldnn._get_mkldnn_serialized_md(packed).numpy().tobytes()
        return self._known.setdefault((name, layout), packed)
