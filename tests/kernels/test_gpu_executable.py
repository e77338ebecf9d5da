"""Plans on a fake device: lifetimes, replay, order, threads, errors, and faults that must show."""

from __future__ import annotations

import dataclasses
import gc
import threading
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from fastres.runtime.triton.executable import TritonExecutable
from fastres.runtime.triton.memory_planner import Arena, clashes
from fastres.runtime.triton.packed_weights import PackedWeights
from fastres.runtime.triton.plan import Plan, Result
from fastres.runtime.triton.workspace import Workspace
from tests.support.fake_device import (
    CannotRecord,
    FakeDevice,
    chain,
    expected,
    mixing_step,
    result,
    torch_step,
    value,
)

SHAPE = (2, 3, 4, 5)


def no_weights() -> fx.GraphModule:
    graph = fx.Graph()
    graph.output(())
    return fx.GraphModule(nn.Module(), graph)


class Bound:
    """A plan on a fake device."""

    def __init__(self, plan: Plan, device: FakeDevice | None = None) -> None:
        self.device = device or FakeDevice()
        self.workspace = Workspace(self.device)
        self.executable = self.bind(plan)

    def bind(self, plan: Plan, batch: int | None = None) -> TritonExecutable:
        return TritonExecutable(
            plan, no_weights(), PackedWeights(), self.workspace, "fake", batch=batch
        )


def check(executable: TritonExecutable, *inputs: Tensor) -> list[Tensor]:
    wanted = expected(executable.plan, inputs)
    got = list(executable(inputs))
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    return got


