"""``streams=``: many calls at a time, each on one thread, with the answers of plain calls."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fastres
from fastres.errors import InputError, OptionError, TargetError
from fastres.options import Options
from fastres.runtime.engine import choose
from fastres.runtime.streams import AHEAD, in_streams
from tests.support.optimizing import optimize
from tests.support.small import PairNet, conv, images, measured


def small() -> nn.Module:
    return measured(nn.Sequential(conv(4, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 3)))


@pytest.mark.parametrize("engine", ["native", "onednn", "eager"])
def test_the_answers_are_those_of_calls(engine: str) -> None:
    model = small()
    fast = optimize(model, images(1), engine=engine, streams=2)
    plain = optimize(model, images(1), engine=engine, threads=1)
    batches = [images(1 + i % 3, 4, 9 + i % 4, 8) for i in range(40)]
    before = torch.get_num_threads()
    answers = list(fast.map(iter(batches)))
    assert torch.get_num_threads() == before
    assert len(answers) == len(batches)
    for x, y in zip(batches, answers, strict=True):
        assert torch.equal(y, plain(x))


def test_without_streams_calls_are_made_one_by_one() -> None:
    fast = optimize(small(), images(1))
    x = images(2)
    (y,) = fast.map([x])
    assert torch.equal(y, fast(x))


def test_a_call_has_one_thread_and_the_receipt_says_so() -> None:
    fast = optimize(small(), images(1), streams=2)
    assert fast.threads == fast.report.threads == 1


def test_every_form_of_arguments() -> None:
    model = PairNet(lambda m, x, other: m.conv(x) + other, conv=conv()).eval()
    x, other = images(1), torch.randn(1, dtype=torch.float32)
    fast = optimize(model, (x, other), streams=2)
    answers = list(fast.map([(x, other), [x, other], {"x": x, "other": other}]))
    assert all(torch.equal(y, fast(x, other)) for y in answers)


def test_so_many_at_a_time_and_no_more() -> None:
    running, most, lock, both = 0, 0, threading.Lock(), threading.Barrier(3)

    def call(item: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        both.wait(60)  # nobody goes on before three are here
        with lock:
            running -= 1
        return -item

    assert list(in_streams(call, range(9), 3)) == [-i for i in range(9)]
    assert most == 3


def test_endless_inputs_are_taken_as_they_are_needed() -> None:
    numbers = itertools.count()
    answers = in_streams(lambda item: item, numbers, 2)
    assert [next(answers) for _ in range(10)] == list(range(10))
    assert next(numbers) <= 10 + 2 * AHEAD
    answers.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("fastres stream")]


def test_an_error_comes_in_its_turn() -> None:
    fast = optimize(small(), images(1), streams=2)
    x = images(1)
    answers = fast.map([x, x[:, :3], x])
    assert torch.equal(next(answers), fast(x))
    with pytest.raises(InputError, match="channels"):
        next(answers)
    with pytest.raises(StopIteration):
        next(answers)

    def broken() -> Iterator[Tensor]:
        yield x
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(fast.map(broken()))
    with pytest.raises(OptionError, match="an item is a str"):
        list(fast.map(["photo.jpg"]))


def test_a_saved_model_gets_streams_when_it_is_loaded(tmp_path: Path) -> None:
    fast = optimize(small(), images(1), streams=2)
    fast.save(tmp_path / "m.fastres")
    assert fastres.load(tmp_path / "m.fastres", threads=2).threads == 2
    loaded = fastres.load(tmp_path / "m.fastres", streams=2)
    x = images(3)
    (y,) = loaded.map([x])
    assert loaded.threads == 1
    assert torch.equal(y, fast(x))


@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True])
def test_what_is_no_number_of_streams(value: Any) -> None:
    with pytest.raises(OptionError, match="streams"):
        optimize(small(), images(1), streams=value)


def test_streams_beside_threads() -> None:
    with pytest.raises(OptionError, match="None or 1 beside streams"):
        optimize(small(), images(1), streams=2, threads=2)
    assert optimize(small(), images(1), streams=2, threads=1).threads == 1


def test_streams_are_for_cpus() -> None:
    module = fx.GraphModule(nn.Module(), fx.Graph())
    module.register_buffer("weight", torch.empty(1, dtype=torch.float32, device="meta"))
    with pytest.raises(TargetError, match="streams are threads on CPUs"):
        choose(Options(streams=2), module)
