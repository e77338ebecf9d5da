"""A plan in words, one line per step and one per launch; and what it adds up to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from fastres.kernels.launch.call import KernelCall
from fastres.runtime.triton.plan import KernelStep, Plan, Value


@dataclass(frozen=True)
class Totals:
    """What a plan adds up to.

    Attributes:
        launches: of our kernels, per call.
        torch_calls: steps that torch runs, each with launches of its own.
        nbytes: moved by all steps, each tensor once and whole.
    """

    launches: int
    torch_calls: int
    nbytes: int


def totals(plan: Plan, calls: Mapping[int, Sequence[KernelCall]]) -> Totals:
    """Add up the steps of a plan whose launches are known."""
    return Totals(
        launches=sum(len(each) for each in calls.values()),
        torch_calls=sum(not isinstance(step, KernelStep) for step in plan.steps),
        nbytes=sum(plan.bytes_moved(step) for step in plan.steps),
    )


def described(plan: Plan, calls: Mapping[int, Sequence[KernelCall]], recorded: bool) -> str:
    """The plan as text.

    Args:
        calls: launches by the number of their step, as far as they are known beforehand.
        recorded: whether they are replayed as one CUDA graph.
    """
    total = totals(plan, calls)
    how = "replayed as one graph" if recorded else "launched one by one"
    lines = [
        f"{len(plan.steps)} steps, {total.launches} launches of kernels {how}, "
        f"{total.torch_calls} calls of torch; arena {plan.arena.nbytes / 2**20:.2f} MiB, "
        f"{total.nbytes / 2**20:.2f} MiB moved"
    ]
    for number, value in plan.inputs:
        filled = ", channels filled up with zeros" if value.name in plan.filled else ""
        lines.append(f"  argument {number} -> {_shape(value.shape)} {_name(value.dtype)}{filled}")
    for number, step in enumerate(plan.steps):
        module = step.module or "(model)"
        if not isinstance(step, KernelStep):
            lines.append(f"  {module}: {step.operation} by {step.tactic}")
            continue
        written = ", ".join(f"{_shape(value.shape)}{_place(plan, value)}" for value in step.writes)
        lines.append(f"  {module}: {step.operation} -> {written}  {step.tactic}")
        for call in calls.get(number, ()):
            grid = "x".join(map(str, call.grid))
            lines.append(
                f"    {call.name} grid {grid}, {call.num_warps} warps, {call.num_stages} stages"
            )
    return "\n".join(lines)


def _place(plan: Plan, value: Value) -> str:
    return f" at {plan.offset(value)}"


def _shape(shape: Sequence[int]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def on_one_line(settings: Any) -> str:
    """A configuration or spec as ``block_m=128 block_n=64 ...``, as plans show it; also a key."""
    return " ".join(
        f"{field.name}={_compact(getattr(settings, field.name))}" for field in fields(settings)
    )


def _compact(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "x".join(map(str, value))
    return f"({on_one_line(value)})" if is_dataclass(value) else str(value)