@pytest.mark.parametrize("records", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
def test_a_chain_gives_new_results_for_new_arguments(records: bool, in_place: bool) -> None:
    bound = Bound(chain(in_place=in_place), FakeDevice(records))
    bound.executable.prepare([torch.randn(SHAPE)])
    for _ in range(3):
        check(bound.executable, torch.randn(SHAPE))


def test_calls_replay_what_was_recorded_and_launch_nothing() -> None:
    bound = Bound(chain())
    bound.executable.prepare([torch.randn(SHAPE)])
    bound.device.log.clear()
    check(bound.executable, torch.randn(SHAPE))
    assert bound.device.log == ["enter", "copy", "replay", "copy", "leave"]


def test_without_recording_launches_are_made_one_by_one() -> None:
    bound = Bound(chain(2))
    bound.device.refuses = CannotRecord("the caller's operator synchronises")
    bound.executable.prepare([torch.randn(SHAPE)])
    (note,) = bound.executable.notes
    assert note.endswith("cannot be recorded: the caller's operator synchronises")
    bound.device.log.clear()
    check(bound.executable, torch.randn(SHAPE))
    assert bound.device.log == ["enter", "copy", "launch mix", "launch mix", "copy", "leave"]


def test_inside_a_recording_of_the_callers_launches_are_made_anew() -> None:
    bound = Bound(chain(2))
    bound.executable.prepare([torch.randn(SHAPE)])
    bound.device.caller_records = True
    bound.device.log.clear()
    check(bound.executable, torch.randn(SHAPE))
    assert "replay" not in bound.device.log
    assert bound.device.taken("launch") == ["launch mix"] * 2


WIDE = (2, 4, 4, 5)


def filled_plan() -> Plan:
    """An argument of three channels is copied into one of four."""
    steps: list[Any] = [
        mixing_step("v", ["x"], [value("v", WIDE)], overwrites=["x"]),
        mixing_step("w", ["v"], [value("w", WIDE)]),
    ]
    return Plan([(0, value("x", WIDE))], 0, steps, [result("w", WIDE)], filled=frozenset({"x"}))


@pytest.mark.parametrize("way", ["replayed", "one by one", "recorded by the caller"])
def test_a_filled_input_has_zeros_behind_whatever_else_runs(way: str) -> None:
    bound = Bound(filled_plan(), FakeDevice(way != "one by one"))
    bound.executable.prepare([torch.randn(SHAPE)])
    bound.device.caller_records = way == "recorded by the caller"
    other = bound.bind(chain())  # in the same arena
    for _ in range(2):
        x = torch.randn(SHAPE)
        other([torch.full(SHAPE, torch.nan)])
        (got,) = bound.executable([x])
        (wanted,) = expected(filled_plan(), [torch.constant_pad_nd(x, (0, 0, 0, 0, 0, 1))])
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_memory_of_filled_inputs_is_counted_and_never_overwritten() -> None:
    plan = filled_plan()
    assert plan.homes == {"v": 0, "w": 1}
    assert plan.peak_bytes == plan.arena.nbytes + 2 * 4 * 4 * 5 * 4


def test_an_error_while_preparing_leaves_nothing_behind() -> None:
    bound = Bound(chain())
    memory = weakref.ref(bound.executable._arena)
    bound.device.refuses = RuntimeError("illegal memory access")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        bound.executable.prepare([torch.randn(SHAPE)])
    assert bound.device.log[-1] == "leave"
    assert not bound.workspace.lock.locked()
    # It can be tried again, and when nobody holds it, its memory goes.
    bound.executable.prepare([torch.randn(SHAPE)])
    check(bound.executable, torch.randn(SHAPE))
    del bound.executable
    gc.collect()
    assert memory() is None


@pytest.mark.campaign
def test_memory_goes_with_the_executable_without_waiting_for_the_collector() -> None:
    for records in (True, False):
        bound = Bound(chain(), FakeDevice(records))
        bound.executable.prepare([torch.randn(SHAPE)])
        bound.executable([torch.randn(SHAPE)])
        bound.executable.timed([torch.randn(SHAPE)])
        memory = weakref.ref(bound.executable._arena)
        gc.collect()
        gc.disable()
        try:
            del bound.executable
            assert memory() is None
        finally:
            gc.enable()


def test_an_error_in_a_call_releases_the_device() -> None:
    failing = threading.Event()

    def fail(x: Tensor) -> Tensor:
        if failing.is_set():
            raise RuntimeError("no")
        return x + 1

    plan = Plan([(0, value("x"))], 0, [torch_step("t", fail, ["x"], "y")], [result("y")])
    bound = Bound(plan, FakeDevice(records=False))
    bound.executable.prepare([torch.randn(SHAPE)])
    failing.set()
    with pytest.raises(RuntimeError, match="no"):
        bound.executable([torch.randn(SHAPE)])
    failing.clear()
    check(bound.executable, torch.randn(SHAPE))


def test_no_room_for_the_arena_is_an_error_before_anything_runs() -> None:
    device = FakeDevice()
    device.memory = 100
    with pytest.raises(torch.OutOfMemoryError):
        Bound(chain(), device)
    assert device.log == []


def test_results_are_the_callers_own() -> None:
    plan = chain()
    plan.results += [result("v3"), result("v1"), Result("argument", 0, value("x"))]
    bound = Bound(plan)
    x = torch.randn(SHAPE)
    bound.executable.prepare([x])
    first = bound.executable([x])
    kept = [each.clone() for each in first]
    arena = bound.executable._arena.memory
    for index, each in enumerate(first):
        start, end = arena.data_ptr(), arena.data_ptr() + arena.numel()
        assert not start <= each.data_ptr() < end
        assert each.data_ptr() not in {other.data_ptr() for other in first[:index]}
        assert each.data_ptr() != x.data_ptr()
    assert torch.equal(first[3], x)
    bound.executable([torch.randn(SHAPE)])
    for each, was in zip(first, kept, strict=True):
        assert torch.equal(each, was)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_images_come_out_in_the_layout_of_the_argument(layout: torch.memory_format) -> None:
    bound = Bound(chain())
    bound.executable.prepare([torch.randn(SHAPE)])
    (got,) = check(bound.executable, torch.randn(SHAPE).contiguous(memory_format=layout))
    assert got.is_contiguous(memory_format=layout)


def test_threads_take_turns() -> None:
    bound = Bound(chain(6))
    bound.executable.prepare([torch.randn(SHAPE)])
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                check(bound.executable, torch.randn(SHAPE))
        except BaseException as error:  # noqa: BLE001 - reported by the test itself
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_shapes_share_one_arena_and_do_not_disturb_each_other() -> None:
    bound = Bound(chain(5))
    small = Plan([(0, value("x", (1, 2)))], None, [], [])
    small.steps.append(mixing_step("s", ["x"], [value("y", (1, 2))]))
    small.results.append(result("y", (1, 2)))
    other = bound.bind(small)
    assert other._arena is bound.executable._arena
    assert len(bound.device.taken("allocate")) == 1
    bound.executable.prepare([torch.randn(SHAPE)])
    other.prepare([torch.randn(1, 2)])
    for _ in range(3):
        check(bound.executable, torch.randn(SHAPE))
        check(other, torch.randn(1, 2))


def test_a_larger_shape_gets_an_arena_of_its_own() -> None:
    bound = Bound(chain())
    large = Plan(
        [(0, value("x", (99, 99)))],
        None,
        [mixing_step("l", ["x"], [value("y", (99, 99))])],
        [result("y", (99, 99))],
    )
    other = bound.bind(large)
    assert other._arena is not bound.executable._arena
    other.prepare([torch.randn(99, 99)])
    bound.executable.prepare([torch.randn(SHAPE)])
    check(other, torch.randn(99, 99))
    check(bound.executable, torch.randn(SHAPE))


def test_what_the_same_step_reads_through_a_view_is_not_overwritten() -> None:
    """A convolution reads its neighbours' pixels of the view while they write theirs."""
    plan = chain(1)
    plan.steps += [
        torch_step("view", lambda x: x[:], ["v0"], "seen", may_alias=True),
        torch_step("view", lambda x: x[:], ["seen"], "again", may_alias=True),
        mixing_step("v1", ["again", "v0"], [value("v1")], overwrites=["v0"]),
        torch_step("copy", lambda x: x + 1, ["v1"], "other"),
        mixing_step("v2", ["other", "v1"], [value("v2")], overwrites=["v1"]),
    ]
    plan.results[:] = [result("v2")]
    assert plan.homes["v1"] != plan.homes["v0"]
    assert plan.homes["v2"] == plan.homes["v1"]
    bound = Bound(plan, FakeDevice(records=False))
    check(bound.executable, torch.randn(SHAPE))


def test_views_keep_what_they_view_alive() -> None:
    """v0 is viewed by torch; the view is read long after v0's last reader."""
    plan = chain(6)
    device = FakeDevice(records=False)

    def view(x: Tensor) -> Tensor:
        return x.permute(0, 3, 2, 1)

    def back(x: Tensor) -> Tensor:
        return x.permute(0, 3, 2, 1) + 0

    plan.steps.insert(1, torch_step("view", view, ["v0"], "turned", may_alias=True))
    plan.steps.append(torch_step("back", back, ["turned"], "again"))
    plan.results.append(result("again"))
    bound = Bound(plan, device)
    assert plan.last_use["v0"] == len(plan.steps)
    bound.executable.prepare([torch.randn(SHAPE)])
    check(bound.executable, torch.randn(SHAPE))


def test_what_torch_computes_is_dropped_after_its_last_use() -> None:
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def make(x: Tensor) -> Tensor:
        y = x + 1
        made.append(weakref.ref(y))
        alive.append(sum(ref() is not None for ref in made))
        return y

    steps = [torch_step(f"{i}", make, [f"t{i - 1}" if i else "x"], f"t{i}") for i in range(6)]
    plan = Plan([(0, value("x"))], 0, list(steps), [result("t5")])
    bound = Bound(plan, FakeDevice(records=False))
    bound.executable([torch.randn(SHAPE)])
    assert max(alive) == 2


def test_torch_steps_are_replayed_on_the_same_memory() -> None:
    device = FakeDevice()
    plan = chain(2)
    plan.steps.insert(1, torch_step("t", device.operator(lambda x: torch.tanh(x)), ["v0"], "bent"))
    plan.steps[2] = mixing_step("v1", ["bent"], [value("v1")])
    bound = Bound(plan, device)
    bound.executable.prepare([torch.randn(SHAPE)])
    for _ in range(2):
        x = torch.randn(SHAPE)
        (got,) = bound.executable([x])
        torch.testing.assert_close(got, torch.tanh(x * 0.5) * 0.5)


def test_steps_are_timed_one_by_one_with_what_surrounds_them() -> None:
    for records in (True, False):
        bound = Bound(chain(3), FakeDevice(records))
        bound.executable.prepare([torch.randn(SHAPE)])
        for _ in range(2):
            times = bound.executable.timed([torch.randn(SHAPE)])
            assert [name for _, name, _ in times] == ["copy in", "mix", "mix", "mix", "copy out"]
            assert [module for module, _, _ in times] == ["", "v0", "v1", "v2", ""]
            assert [took for _, _, took in times] == [0, 1, 1, 1, 0]
        check(bound.executable, torch.randn(SHAPE))


def test_a_smaller_batch_fills_part_of_the_plan() -> None:
    bound = Bound(chain())
    executable = bound.bind(chain(), batch=2)
    executable.prepare([torch.randn(SHAPE)])
    x = torch.randn(1, *SHAPE[1:])
    (got,) = executable([x])
    (wanted,) = expected(executable.plan, [torch.cat([x, x])])
    assert got.shape == x.shape
    assert torch.equal(got, wanted[:1])


def test_the_plan_reads_well() -> None:
    bound = Bound(chain(2))
    bound.executable.prepare([torch.randn(SHAPE)])
    code = bound.executable.code
    assert code.splitlines()[0] == (
        "2 steps, 2 launches of kernels replayed as one graph, 0 calls of torch; arena 0.00 MiB, "
        "0.00 MiB moved"
    )
    assert "  v0: mix -> [2, 3, 4, 5] at 512" in code
    assert "    mix grid 1x1x1, 4 warps, 3 stages" in code


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Programs of mixes: values read late, in-place steps, scratch, two results per step."""
    names = ["x", "z"]
    steps: list[Any] = []
    for index in range(draw(st.integers(1, 12))):
        reads = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3))
        writes = [value(f"s{index}:{i}") for i in range(draw(st.integers(1, 2)))]
        scratch = [value(f"s{index}:scratch", (30,))] if draw(st.booleans()) else []
        overwrites = draw(st.lists(st.sampled_from(reads), unique=True, max_size=2))
        steps.append(mixing_step(f"s{index}", reads, writes, scratch, overwrites))
        names += [each.name for each in writes]
    wanted = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3))
    inputs = [(0, value("x")), (1, value("z"))]
    return Plan(inputs, 0, steps, [result(name) for name in wanted])


@pytest.mark.campaign
@given(plans())
@settings(max_examples=150)
def test_any_program_computes_in_its_arena_what_it_computes_in_memory_without_end(
    plan: Plan,
) -> None:
    assert list(clashes(plan.buffers, plan.arena)) == []
    bound = Bound(plan)
    bound.executable.prepare([torch.randn(SHAPE), torch.randn(SHAPE)])
    for _ in range(2):
        check(bound.executable, torch.randn(SHAPE), torch.randn(SHAPE))


@pytest.mark.campaign
@given(plans())
@settings(max_examples=60)
def test_two_values_share_memory_only_where_one_overwrites_the_other(plan: Plan) -> None:
    for step_number, step in enumerate(plan.steps, start=1):
        mine = [plan.homes[each.name] for each in (*step.writes, *step.scratch)]  # type: ignore[union-attr]
        assert len(set(mine)) == len(mine)
        for read in step.reads:
            if plan.homes[read] in mine:
                assert read in step.overwrites  # type: ignore[union-attr]
                assert plan.last_use[read] == step_number
                assert plan.homes[read] == mine[0]


def wrong(plan: Plan, inputs: list[Tensor]) -> bool:
    """Whether a plan with a fault computes something else than it should."""
    bound = Bound(plan)
    bound.executable.prepare(inputs)
    got = bound.executable(inputs)
    wanted = expected(plan, inputs)
    return not all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def long_skip() -> Plan:
    """x is read again by the last step."""
    plan = chain(5)
    plan.steps.append(mixing_step("end", ["v4", "v0"], [value("end")]))
    plan.results[:] = [result("end")]
    return plan


def test_faults_in_a_plan_show() -> None:
    inputs = [torch.randn(SHAPE)]
    assert not wrong(long_skip(), inputs)

    short = long_skip()
    short.last_use["v0"] = 2  # a lifetime that ends at its first reader
    assert wrong(short, inputs)

    together = long_skip()
    offsets = (0,) * len(together.buffers)
    together.__dict__["arena"] = Arena(offsets, together.arena.nbytes)
    assert list(clashes(together.buffers, together.arena))
    assert wrong(together, inputs)

    eager = long_skip()
    eager.steps[1] = mixing_step("v1", ["v0"], [value("v1")], overwrites=["v0"])
    assert not wrong(eager, inputs)  # v0 is needed later, so it is not overwritten
    eager = long_skip()
    eager.steps[1] = mixing_step("v1", ["v0"], [value("v1")], overwrites=["v0"])
    eager.last_use["v0"] = 2
    assert wrong(eager, inputs)


def test_a_device_used_out_of_order_says_so() -> None:
    device = FakeDevice()
    with pytest.raises(AssertionError, match="a launch outside of entered"):
        device.launch(chain().steps[0].calls({"x": torch.ones(SHAPE), "v0": torch.ones(SHAPE)}))  # type: ignore[union-attr]
    with (
        device.entered(),
        pytest.raises(AssertionError, match="two calls on the device at once"),
        device.entered(),
    ):
        pass


def test_calls_after_the_callers_own_recording_replay_with_results_of_their_own() -> None:
    """What torch made for the caller's recording must not become the result of plain calls."""
    device = FakeDevice()
    plan = chain(1)
    plan.steps.append(torch_step("t", device.operator(torch.tanh), ["v0"], "bent"))
    plan.results[:] = [result("bent")]
    bound = Bound(plan, device)
    bound.executable.prepare([torch.randn(SHAPE)])
    device.caller_records = True
    bound.executable([torch.randn(SHAPE)])
    device.caller_records = False
    for _ in range(2):
        x = torch.randn(SHAPE)
        (got,) = bound.executable([x])
        torch.testing.assert_close(got, torch.tanh(x * 0.5))


def test_the_callers_recording_has_memory_of_its_own_and_keeps_the_weights() -> None:
    bound = Bound(chain(2))
    bound.executable.prepare([torch.randn(SHAPE)])
    bound.device.caller_records = True
    bound.device.log.clear()
    bound.executable([torch.randn(SHAPE)])
    assert len(bound.device.taken("allocate")) == 1
    written: list[Tensor] = []
    arena = bound.executable._arena.memory
    bound.device.launch = lambda calls: written.extend(  # type: ignore[method-assign]
        out for each in calls for out in each.arguments["outs"]
    )
    bound.executable([torch.randn(SHAPE)])
    start, end = arena.data_ptr(), arena.data_ptr() + arena.numel()
    assert written
    assert not any(start <= out.data_ptr() < end for out in written)


def test_what_a_recording_reads_is_kept_beyond_the_executable() -> None:
    kept: dict[int, object] = {}
    workspace = Workspace(FakeDevice(), kept)
    thing = torch.ones(1)
    workspace.keep([thing, thing])
    assert list(kept.values()) == [thing]


def waiting_plan(device: FakeDevice) -> Plan:
    """v0 by a kernel; torch counts in it, the host waiting; v1 by a kernel from both."""
    plan = chain(1)

    def count(x: Tensor) -> Tensor:
        assert device._recording is None, "the host waited inside of a recording"
        return (x > 0).sum().float().expand(SHAPE).clone()

    waits = dataclasses.replace(torch_step("c", count, ["v0"], "counted"), synchronises=True)
    plan.steps += [
        torch_step("t", device.operator(torch.tanh), ["v0"], "bent"),
        waits,
        mixing_step("v1", ["bent", "counted"], [value("v1")]),
        mixing_step("v2", ["v1"], [value("v2")]),
        torch_step("u", device.operator(torch.sigmoid), ["v2"], "last"),
    ]
    plan.results[:] = [result("last"), result("counted")]
    return plan


def check_inside(bound: Bound, x: Tensor) -> None:
    """As :func:`check`, for plans whose operators belong to the device."""
    with bound.device.entered():
        wanted = expected(bound.executable.plan, [x])
    bound.device.log.clear()
    for ours, theirs in zip(bound.executable([x]), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_around_what_the_host_waits_for_stretches_are_recorded() -> None:
    device = FakeDevice()
    plan = waiting_plan(device)
    assert [(s.recordable, s.numbers) for s in plan.stretches] == [
        (True, (0, 1)),
        (False, (2, 3)),  # what reads a result that moves cannot be recorded either
        (True, (4, 5)),
    ]
    bound = Bound(plan, device)
    bound.executable.prepare([torch.randn(SHAPE)])
    assert bound.executable.notes == ["the host waits for c: torch"]
    for _ in range(3):
        check_inside(bound, torch.randn(SHAPE))
        assert device.taken("replay", "launch") == ["replay", "launch mix", "replay"]
    assert "one by one" in bound.executable.code.splitlines()[0]


def test_one_recording_that_fails_leaves_the_others() -> None:
    device = FakeDevice()
    bound = Bound(waiting_plan(device), device)
    device.refuses = CannotRecord("somebody waited for the device")
    bound.executable.prepare([torch.randn(SHAPE)])
    assert any(note.endswith("somebody waited for the device") for note in bound.executable.notes)
    for _ in range(2):
        check_inside(bound, torch.randn(SHAPE))
        assert len(device.taken("replay")) == 1


def test_views_are_never_recorded_alone() -> None:
    """A recording of nothing is an error on a GPU."""

    class Strict(FakeDevice):
        def record(self, program: Any) -> Any:
            replay = super().record(program)
            assert self.recorded, "a recording of nothing"
            return replay

    device = Strict()
    plan = chain(1)
    plan.steps += [
        torch_step("view", lambda x: x.permute(0, 3, 2, 1), ["v0"], "turned", may_alias=True)
    ]
    plan.results[:] = [Result("value", "turned", value("turned", (2, 5, 4, 3)))]
    bound = Bound(plan, device)
    bound.executable.prepare([torch.randn(SHAPE)])
    for _ in range(2):
        bound.executable.timed([torch.randn(SHAPE)])
        check(bound.executable, torch.randn(SHAPE))
    view = torch_step("view", lambda x: x[:], ["x"], "seen", may_alias=True)
    only = bound.bind(Plan([(0, value("x"))], 0, [view], [result("seen")]))
    only.prepare([torch.randn(SHAPE)])
    check(only, torch.randn(SHAPE))
