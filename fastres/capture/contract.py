"""What an optimised model takes: checked once for every new combination of input shapes.

Capture replaces sizes by symbols. Where the model's own Python code then decided something on a
size, torch recorded the decision as a guard; a call whose sizes would have decided otherwise must
not run the captured graph, for its answer would silently be another model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastres.capture.decisions import CodeLocation, is_operator_code
from fastres.capture.symbols import (
    Expression,
    Size,
    UnknownFunction,
    evaluate,
    from_sympy,
    largest,
    solve,
)
from fastres.errors import CaptureError, InputError


@dataclass(frozen=True)
class TensorInput:
    """One tensor argument: its name, and its sizes as numbers or symbolic expressions."""

    name: str
    dtype: torch.dtype
    device: torch.device
    sizes: tuple[int | Expression, ...]

    @property
    def layout(self) -> str:
        """``NCHW``, or ``NHWC`` for bytes whose last size is the fixed one; "" for no image."""
        if len(self.sizes) != 4:
            return ""
        fixed = [isinstance(size, int) for size in self.sizes]
        return "NHWC" if self.dtype == torch.uint8 and fixed[3] and not fixed[1] else "NCHW"

    @property
    def form(self) -> str:
        """``[N, 3, H, W]`` with names for what may vary, as messages show it."""
        names = self.layout or [f"d{i}" for i in range(len(self.sizes))]
        parts = (
            str(s) if isinstance(s, int) else n for s, n in zip(self.sizes, names, strict=True)
        )
        return f"[{', '.join(parts)}]"


@dataclass(frozen=True)
class Guard:
    """A decision that the model's own code took on a size, and where it took it."""

    condition: Size
    location: str


@dataclass(frozen=True)
class Limit:
    """The smallest and largest size that the captured graph takes for one symbol."""

    symbol: str
    lower: int
    upper: int


@dataclass(frozen=True)
class Contract:
    """The inputs that a captured graph is valid for.

    ``inputs`` has one entry per flattened argument: a :class:`TensorInput`, or the plain value
    that the argument had during capture and must have again.
    """

    inputs: tuple[TensorInput | Any, ...]
    guards: tuple[Guard, ...]
    limits: tuple[Limit, ...] = ()

    def on(self, device: torch.device) -> Contract:
        """The same contract for tensors on another device."""
        inputs = (
            replace(expected, device=device) if isinstance(expected, TensorInput) else expected
            for expected in self.inputs
        )
        return Contract(tuple(inputs), self.guards, self.limits)

    def check(self, values: Sequence[Any]) -> None:
        """Accept ``values`` (the flattened arguments of a call) or say what is wrong with them.

        Raises:
            InputError: number of arguments, type, rank, channels, dtype, device, size or a size
                that the model's code treats differently from the captured one.
        """
        if len(values) != len(self.inputs):
            raise InputError(
                f"got {len(values)} arguments, expected {len(self.inputs)}: call the optimised "
                "model with the same arguments as the model it was made from"
            )
        symbols: dict[str, int] = {}
        for expected, value in zip(self.inputs, values, strict=True):
            if isinstance(expected, TensorInput):
                _check_tensor(expected, value)
                _bind(expected, value, symbols)
            elif isinstance(value, Tensor) or value != expected:
                raise InputError(
                    f"got {_describe(value)} for an argument that was {expected!r} when the model "
                    "was captured; such arguments are fixed: optimise once per value, passing it "
                    "in example_input"
                )
        for limit in self.limits:
            got = symbols.get(limit.symbol, limit.lower)
            if not limit.lower <= got <= limit.upper:
                expected = (
                    f"at least {limit.lower}" if got < limit.lower else f"at most {limit.upper}"
                )
                raise InputError(
                    f"got {_shapes(values)}: as captured, the model takes sizes of {expected} "
                    f"where this is {got}; beyond that an operation does not fit or the model's "
                    "code takes another way. Resize the input, or optimise with an example_input "
                    "of this size"
                )
        for guard in self.guards:
            # torch's capture takes 0 and 1 for "like any other size"; so do we.
            sizes = {symbol: largest(size, 2) for symbol, size in symbols.items()}
            holds = evaluate(guard.condition, sizes)
            if holds is not None and not holds:  # of symbolic sizes, asking records the decision
                raise InputError(
                    f"got {_shapes(values)}: the model's code decides on the image size at "
                    f"{guard.location}, and for this size it would run something else than what "
                    "was captured, or would not fit; call "
                    "optimize() with an example_input of this size and keep one optimised model "
                    "for each case"
                )


