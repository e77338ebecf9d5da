"""Tactics: the model's choice, or what was measured; kept, resumed, and never believed blindly."""

from __future__ import annotations

import dataclasses
import io
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, fx, nn

from fastres.errors import OptionError
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.tuning.gpus import by_name
from fastres.runtime.triton.packed_weights import PackedWeights
from fastres.runtime.triton.plan import KernelStep, Step, TorchStep, Value, dense
from fastres.runtime.triton.tactics import CANDIDATES, Layer, Tactics, Tuner
from fastres.runtime.triton.tuning_cache import Identity, TuningCache
from fastres.runtime.triton.workspace import Workspace
from tests.support.fake_device import CannotRecord, FakeDevice, call, torch_step, value

A100, T4 = by_name("a100"), by_name("t4")
IDENTITY = Identity("fake", "1", "3.8", "91900", "00")


class TritonError(Exception):
    """As Triton's compiler raises, OutOfResources for one."""


@dataclass(frozen=True)
class Config:
    """A configuration that takes so many nanoseconds, or cannot be had."""

    speed: int
    breaks: str = ""

    def __post_init__(self) -> None:
        if self.speed < 0:
            raise OptionError(f"speed={self.speed}: expected at least 0")


ERRORS: dict[str, BaseException] = {
    "too large": TritonError("out of resource: shared memory"),
    "not supported": RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
    "synchronises": CannotRecord("it synchronises"),
    "memory": torch.OutOfMemoryError("no"),
    "wrong": RuntimeError("an illegal memory access was encountered"),
    "interrupt": KeyboardInterrupt(),
}


def launch(x: Tensor, out: Tensor, config: Config) -> None:
    assert not x.isnan().any(), "a trial on memory that nobody wrote"
    if config.breaks:
        raise ERRORS[config.breaks]
    out.copy_(x)


class Workshop:
    """A fake device to tune on, and layers."""

    def __init__(self, folder: Path | None = None, console: Console | None = None) -> None:
        self.device = FakeDevice()
        self.device.nanoseconds = self.nanoseconds
        self.cache = TuningCache(IDENTITY, folder)
        self.tuner = Tuner(Workspace(self.device), PackedWeights(), self.cache, console)
        self.tried: list[str] = []

    def nanoseconds(self, calls: list[KernelCall]) -> int:
        return 10_000

    def layer(
        self,
        key: str,
        chosen: Config,
        candidates: Iterable[Config] = (),
        libraries: dict[str, Any] | None = None,
    ) -> Layer:
        def step(config: Config) -> KernelStep:
            def calls(tensors: Any) -> list[KernelCall]:
                self.tried.append(f"{key} {config.speed}")
                # Ten replays of one launch take ten times as long.
                self.device.nanoseconds = lambda _: config.speed * 10
                return [call(launch, x=tensors["x"], out=tensors["out"], config=config)]

            return KernelStep(key, "conv", ("x",), (value("out"),), calls, tactic=str(config.speed))

        def values(name: str) -> Value:
            assert name == "x"
            return value("x")

        return Layer(
            key, lambda: chosen, lambda: candidates, Config(0), step, libraries or {}, values
        )

    def library(self, name: str, speed: int, breaks: str = "") -> Any:
        def run(x: Tensor) -> Tensor:
            if breaks:
                raise ERRORS[breaks]
            self.tried.append(name)
            self.device.nanoseconds = lambda _: speed * 10
            return x.clone()

        return lambda: torch_step(name, run, ["x"], "out")

    def best(self, *layers: Layer) -> list[str]:
        tactics = Tactics(A100, self.tuner)
        with self.tuner.shown(fx.GraphModule(nn.Module(), empty_graph()), len(layers)):
            return [name(tactics.decide(layer)) for layer in layers]


def empty_graph() -> fx.Graph:
    graph = fx.Graph()
    graph.output(())
    return graph


def name(step: Step) -> str:
    return step.module if isinstance(step, TorchStep) else step.tactic


def test_without_tuning_the_model_chooses_and_nothing_is_run() -> None:
    shop = Workshop()
    layer = shop.layer("a", Config(7), [Config(1)], {"library": shop.library("library", 0)})
    assert name(Tactics(A100).decide(layer)) == "7"
    assert (shop.tried, shop.device.log) == ([], [])


def test_the_interpreter_gets_its_own_tiles() -> None:
    layer = Workshop().layer("a", Config(7))
    assert name(Tactics(A100, interpreted=True).decide(layer)) == "0"


