"""A model's weights in the forms that kernels read, each made once and shared between shapes."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from dataclasses import dataclass

from torch import Tensor, fx

from fastres.runtime.triton.plan import Constant


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A made weight, with what it was made from: as long as it lives, their addresses are taken."""

    tensor: Tensor
    sources: tuple[Tensor, ...]


class PackedWeights:
    """The forms made so far; one lives as long as an executable holds it."""

    def __init__(self) -> None:
        self._made: weakref.WeakValueDictionary[Hashable, PackedWeight] = (
            weakref.WeakValueDictionary()
        )

    def get(self, module: fx.GraphModule, constant: Constant) -> PackedWeight:
        """A constant of ``module`` in the form that a kernel reads."""
        # Detached, so that the memory stays though somebody gives the weight another (.data = ...).
        sources = tuple(getattr(module, name).detach() for name in constant.sources)
        key = (constant.form, *((s.data_ptr(), s.shape, s.stride(), s.dtype) for s in sources))
        found = self._made.get(key)
        if found is None:
            found = PackedWeight(constant.make(*sources), sources)
            self._made[key] = found
        return found