def _check_tensor(expected: TensorInput, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise InputError(
            f"got {_describe(value)} for {expected.name!r}, expected a {expected.dtype} tensor "
            f"{expected.form}; convert it with torch.as_tensor"
        )
    shape = list(value.shape)
    if value.dim() != len(expected.sizes):
        hint = "; add the batch with x.unsqueeze(0)" if value.dim() == 3 else ""
        raise InputError(
            f"got a tensor of rank {value.dim()} {shape} for {expected.name!r}, expected rank "
            f"{len(expected.sizes)} {expected.form}{hint}"
        )
    for axis, (size, got) in enumerate(zip(expected.sizes, shape, strict=True)):
        if isinstance(size, int) and size != got:
            raise InputError(
                f"got {shape} for {expected.name!r}, expected {expected.form}: "
                + _size_hint(expected.layout, axis, size)
            )
    if value.dtype != expected.dtype:
        advice = (
            "pass the pixels as they are decoded, 0 to 255, not normalised"
            if expected.dtype == torch.uint8
            else f"convert it with x.to({expected.dtype})"
        )
        raise InputError(
            f"got {value.dtype} for {expected.name!r}, expected {expected.dtype} as the model "
            f"itself takes; {advice}"
        )
    if value.device != expected.device:
        other = f", or optimise with device={str(value.device)!r}"
        raise InputError(
            f"got a tensor on {value.device} for {expected.name!r}, expected {expected.device}; "
            f"move it with x.to({str(expected.device)!r}){'' if value.is_meta else other}"
        )
    if value.layout != torch.strided:
        raise InputError(
            f"got a {value.layout} tensor for {expected.name!r}, expected a dense one; use "
            "x.to_dense()"
        )


def _size_hint(layout: str, axis: int, size: int) -> str:
    if axis == (layout or "NC").index("C"):
        return (
            f"dimension {axis}, the channels of an {layout or 'NCHW'} image, is {size} in this "
            "model; pass such an image, or optimise with an example_input of this shape"
        )
    return (
        f"dimension {axis} must be {size}, the model's code fixes it (by a Linear on flattened "
        "pixels, say, or by len(x)); resize the input, or optimise with an example_input of the "
        "other size"
    )


def _bind(expected: TensorInput, value: Tensor, symbols: dict[str, int]) -> None:
    """Give the symbols in ``expected`` the sizes of ``value``; one symbol must get one size."""
    for axis, (size, got) in enumerate(zip(expected.sizes, value.shape, strict=True)):
        if isinstance(size, int):
            continue
        unknown = [name for name in size.symbols if name not in symbols]
        if len(unknown) == 1:
            solution = solve(size, got, unknown[0], symbols)
            if solution is not None:
                symbols[unknown[0]] = solution
        if evaluate(size, symbols) != got:
            raise InputError(
                f"got {list(value.shape)} for {expected.name!r}: dimension {axis} must be {size} "
                "(the model ties it to another dimension or needs a multiple); resize the input, "
                "or optimise with an example_input of this size"
            )


def _shapes(values: Sequence[Any]) -> str:
    return ", ".join(str(list(v.shape)) for v in values if isinstance(v, Tensor))


def _describe(value: Any) -> str:
    return (
        f"a {type(value).__name__}"
        if not isinstance(value, Tensor)
        else f"a tensor {list(value.shape)}"
    )


def fixed_size(size: int | torch.SymInt) -> int | None:
    """The number behind a size that capture found to be constant; None where it may vary."""
    if not isinstance(size, torch.SymInt):
        return size
    expression = size.node.expr
    return int(expression) if expression.is_number else None


def contract_of(
    names: Sequence[str], values: Sequence[Any], locations: Mapping[int, CodeLocation] | None = None
) -> Contract:
    """The contract behind the values that capture recorded for a graph's inputs.

    Args:
        names: the arguments' names, for messages.
        values: per argument a fake tensor, or the plain value it had during capture.
        locations: where torch's conditions come from, by their number, as far as is known.
    """
    inputs: list[Any] = []
    shape_env = None
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, Tensor):
            inputs.append(value)
            continue
        sizes: list[Any] = []
        for size in value.shape:
            fixed = fixed_size(size)
            if isinstance(size, torch.SymInt):
                shape_env = size.node.shape_env
                sizes.append(_as_expression(size.node.expr, name) if fixed is None else fixed)
            else:
                sizes.append(size)
        inputs.append(TensorInput(name, value.dtype, value.device, tuple(sizes)))
    if shape_env is None:
        return Contract(tuple(inputs), ())
    guards = tuple(_guards(shape_env, locations or {}))
    return Contract(tuple(inputs), guards, tuple(_limits(shape_env)))


def _guards(shape_env: Any, locations: Mapping[int, CodeLocation]) -> list[Guard]:
    """The conditions on sizes under which the captured graph is the model, once each."""
    guards: dict[Size, Guard] = {}
    for number, guard in enumerate(shape_env.guards):
        location = locations.get(number)
        frame = guard.sloc.framework_loc
        file = str(getattr(frame, "filename", "") or "")
        if location is None and (frame is None or is_operator_code(file)):
            continue  # asked while the inputs were made symbolic: torch's own assumptions
        text = str(location or f"{Path(file).name}:{frame.lineno}")
        condition = _as_expression(guard.expr, text)
        guards.setdefault(condition, Guard(condition, text))
    return list(guards.values())


def _as_expression(expression: Any, location: str) -> Any:
    try:
        return from_sympy(expression)
    except UnknownFunction as error:
        raise CaptureError(
            f"{location}: the model's code decides on a size by the function {error}, which "
            "fastres cannot repeat for other sizes; use whole-number arithmetic, or optimise the "
            "parts around it"
        ) from error


def _limits(shape_env: Any) -> list[Limit]:
    """Bounds other than torch's own assumption that a symbolic size is two or more."""
    return [
        Limit(
            str(symbol), int(bounds.lower) if bounds.lower > 2 else 0, int(min(bounds.upper, 2**62))
        )
        for symbol, bounds in shape_env.var_to_range.items()
        if bounds.lower > 2 or bounds.upper < 2**31
    ]
