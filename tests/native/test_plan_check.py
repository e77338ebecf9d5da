"""A plan is looked at once, before it runs: whatever would reach outside its memory is refused."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastres.errors import FastresError
from fastres.runtime.native import plan_builder
from fastres.runtime.native.abi import ARENA, COp
from fastres.runtime.native.plan import Plan
from tests.support.native.emulator import loaded
from tests.support.optimizing import optimize
from tests.support.small import Net, assert_right, conv, images


def function(m: Any, x: Tensor) -> Tensor:
    y = torch.relu(m.first(x))
    z = torch.relu(m.third(torch.relu(m.second(y))) + y)
    z = m.depthwise(m.grouped(z))
    z = F.interpolate(F.channel_shuffle(m.pool(z), 4), scale_factor=2)
    return z * torch.sigmoid(z.mean((2, 3), keepdim=True))


def network() -> nn.Module:
    """With a stem, Winograd, a residual, groups, poolings, copies, another size, a gate."""
    parts = {"first": conv(3, 64), "second": conv(64, 64), "third": conv(64, 64, 1)}
    parts |= {"grouped": conv(64, 64, groups=16), "depthwise": conv(64, 64, groups=64)}
    return Net(function, **parts, pool=nn.MaxPool2d(2)).eval()


def further(name: str, by: int) -> Callable[[COp], bool]:
    """Moves a tensor of an operation, if it lies in the arena."""

    def change(op: COp) -> bool:
        tensor = getattr(op, name)
        if (
            tensor.space != ARENA
            or not tensor.pixel
            or (name == "residual" and not op.has_residual)
            or (name == "factor" and not op.has_factor)
        ):
            return False
        tensor.offset += by
        return True

    return change


def longer_table(name: str) -> Callable[[COp], bool]:
    def change(op: COp) -> bool:
        address = getattr(op, name)
        if not address:
            return False
        table = ctypes.cast(address, ctypes.POINTER(ctypes.c_int32))
        copy = (ctypes.c_int32 * (op.images * op.pixels))(*table[: op.images * op.pixels])
        copy[len(copy) - 1] += 1 << 28
        KEPT.append(copy)
        setattr(op, name, ctypes.addressof(copy))
        return True

    return change


def further_read(name: str, count: Callable[[COp], int]) -> Callable[[COp], bool]:
    """Moves the last of as many entries of a table of what is read, if there is one."""

    def change(op: COp) -> bool:
        address = getattr(op, name)
        if not address:
            return False
        table = ctypes.cast(address, ctypes.POINTER(ctypes.c_int32))
        copy = (ctypes.c_int32 * count(op))(*table[: count(op)])
        copy[len(copy) - 1] += 1 << 28
        KEPT.append(copy)
        setattr(op, name, ctypes.addressof(copy))
        return True

    return change


def more_images(op: COp) -> bool:
    op.images += 1
    return True


def scratch_outside(op: COp) -> bool:
    op.scratch_offset = 1 << 40
    return True


KEPT: list[Any] = []

DAMAGES: dict[str, Callable[[COp], bool]] = {
    "input far behind": further("input", 1 << 32),
    "input in front": further("input", -(1 << 32)),
    "output far behind": further("output", 1 << 32),
    "output in front": further("output", -(1 << 32)),
    "residual far behind": further("residual", 1 << 32),
    "factor far behind": further("factor", 1 << 32),
    "copies": further_read("copies", lambda op: 3 * op.copy_count),
    "source rows": further_read("source_rows", lambda op: 2 * op.output.height),
    "source columns": further_read("source_columns", lambda op: 2 * op.output.width),
    "pixels read": longer_table("input_px"),
    "pixels written": longer_table("output_px"),
    "pixels added": longer_table("residual_px"),
    "steps": further_read("steps", lambda op: op.step_count),
    "panels' inputs": further_read("panel_input", lambda op: op.panels * max(op.reads, 1)),
    "images": more_images,
    "scratch": scratch_outside,
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", DAMAGES)
def test_every_operation_that_reaches_outside_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded()
    fast = optimize(network(), images(1, channels=3, height=16, width=16), engine="native")
    plan, number = plan_builder.PlanBuilder.plan, 0
    damaged: list[int] = []

    def with_damage(self: Any) -> Plan:
        found = plan(self)
        if len(found.ops) > number and DAMAGES[name](found.ops[number]):
            damaged.append(number)
        return found

    monkeypatch.setattr(plan_builder.PlanBuilder, "plan", with_damage)
    for number in range(16):  # every time for a new shape, so that it is planned anew
        x = images(1 + number, channels=3, height=16, width=18)
        before = len(damaged)
        try:
            fast(x)
            refused = ""
        except FastresError as error:
            refused = str(error)
        if len(damaged) == before:
            assert refused == ""
        else:
            assert refused.startswith(f"operation {number} of a plan of the native engine would")
    assert damaged


def test_a_right_plan_passes() -> None:
    model = network()
    fast = optimize(model, images(1, channels=3, height=16, width=16), engine="native")
    for batch in (1, 2, 5):
        assert_right(model, fast, images(batch, channels=3, height=15, width=18))
