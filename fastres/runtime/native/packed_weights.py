"""Weights packed for the library, once per model and form, shared between shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastres.dtypes import BY_DTYPE
from fastres.kernels.quantized import multipliers
from fastres.kernels.spec import ConvSpec
from fastres.runtime.native import pack, pack_groups
from fastres.runtime.native.huge_pages import HugePages
from fastres.runtime.native.operations import Named
from fastres.runtime.native.pack_groups import Reads
from fastres.system import forking


@dataclass(frozen=True)
class Panels:
    """A packed weight.

    Attributes:
        panels: see :mod:`fastres.runtime.native.pack`.
        blocks: channel blocks that a panel reads.
        firsts: each panel's first block, where they differ.
        reads: of the form ``"grouped"``.
    """

    panels: Tensor
    blocks: int
    firsts: Tensor | None = None
    reads: Reads | None = None


class PackedWeights:
    """The packed weights of one model; made on first use, kept as long as this object."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}
        self._lock = forking.lock()
        self._pages = HugePages()

    def weight(
        self,
        name: str,
        weight: Tensor,
        dtype: torch.dtype,
        form: str,
        channels: int,
        groups: int,
        units: int,
        widened: bool = False,
    ) -> Panels:
        """``weight`` [K, C / groups, R, S] as ``"panels"``, ``"small"`` or ``"winograd"``.

        Args:
            dtype: of the activations.
            units: of a step; in the form ``"small"`` at most, where groups are spread 16.
            widened: int8 as int16, for kernels that multiply no bytes.
        """

        def packed() -> Panels:
            made = _packed(weight.detach(), dtype, form, channels, groups, units)
            panels = pack.widened(made.panels) if widened else made.panels
            panels_dtype = panels.dtype if panels.dtype != torch.float64 else weight.dtype
            return replace(made, panels=self._pages.copy(panels, panels_dtype))

        result: Panels = self._once((name, form, channels, groups, units, widened), packed)
        return result

    def of_groups(
        self, name: str, weight: Tensor, conv: ConvSpec, form: str, vector: int, widened: bool
    ) -> Panels:
        """``weight`` [K, C / groups, R, S] as ``"depthwise"`` or ``"grouped"``.

        Args:
            vector: output channels of a register.
            widened: int8 as int16, for kernels that multiply no bytes.
        """

        def packed() -> Panels:
            if form == "depthwise":
                made = pack_groups.pack_depthwise(weight.detach())
                panels = pack.widened(made) if widened else made
                return Panels(self._pages.copy(panels, panels.dtype), 1)
            found = pack_groups.reads(conv, pack.group(weight.dtype), vector)
            panels = pack_groups.pack_grouped(weight.detach(), conv, found, widened)
            return Panels(self._pages.copy(panels, panels.dtype), found.of_panel, reads=found)

        result: Panels = self._once((name, form, conv.groups, vector, widened), packed)
        return result

    def bias(self, bias: tuple[str, Tensor] | None, channels: int) -> Tensor:
        """[K] in float32, in whole panels."""
        name, value = (None, None) if bias is None else bias
        whole: Tensor = self._once(
            (name, "bias", channels),
            lambda: pack.pack_vector(None if value is None else value.detach(), channels),
        )
        return whole

    def vector(self, vector: Named, channels: int) -> Tensor:
        """[C], or one number for all, in float32, in whole panels."""
        name, value = vector
        whole: Tensor = self._once(
            (name, "vector", channels),
            lambda: pack.pack_vector(value.detach().float().reshape(-1).expand(channels), channels),
        )
        return whole

    def integer_bias(
        self, bias: tuple[str, Tensor], weight: tuple[str, Tensor], zero: int, channels: int
    ) -> Tensor:
        """[K] int32, in whole panels, less what the input's zero point adds to each sum."""
        (name, value), (weight_name, filters) = bias, weight

        def made() -> Tensor:
            sums = filters.detach().sum(dim=(1, 2, 3), dtype=torch.int64)
            return pack.pack_vector(
                (value.detach() - zero * sums).to(torch.int32), channels, torch.int32
            )

        whole: Tensor = self._once((name, "integer bias", weight_name, zero), made)
        return whole

    def multiplier(self, scale: tuple[str, Tensor], x_scale: float, unit: float) -> Tensor:
        """[K] float32, in whole panels: see :func:`fastres.kernels.quantized.multipliers`."""
        name, value = scale
        whole: Tensor = self._once(
            (name, "multiplier", x_scale, unit),
            lambda: pack.pack_vector(multipliers(x_scale, value.detach(), unit), len(value)),
        )
        return whole

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        with self._lock:
            if key not in self._known:
                self._known[key] = make()
            return self._known[key]


def _packed(
    weight: Tensor, dtype: torch.dtype, form: str, channels: int, groups: int, units: int
) -> Panels:
    lanes = BY_DTYPE[dtype].lanes
    blocks = -(-channels // lanes)
    if form == "small":
        return Panels(pack.pack_small(weight, units), 1)
    if form == "winograd":
        return Panels(pack.pack_winograd(weight, lanes), blocks)
    if groups == 1:
        return Panels(pack.pack(weight, units * pack.group(weight.dtype)), blocks)
    spread, firsts = pack.spread_groups(weight, channels, groups, lanes)
    return Panels(pack.pack(spread, lanes), spread.shape[1] // lanes, firsts)
