"""Many callers and shapes: results of their own, one build per shape, a bounded cache, weights."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastres.runtime.executable import Executable
from fastres.runtime.executable_cache import CAPACITY
from fastres.runtime.onednn.packed_weights import PackedWeights
from fastres.system import threads
from tests.support.optimizing import optimize
from tests.support.small import conv, images, measured, net


def residual_block() -> nn.Module:
    """Sums into memory that it reuses, a pooling, a linear layer, two outputs."""

    def function(m: Any, x: Tensor) -> Any:
        y = F.relu(m.norm(m.stem(x)))
        y = F.relu(m.second(F.relu(m.first(y))) + y)
        y = m.last(F.relu(y)) + y
        return y, m.head(y.mean((2, 3)))

    return net(
        function,
        stem=conv(4, 16),
        norm=nn.BatchNorm2d(16),
        first=conv(16, 16),
        second=conv(16, 16),
        last=conv(16, 16),
        head=nn.Linear(16, 5),
    )


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return residual_block()


@pytest.fixture(params=["onednn", "eager", "triton"], scope="module")
def untouched(request: pytest.FixtureRequest, model: nn.Module) -> Any:
    return optimize(model, images(2), engine=request.param, threads=1)


@pytest.fixture
def fast(untouched: Any) -> Any:
    """A copy of its own for every test, which has built nothing yet."""
    return copy.deepcopy(untouched)


def built(fast: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The input shapes for which an executable is built from now on."""
    shapes: list[tuple[int, ...]] = []
    build = fast._runner.engine.build

    def record(module: Any, inputs: Any) -> Executable:
        shapes.append(tuple(inputs[0].shape))
        executable: Executable = build(module, inputs)
        return executable

    monkeypatch.setattr(fast._runner.engine, "build", record)
    return shapes


@pytest.mark.sampled(3)
def test_results_are_the_callers_own(fast: Any) -> None:
    for x in (images(2), images(2).contiguous(memory_format=torch.channels_last)):
        kept = x.clone()
        first = fast(x)
        wanted = [t.clone() for t in first]
        for result in first:
            result.fill_(7)
        second = fast(x)
        assert all(torch.equal(a, b) for a, b in zip(second, wanted, strict=True))
        assert all(bool((t == 7).all()) for t in first)
        assert torch.equal(x, kept)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("engine", ["onednn", "eager", "triton"])
@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: (x, m.conv(x)),
        lambda m, x: (m.conv(x), x.detach(), x.clone(), x.view_as(x)),
        lambda m, x: (lambda y: (y, y, [y, {"again": y}]))(m.conv(x)),
        lambda m, x: (lambda y: (y.flatten(1), y, y.transpose(2, 3), y[:, :2]))(m.conv(x)),
        lambda m, x: (lambda y: (y, F.relu(m.conv(y) + y)))(F.relu(m.conv(x))),
        lambda m, x: (lambda y: (F.relu(m.conv(y) + y), y[:, 1:]))(F.relu(m.conv(x))),
        lambda m, x: (m.conv(x) + m.free, m.free),
        lambda m, x: (x.to(torch.float32), x.contiguous(), m.conv(x)),
    ],
    ids=[
        *("input", "the input's views", "duplicates", "views", "residual kept"),
        *("view of a residual", "constant", "casts that do nothing"),
    ],
)
def test_results_share_memory_with_nothing(engine: str, function: Callable[..., Any]) -> None:
    model = net(function, conv=conv(), free=torch.rand(4, 9, 8))
    x = images(2)
    fast = optimize(model, x, engine=engine)
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        results = [*leaves(fast(given)), *leaves(fast(given))]
        addresses = [t.untyped_storage().data_ptr() for t in (*results, given)]
        addresses += [b.untyped_storage().data_ptr() for b in fast.graph_module.buffers()]
        assert len(set(addresses)) == len(addresses)
        wanted = leaves(model(given))
        for got, right in zip(results, wanted + wanted, strict=True):
            torch.testing.assert_close(got, right.detach(), rtol=1e-4, atol=1e-5)


