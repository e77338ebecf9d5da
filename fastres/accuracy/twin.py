"""A copy of a model whose parameters are copied, in another dtype, whenever they are read.

A plain copy in float64 is twice as large as the model itself. Here a layer's weight is in float64
as long as the layer computes. A forward that writes into one writes into a copy of its own, never
into the user's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastres.capture.wrappers import copy_keeping_modes


def lean_twin(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """A copy of ``model`` with buffers of its own, and parameters that are read from the model's.

    A parameter that is kept elsewhere too (a list of a module's own, say) is there a tensor of the
    meta device, on which nothing can be computed: such a model needs a :func:`whole_twin`.

    Args:
        model: read, never changed.
        dtype: what floating-point numbers are converted to; None leaves all as they are.
    """
    originals: dict[int, Tensor] = {}
    memo: dict[int, Any] = {}
    stand_ins: list[Tensor] = []  # kept, so that no other object gets the id of one
    for parameter in model.parameters():
        if type(parameter) is nn.Parameter and parameter.layout == torch.strided:
            stand_in = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
            stand_ins.append(stand_in)
            memo[id(parameter)] = stand_in
            originals[id(stand_in)] = parameter
    twin = copy_keeping_modes(model, memo)
    if dtype is not None:
        twin.to(dtype)
    for module in twin.modules():
        module._parameters = _ReadParameters(module._parameters, originals, dtype)
    return twin


def whole_twin(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """A copy of ``model`` with everything of its own, converted to ``dtype`` if that is given."""
    twin = copy_keeping_modes(model)
    return twin if dtype is None else twin.to(dtype)


class _ReadParameters(dict[str, Any]):
    """A module's parameters by name; those that stand for a user's are copied when they are read.

    What is put in later is kept as it is.
    """

    def __init__(
        self, parameters: dict[str, Any], originals: dict[int, Tensor], dtype: torch.dtype | None
    ) -> None:
        super().__init__(parameters)
        self._originals, self._dtype = originals, dtype

    def __getitem__(self, name: str) -> Any:
        stand_in = super().__getitem__(name)
        original = self._originals.get(id(stand_in))
        if original is None:
            return stand_in
        dtype = original.dtype
        if self._dtype is not None and (dtype.is_floating_point or dtype.is_complex):
            dtype = self._dtype
        copied = original.detach().to(dtype, copy=True)
        return nn.Parameter(copied, original.requires_grad)

    def items(self) -> Iterator[tuple[str, Any]]:  # type: ignore[override]
        """Names and parameters, each copied when it is reached."""
        return ((name, self[name]) for name in list(self))

    def values(self) -> Iterator[Any]:  # type: ignore[override]
        """Parameters, each copied when it is reached."""
        return (self[name] for name in list(self))
