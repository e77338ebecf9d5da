"""A plan in words: order, images at a time, blocks, and how many bytes come from where."""

from __future__ import annotations

from collections.abc import Iterator

from fastres.runtime.native import schedule
from fastres.runtime.native.abi import FORMS
from fastres.runtime.native.operations import Op
from fastres.runtime.native.plan import Phase, Plan


def described(plan: Plan, who: str) -> list[str]:
    """One line for the plan, one per phase and one per operation.

    The bytes are expected, from the sizes of tensors and caches, not measured: activations that a
    phase keeps in the second-level cache and those from behind it, and weights likewise.
    """
    lines = [
        f"{who}: {_images(plan.images)}, {plan.isa}, {len(plan.operations)} operations, "
        f"arena {plan.arena_bytes / 2**20:.1f} MiB"
    ]
    for phase in plan.phases:
        lines.append(f"  {_images(phase.images)} at a time:")
        lines += (f"    {line}" for line in _operations(plan, phase))
    return lines


def _operations(plan: Plan, phase: Phase) -> Iterator[str]:
    caches = plan.caches
    live = max(_activations(plan, i) for i in phase.ops) * phase.images
    second = caches.second * 0.75
    for i in phase.ops:
        op, structure = plan.operations[i], plan.ops[i]
        where = _level(live, second, caches)
        text = f"{_name(op)}: {plan.kinds[i]}"
        if op.conv is not None:
            conv = op.conv
            if structure.form:
                text += f", {FORMS[structure.form]},"
            text += f" {conv.c}->{conv.k} {conv.r}x{conv.s}/{conv.stride[0]}"
            text += f", tiles of {structure.tile} by {structure.group}"
            text += f", {structure.chunk_panels} of {structure.panels} panels"
        text += f"; activations {_activations(plan, i) * phase.images / 2**10:.0f} KiB from {where}"
        weights = structure.panel_bytes * structure.panels
        if weights:
            text += f", weights {weights / 2**10:.0f} KiB from {_level(weights, second, caches)}"
        yield text


def _activations(plan: Plan, index: int) -> int:
    """Bytes of an operation's activations for one image."""
    op = plan.operations[index]
    values = {*op.reads} if op.output is None else {*op.reads, op.output}
    return sum(plan.layouts[value].image for value in values)


def _level(size: int, second: float, caches: schedule.Caches) -> str:
    if size <= second:
        return "L2"
    return "L3" if size <= caches.shared / 2 else "memory"


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"


def _name(op: Op) -> str:
    return str(op.node.meta.get("module") or "(model)")