def leaves(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


SHAPES = [(1, 9, 8), (3, 9, 8), (2, 17, 5), (1, 33, 34), (2, 1, 1), (5, 8, 8), (0, 9, 8)]


@pytest.mark.campaign
def test_many_threads_get_the_serial_answers(
    fast: Any, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = [images(n, height=h, width=w) for n, h, w in SHAPES]
    inputs[1][0, 0, 0, 0] = torch.nan  # takes another way through the runner
    serial = copy.deepcopy(fast)
    wanted = [serial(x) for x in inputs]
    shapes = built(fast, monkeypatch)
    callers, barrier = 8, threading.Barrier(8)
    rounds = 1 if fast.engine == "triton" else 5  # interpreted, a call takes a tenth of a second

    def call(caller: int) -> list[tuple[int, list[Tensor]]]:
        barrier.wait()
        order = [(caller + step) % len(inputs) for step in range(rounds * len(inputs))]
        return [(index, list(fast(inputs[index]))) for index in order]

    with ThreadPoolExecutor(callers) as pool:
        answers = [answer for answers in pool.map(call, range(callers)) for answer in answers]
    assert len(answers) == callers * rounds * len(inputs)
    for index, answer in answers:
        for got, right in zip(answer, wanted[index], strict=True):
            assert torch.equal(got.nan_to_num(3e30), right.nan_to_num(3e30)), SHAPES[index]
    # Each shape is built once, whoever came first (the empty one is not this engine's).
    assert sorted(shapes) == sorted(tuple(x.shape) for x in inputs if x.numel())


def test_a_failed_build_does_not_lock_others_out(fast: Any) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="channels"):
            fast(images(1, channels=3))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(fast, images(1)).result(timeout=60)[1].shape == (1, 5)


@pytest.mark.campaign
def test_the_cache_is_bounded_and_keeps_what_is_used(
    fast: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    favourite = images(1, height=5, width=5)
    first = [t.clone() for t in fast(favourite)]
    shapes = built(fast, monkeypatch)
    for width in range(1, CAPACITY + 10):
        fast(images(1, height=2, width=width))
        fast(favourite)
    cache = fast._runner.cache
    assert len(cache) == CAPACITY
    assert len(shapes) == CAPACITY + 9  # the favourite was not built again
    shapes.clear()
    fast(images(1, height=2, width=CAPACITY + 9))
    assert shapes == []
    again = fast(images(1, height=2, width=1))
    assert shapes == [(1, 4, 2, 1)]
    assert again[1].shape == (1, 5)
    assert all(torch.equal(a, b) for a, b in zip(fast(favourite), first, strict=True))


def test_one_shape_in_several_layouts_is_built_once(
    fast: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = built(fast, monkeypatch)
    x = images(3, height=7, width=6)
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    for given in (x, x.contiguous(memory_format=torch.channels_last), turned):
        fast(given)
    assert shapes == [(3, 4, 7, 6)]


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Nothing is freed but by its last reference, as between two runs of the collector."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.sampled(3)
@pytest.mark.usefixtures("no_collector")
def test_weights_written_in_place_take_effect(fast: Any) -> None:
    x = images(2)
    before = [t.clone() for t in fast(x)]
    with torch.no_grad():
        for buffer in fast.graph_module.buffers():
            buffer.mul_(0.5)
    after, wanted = fast(x), fast.graph_module(x)
    for got, right, old in zip(after, wanted, before, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(got, old, rtol=1e-2)


@pytest.mark.usefixtures("no_collector")
def test_weights_that_are_loaded_take_effect(model: nn.Module) -> None:
    fast = optimize(model, images(2))
    other_model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other_model.parameters():
            parameter.mul_(0.9)
    other = optimize(other_model, images(2))
    x = images(2)
    fast(x)
    fast.load_state_dict(other.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(fast(x), other(x), strict=True))


def packed_weights(fast: Any) -> PackedWeights:
    packed: PackedWeights = fast._runner.engine._packed
    return packed


def packed_in(executable: Executable) -> dict[str, Tensor]:
    constants = vars(executable._constants)
    return {name: value for name, value in constants.items() if name.endswith("_packed")}


def test_packed_weights_are_shared_between_shapes(model: nn.Module) -> None:
    fast = optimize(model, images(2), engine="onednn")
    one, other = (fast._runner.executable([images(n)]) for n in (2, 3))
    assert one is not other
    assert packed_in(one)
    layouts = set(packed_weights(fast)._known.values())
    for name, weight in packed_in(one).items():
        assert weight.is_mkldnn
        if packed_in(other)[name] is not weight:  # then oneDNN wanted another layout
            assert weight in layouts and packed_in(other)[name] in layouts
    assert any(packed_in(other)[name] is weight for name, weight in packed_in(one).items())


@pytest.mark.usefixtures("no_collector")
def test_packed_weights_are_freed_with_their_executables(model: nn.Module) -> None:
    fast = optimize(model, images(2), engine="onednn")
    known = packed_weights(fast)._known
    executable = weakref.ref(fast._runner.executable([images(2)]))
    assert len(known) > 0
    fast._runner.cache.clear()
    assert executable() is None
    assert len(known) == 0


@pytest.mark.campaign
@pytest.mark.parametrize("engine", ["native", "onednn"])
def test_the_whole_model_is_freed(engine: str) -> None:
    fast = optimize(residual_block(), images(2), engine=engine)
    fast(images(3))
    references = [weakref.ref(fast), weakref.ref(packed_weights(fast))]
    del fast
    gc.collect()
    assert [reference() for reference in references] == [None, None]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def threads_inside(fast: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many threads torch is set to while a call runs."""
    seen: list[int] = []
    run = Executable.__call__

    def record(self: Executable, inputs: Any) -> Any:
        seen.append(torch.get_num_threads())
        return run(self, inputs)

    monkeypatch.setattr(Executable, "__call__", record)
    fast(images(2))
    (number,) = seen
    return number


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("asked", "granted", "used"),
    [(None, 1, 1), (None, 2, 2), (None, 64, 2), (1, 64, 1), (2, 1, 2), (3, 1, 3)],
)
def test_threads_are_what_the_process_is_granted(
    asked: int | None, granted: int, used: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "cpu_threads", lambda: granted)
    fast = optimize(measured(nn.Sequential(conv())), images(2), threads=asked)
    assert fast.threads == used
    assert fast.report.threads == used
    assert f"{used} thread{'s' if used > 1 else ''}" in str(fast.report).splitlines()[0]
    assert threads_inside(fast, monkeypatch) == used
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_a_callers_own_setting_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cpu_threads", lambda: 64)
    fast = optimize(measured(nn.Sequential(conv())), images(2))
    torch.set_num_threads(1)
    assert fast.threads == 1
    assert threads_inside(fast, monkeypatch) == 1


@pytest.mark.usefixtures("two_threads")
def test_threads_are_given_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = optimize(measured(nn.Sequential(conv())), images(2), threads=1)

    def fail(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(Executable, "__call__", fail)
    with pytest.raises(ZeroDivisionError):
        fast(images(2))
    assert torch.get_num_threads() == 2
