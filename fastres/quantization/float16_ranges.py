"""Which values of a fused graph float16 can hold, by what calibration data makes of them.

float16 ends at 65504 and thins out below 6e-5. The fused float32 graph is run on calibration
batches; of each value, and of the sums in front of its activation, the largest magnitude is kept,
and what would be lost by rounding the value to float16.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from fastres.errors import InputError
from fastres.ir import ops
from fastres.kernels import reference
from fastres.quantization.calibration import Calls, Seen, run_on

LARGEST = float(torch.finfo(torch.float16).max)

MARGIN = 2.0
"""How far below float16's end the largest value seen has to stay: other images than those of the
calibration reach further, and a value that overflows takes its whole image along. A factor of 2
costs nothing in precision, and a network whose values grow by half on other images is out of its
depth in any precision."""

COARSE = float(torch.finfo(torch.float16).eps)
"""Relative root-mean-square error of rounding to float16 beyond which a value is too small for it;
that of values well within its range is below a third of this."""


@dataclass(frozen=True)
class Range:
    """What calibration saw of one float32 value.

    Attributes:
        largest: the largest magnitude of the value itself.
        largest_sum: of sums in front of activations, on the way to it.
        lost: relative root-mean-square error of rounding it to float16, without what overflows.
    """

    largest: float
    largest_sum: float
    lost: float

    @property
    def is_held(self) -> bool:
        """Whether float16 holds the value itself."""
        return self.largest * MARGIN <= LARGEST and self.lost <= COARSE

    @property
    def reason(self) -> str | None:
        """Why float16 cannot hold the value or compute it; None where it can."""
        for what, largest in (("values", self.largest), ("sums", self.largest_sum)):
            if largest * MARGIN > LARGEST:
                end = "past" if largest > LARGEST else f"within a factor of {MARGIN:g} of"
                return f"its {what} reach {largest:.4g}, {end} float16's {LARGEST:.0f}"
        if self.lost > COARSE:
            return (
                f"its values reach {self.largest:.4g} only, so small that float16 would lose "
                f"{self.lost:.1e} of them"
            )
        return None


@dataclass(frozen=True)
class Float16Ranges:
    """What makes a float16 graph of a fused float32 one, and makes one of new weights.

    Attributes:
        values: by their nodes' names; None for those that are not float32.
        seen: what was run.
    """

    values: Mapping[str, Range | None]
    seen: Seen = field(default_factory=Seen, compare=False)

    def without_calls(self) -> Float16Ranges:
        """The same without images and answers, to be kept with a model."""
        return replace(self, seen=self.seen.without_calls())


def float16_ranges(module: fx.GraphModule, data: Any, how: Calls) -> Float16Ranges:
    """Run a fused float32 graph on calibration data and look at its values.

    Args:
        data: an iterable of batches.
        how: how a batch becomes the graph's arguments.

    Raises:
        OptionError: the data is no iterable of batches, or holds none.
        InputError: a batch is none that the model takes, or holds or makes NaN or infinity.
    """
    recording = _Recording(module)
    seen = run_on(data, how, recording.answers)
    return Float16Ranges(
        {name: None if each is None else each.range() for name, each in recording.kept.items()},
        seen,
    )


@dataclass
class _Sums:
    """Of one value, over all batches."""

    largest: float = 0.0
    largest_sum: float = 0.0
    lost: float = 0.0
    square: float = 0.0

    def add(self, value: Tensor) -> None:
        """Look at a part of the value."""
        self.largest = max(self.largest, _largest(value))
        small = value.clamp(-LARGEST, LARGEST)
        lost = torch.linalg.vector_norm(
            small.to(torch.float16).float() - small, dtype=torch.float64
        )
        self.lost += float(lost) ** 2
        self.square += float(torch.linalg.vector_norm(small, dtype=torch.float64)) ** 2

    def range(self) -> Range:
        lost = math.sqrt(self.lost / self.square) if self.square else 0.0
        return Range(self.largest, self.largest_sum, lost)


class _Recording(fx.Interpreter):
    """Runs a fused graph and looks at its float32 values, and at sums in front of activations."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.kept: dict[str, _Sums | None] = {}

    def answers(self, flat: Sequence[Any]) -> Sequence[Any]:
        """The results for flattened arguments.

        Raises:
            InputError: a value is NaN, infinite or so large that its like would overflow float32.
        """
        results: Sequence[Any] = self.run(*flat)
        for name, each in self.kept.items():
            if each is not None and not max(each.largest, each.largest_sum) < 2.0**64:
                raise InputError(
                    f"calibration: {name} reaches {max(each.largest, each.largest_sum):g} in "
                    "float32; expected a network and images whose values are finite"
                )
        return results

    def run_node(self, n: fx.Node) -> Any:
        """One node's value."""
        rule = _STEPWISE.get(n.target) if n.op == "call_function" else None
        sums: list[Tensor] = []
        if rule is None:
            value = super().run_node(n)
        else:
            value = rule(sums, *self.fetch_args_kwargs_from_env(n)[0])
        if n.op in ("call_function", "placeholder") and isinstance(value, Tensor):
            if value.dtype != torch.float32:
                self.kept[n.name] = None
            else:
                kept = self.kept.setdefault(n.name, _Sums())
                assert kept is not None
                kept.add(value)
                kept.largest_sum = max([kept.largest_sum, *map(_largest, sums)])
        return value


def _largest(value: Tensor) -> float:
    """The largest magnitude, NaN where there is one."""
    if not value.numel():
        return 0.0
    low, high = torch.aminmax(value)
    largest = torch.maximum(-low, high)
    return float(torch.where(torch.isnan(largest), torch.inf, largest))


def _conv2d(
    sums: list[Tensor], x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None,
    stride: Any, padding: Any, dilation: Any, groups: int, before: str, after: str,
) -> Tensor:  # fmt: skip
    shape = (stride, padding, dilation, groups)
    y = reference.conv2d(x, weight, bias, None, *shape, "none", "none")
    sums.append(y)
    y = reference.activate(y, before)
    if residual is not None:
        y = y + residual
        sums.append(y)
    return reference.activate(y, after)


def _linear(
    sums: list[Tensor], x: Tensor, weight: Tensor, bias: Tensor | None, activation: str
) -> Tensor:
    sums.append(reference.linear(x, weight, bias, "none"))
    return reference.activate(sums[-1], activation)


def _add_relu(sums: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
    sums.append(x + y)
    return torch.relu(sums[-1])


_STEPWISE: dict[Any, Any] = {
    ops.conv2d: _conv2d,
    ops.linear: _linear,
    ops.add_relu: _add_relu,
}
"""Fused operators, one step at a time: what stands in front of an activation is shown.

A scale and shift is float32 up to its result in any precision."""
