"""Weights packed for the library, once per model and form, shared between shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastres.dtypes import BY_DTYPE
from fastres.runtime.native import pack
from fastres.runtime.native.huge_pages import HugePages
from fastres.system import forking


@dataclass(frozen=True)
class Panels:
    """A packed weight.

    Attributes:
        panels: see :mod:`fastres.runtime.native.pack`.
        blocks: channel blocks that a panel reads.
        firsts: each panel's first block, where they differ.
    """

    panels: Tensor
    blocks: int
    firsts: Tensor | None = None


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
        most: int,
    ) -> Panels:
        """``weight`` [K, C / groups, R, S] as ``"panels"``, ``"small"`` or ``"winograd"``.

        Args:
            most: units of a step in the form ``"small"``.
        """
        key = (name, form, channels, groups, most)
        packed: Panels = self._once(
            key, lambda: self._pack(weight.detach(), dtype, form, channels, groups, most)
        )
        return packed

    def _pack(
        self, weight: Tensor, dtype: torch.dtype, form: str, channels: int, groups: int, most: int
    ) -> Panels:
        made = _packed(weight, dtype, form, channels, groups, most)
        return replace(made, panels=self._pages.copy(made.panels))

    def bias(self, bias: tuple[str, Tensor] | None, channels: int) -> Tensor:
        """[K] in float32, in whole panels."""
        name, value = (None, None) if bias is None else bias
        whole: Tensor = self._once(
            (name, "bias", channels),
            lambda: pack.pack_bias(None if value is None else value.detach(), channels),
        )
        return whole

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        with self._lock:
            if key not in self._known:
                self._known[key] = make()
            return self._known[key]


def _packed(
    weight: Tensor, dtype: torch.dtype, form: str, channels: int, groups: int, most: int
) -> Panels:
    lanes = BY_DTYPE[dtype].lanes
    blocks = -(-channels // lanes)
    if form == "small":
        return Panels(pack.pack_small(weight, most), 1)
    if form == "winograd":
        return Panels(pack.pack_winograd(weight, lanes), blocks)
    if groups == 1:
        return Panels(pack.pack(weight, lanes), blocks)
    spread, firsts = pack.spread_groups(weight, channels, groups, lanes)
    return Panels(pack.pack(spread, lanes), spread.shape[1] // lanes, firsts)