def test_the_fastest_is_taken_and_stored() -> None:
    shop = Workshop()
    layer = shop.layer("a", Config(7), [Config(9), Config(3), Config(7), Config(5)])
    assert shop.best(layer) == ["3"]
    entry = shop.cache.get("a")
    assert entry == {"tactic": "kernel", "config": {"speed": 3, "breaks": ""}, "nanoseconds": 3,
                     "tried": 4}  # fmt: skip
    assert shop.tuner.measured == 1


def test_the_library_is_taken_where_it_is_faster() -> None:
    for speed, wanted in ((2, "library"), (4, "3")):
        shop = Workshop()
        libraries = {"library": shop.library("library", speed)}
        assert shop.best(shop.layer("a", Config(3), (), libraries)) == [wanted]


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    def layers(shop: Workshop) -> list[Layer]:
        libraries = {"library": shop.library("library", 2)}
        return [
            shop.layer("a", Config(7), [Config(3)]),
            shop.layer("b", Config(7), (), libraries),
        ]

    first = Workshop(tmp_path)
    assert first.best(*layers(first)) == ["3", "library"]
    second = Workshop(tmp_path)
    assert second.best(*layers(second)) == ["3", "library"]
    assert (second.tried, second.tuner.measured, second.device.log) == ([], 0, [])


@pytest.mark.parametrize("breaks", ["too large", "not supported", "synchronises", "memory"])
def test_a_candidate_that_cannot_be_had_is_passed_over(breaks: str) -> None:
    shop = Workshop()
    libraries = {"library": shop.library("library", 1, breaks)}
    layer = shop.layer("a", Config(7, breaks), [Config(1, breaks), Config(5)], libraries)
    assert shop.best(layer) == ["5"]
    assert not shop.device._inside.locked()


def test_where_nothing_can_be_measured_the_model_chooses() -> None:
    shop = Workshop()
    assert shop.best(shop.layer("a", Config(7, "too large"))) == ["7"]
    assert shop.cache.get("a") is None


def test_an_error_of_another_kind_is_not_swallowed() -> None:
    shop = Workshop()
    with pytest.raises(RuntimeError, match="illegal memory access"):
        shop.best(shop.layer("a", Config(7), [Config(1, "wrong")]))
    assert not shop.device._inside.locked()


def test_an_interrupted_tuning_goes_on_where_it_stopped(tmp_path: Path) -> None:
    shop = Workshop(tmp_path)
    layers = [
        shop.layer("a", Config(7), [Config(3)]),
        shop.layer("b", Config(7), [Config(4), Config(1, "interrupt")]),
        shop.layer("c", Config(7), [Config(5)]),
    ]
    with pytest.raises(KeyboardInterrupt):
        shop.best(*layers)
    assert not shop.device._inside.locked()
    again = Workshop(tmp_path)
    layers = [again.layer(key, Config(7), [Config(3)]) for key in "abc"]
    assert again.best(*layers) == ["3", "3", "3"]
    assert {entry.split()[0] for entry in again.tried} == {"b", "c"}
    assert again.tuner.measured == 2


@pytest.mark.parametrize(
    "entry",
    [
        {"tactic": "library of old"},
        {"tactic": "kernel"},
        {"tactic": "kernel", "config": {"velocity": 3}},
        {"tactic": "kernel", "config": {"speed": -3}},
        {"tactic": "kernel", "config": "fast"},
    ],
    ids=["unknown library", "no config", "unknown field", "impossible value", "no fields"],
)
def test_a_stored_tactic_that_does_not_exist_is_measured_again(entry: dict[str, Any]) -> None:
    shop = Workshop()
    shop.cache.put("a", entry)
    assert shop.best(shop.layer("a", Config(7), [Config(3)])) == ["3"]
    assert shop.tuner.measured == 1


def test_only_the_most_promising_are_timed() -> None:
    shop = Workshop()
    many = [Config(100 + index) for index in range(1000)]
    shop.best(shop.layer("a", Config(7), many))
    assert len(shop.tried) == CANDIDATES + 1


def test_trials_write_into_memory_of_their_own() -> None:
    shop = Workshop()
    shop.best(shop.layer("a", Config(7), [Config(3)]))
    # Two trials, and the winner beside the model's choice once more.
    assert sum(entry.startswith("allocate") for entry in shop.device.log) == 8


def test_a_gpu_whose_tensor_cores_triton_cannot_use_gets_the_library() -> None:
    shop = Workshop()
    layer = shop.layer("a", Config(7), (), {"library": shop.library("library", 1)})
    tactics = Tactics(T4)
    assert name(tactics.decide(layer)) == "library"
    assert "no tensor-core instructions for sm_75" in str(tactics.library_reason)
    assert name(tactics.decide(shop.layer("b", Config(7)))) == "7"  # where there is no library
    assert Tactics(A100).library_reason is None


