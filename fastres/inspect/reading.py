"""One distinct launch: its layers, and the measurements of its machine code."""

from __future__ import annotations

from dataclasses import dataclass

from fastres.kernels.inspection.finding import Finding


@dataclass(frozen=True)
class Reading:
    """A distinct launch, compiled and read.

    Attributes:
        layers: of the models, as ``model: module``.
        operation: what it computes for them, e.g. ``fastres.conv2d``.
        precision: that was asked for.
        finding: what was read; None if it does not compile.
        broken: budgets that it breaks, or why it does not compile.
    """

    layers: tuple[str, ...]
    operation: str
    precision: str
    finding: Finding | None
    broken: tuple[str, ...]