def test_progress_is_shown_on_a_terminal_only() -> None:
    for terminal in (True, False):
        text = io.StringIO()
        console = Console(file=text, force_terminal=terminal, width=100)
        shop = Workshop(console=console)
        shop.best(shop.layer("conv of a size", Config(7)), shop.layer("another", Config(7)))
        assert ("2/2" in text.getvalue()) == terminal
        assert ("tuning" in text.getvalue()) == terminal


def test_trials_take_turns_with_calls() -> None:
    """While a trial runs nobody is on the device, and between trials others may be."""
    shop = Workshop()
    lock = shop.tuner.workspace.lock
    held: list[bool] = []
    real = shop.device.record

    def record(program: Any) -> Any:
        held.append(lock.locked())
        return real(program)

    shop.device.record = record  # type: ignore[method-assign]
    stop = threading.Event()
    calls = 0

    def caller() -> None:
        nonlocal calls
        while not stop.is_set():
            with lock, shop.device.entered():  # fails where somebody else is on the device
                calls += 1

    thread = threading.Thread(target=caller)
    thread.start()
    try:
        assert (
            shop.best(*(shop.layer(f"{i}", Config(9), [Config(3)]) for i in range(20)))
            == ["3"] * 20
        )
    finally:
        stop.set()
        thread.join()
    assert held
    assert all(held)
    assert calls > 0


@pytest.mark.parametrize("refusal", ["PassManager::run failed", "ptxas fatal: bad tile"])
def test_what_the_compiler_cannot_take_is_passed_over(refusal: str) -> None:
    shop = Workshop()
    layer = shop.layer("a", Config(7), [Config(3), Config(5)])

    def step(config: Config) -> KernelStep:
        made = layer.step(config)

        def calls(tensors: Any) -> list[KernelCall]:
            found = made.calls(tensors)
            if config.speed == 3:
                found[0].kernel.refuses = refusal
            return found

        return dataclasses.replace(made, calls=calls)

    assert shop.best(dataclasses.replace(layer, step=step)) == ["5"]


def test_a_winner_whose_results_are_wrong_is_not_used() -> None:
    shop = Workshop()
    layer = shop.layer("a", Config(7), [Config(1), Config(3), Config(5)])

    def wrong(x: Tensor, out: Tensor, config: Config) -> None:
        out.copy_(x)
        if config.speed == 1:
            out[0, 0, 0, 0] += 0.5
        if config.speed == 3:
            out[0, 0, 0, 0] = torch.nan

    def step(config: Config) -> KernelStep:
        made = layer.step(config)

        def calls(tensors: Any) -> list[KernelCall]:
            made.calls(tensors)  # as before, for its time
            return [call(wrong, x=tensors["x"], out=tensors["out"], config=config)]

        return dataclasses.replace(made, calls=calls)

    assert shop.best(dataclasses.replace(layer, step=step)) == ["5"]
    assert len(shop.tuner.notes) == 2
    assert all("compiled wrongly" in note for note in shop.tuner.notes)


def test_all_kernels_of_a_layer_are_compiled_before_the_first_is_timed() -> None:
    shop = Workshop()
    asked: list[int] = []

    def compile_ahead(calls: Any) -> None:
        assert shop.device.taken("launch") == []
        assert all(each.arguments["x"].is_meta for each in calls)
        asked.append(len(calls))

    shop.tuner._compile_ahead = compile_ahead
    assert shop.best(shop.layer("a", Config(7), [Config(3), Config(5)])) == ["3"]
    assert asked == [3]


def test_trials_draw_no_number_from_the_callers_generator() -> None:
    before = torch.random.get_rng_state()
    shop = Workshop()
    shop.best(shop.layer("a", Config(7), [Config(3)]))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_is_to_be_zero_is_zero_in_a_trial() -> None:
    shop = Workshop()
    seen: list[bool] = []

    def count(counters: Tensor, out: Tensor) -> None:
        seen.append(not counters.any())
        out.fill_(1.0)

    def step(config: Config) -> KernelStep:
        def calls(tensors: Any) -> list[KernelCall]:
            return [call(count, counters=tensors["counters"], out=tensors["out"])]

        counting = dense("counters", (3,), torch.int32)
        return KernelStep("a", "conv", ("x",), (value("out"),), calls, zeroed=(counting,))

    layer = dataclasses.replace(shop.layer("a", Config(7), [Config(3)]), step=step)
    shop.best(layer)
    assert seen
    assert all(seen)
