"""How each layer is run: one of our configurations, or the library's kernel.

By default the cost model says (``choose_*`` of :mod:`fastres.kernels.tuning`). Under ``tune=True``
the candidates and the library are timed on the device, once per layer, and what was measured is
kept in a :class:`~fastres.runtime.triton.tuning_cache.TuningCache`. An interrupted tuning goes on
where it stopped: every layer's result is stored as soon as there is one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, TypeAlias

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, fx

from fastres.errors import FastresError
from fastres.kernels.launch.call import KernelCall
from fastres.kernels.tuning.fusing import why_library
from fastres.kernels.tuning.gpus import Gpu
from fastres.runtime.triton.device import CannotCompile, CannotRecord
from fastres.runtime.triton.packed_weights import PackedWeights
from fastres.runtime.triton.plan import KernelStep, Step, TorchStep, Value, fetch
from fastres.runtime.triton.tuning_cache import TuningCache
from fastres.runtime.triton.workspace import Workspace

CANDIDATES = 24
"""Configurations that are timed per layer, the most promising by the cost model first."""

LAUNCHES, ROUNDS = 10, 5
"""A candidate's time is that of so many launches in a row, the fastest of so many rounds."""

DISAGREEMENT = {
    torch.float16: 2.0**-9,
    torch.bfloat16: 2.0**-6,
    torch.float32: 2.0**-9,
    torch.uint8: 0.0,
}
"""By dtype, how far results may lie apart in parts of the largest: each is rounded once, to the
dtype or before that to TF32, and sums are taken in another order. A wrong tile is off by far more.
int8's integers are the same in any order.
"""

Library: TypeAlias = "Callable[[], TorchStep]"


@dataclass(frozen=True)
class Layer:
    """A layer to be decided about.

    Attributes:
        key: everything its time depends on beside the machine: operator, spec, precision, epilogue.
        chosen: gives the configuration by the cost model.
        candidates: configurations worth timing, best first.
        interpreted: the configuration for Triton's interpreter.
        step: the step for a configuration.
        libraries: steps by the library that do the same, by name; the first one always works.
        values: tensors that the steps read and write, by name.
    """

    key: str
    chosen: Callable[[], Any] = field(repr=False)
    candidates: Callable[[], Iterable[Any]] = field(repr=False)
    interpreted: Any = field(repr=False)
    step: Callable[[Any], KernelStep] = field(repr=False)
    libraries: Mapping[str, Library] = field(repr=False)
    values: Callable[[str], Value] = field(repr=False)


class Tactics:
    """Decides for the layers of one model on one GPU.

    Args:
        gpu: whose data sheet the cost model reads.
        tuner: times the candidates; None leaves it to the model.
        interpreted: take the configurations that Triton's interpreter is fast with.
    """

    def __init__(self, gpu: Gpu, tuner: Tuner | None = None, interpreted: bool = False) -> None:
        self.gpu = gpu
        self.tuner = tuner
        self.interpreted = interpreted

    @property
    def library_reason(self) -> str | None:
        """Why matrix products are the library's on this GPU, None where they are ours."""
        return why_library(self.gpu)

    def decide(self, layer: Layer) -> Step:
        """The step to run."""
        if self.library_reason is not None and layer.libraries:
            return next(iter(layer.libraries.values()))()
        if self.tuner is not None:
            found = self.tuner.best(layer)
            if found is not None:
                return found
        return layer.step(layer.interpreted if self.interpreted else layer.chosen())


class Tuner:
    """Times candidates on a device, in turn with the calls that are made on it meanwhile.

    Args:
        workspace: whose device, and whose lock is held for one trial at a time.
        weights: of the model.
        cache: what is known already, and where results go.
        console: for the progress bar; None for standard error, if that is a terminal.
        compile_ahead: has the kernels of many launches compiled before the first is made.

    Attributes:
        measured: layers so far.
        notes: what was measured and not believed, for the receipt.
    """

    def __init__(
        self,
        workspace: Workspace,
        weights: PackedWeights,
        cache: TuningCache,
        console: Console | None = None,
        compile_ahead: Callable[[Sequence[KernelCall]], None] | None = None,
    ) -> None:
        self.workspace = workspace
        self.device = workspace.device
        self.weights = weights
        self.cache = cache
        self.module: fx.GraphModule | None = None
        self.measured = 0
        self.notes: list[str] = []
        self._compile_ahead = compile_ahead
        self._console = console
        self._progress: Progress | None = None
        self._task: Any = None

    @contextmanager
    def shown(self, module: fx.GraphModule, layers: int) -> Iterator[None]:
        """Tune so many layers of a graph while the block runs, and show progress on a terminal."""
        self.module = module
        console = self._console or Console(file=sys.stderr)
        columns = (
            TextColumn("tuning"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
        )
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            self._progress, self._task = progress, progress.add_task("", total=layers)
            try:
                yield
            finally:
                self._progress = self.module = None

    def best(self, layer: Layer) -> Step | None:
        """The fastest step of a layer, measured now or before; None if none could be measured."""
        known = self._known(layer)
        if known is None:
            self._tell(layer.key)
            result = self._measure(layer)
            if result is None:
                return None
            self.cache.put(layer.key, result)
            self.measured += 1
            known = self._known(layer)
        if self._progress is not None:
            self._progress.advance(self._task)
        return known

    def _tell(self, text: str) -> None:
        if self._progress is not None:
            self._progress.update(self._task, description=text)

    def _known(self, layer: Layer) -> Step | None:
        """The step that the cache names; None where it names none that exists here."""
        entry = self.cache.get(layer.key)
        if entry is None:
            return None
        if entry["tactic"] != "kernel":
            library = layer.libraries.get(str(entry["tactic"]))
            return None if library is None else library()
        try:
            return layer.step(type(layer.interpreted)(**entry["config"]))
        except (KeyError, TypeError, FastresError):
            return None

    def _measure(self, layer: Layer) -> dict[str, Any] | None:
        """The fastest of those whose results are right; None if none could be had."""
        configs = [layer.chosen(), *islice(layer.candidates(), CANDIDATES)]
        trials: list[_Trial] = [
            ({"tactic": "kernel", "config": asdict(config)}, _bound(layer.step, config))
            for config in dict.fromkeys(configs)
        ]
        trials += [({"tactic": name}, library) for name, library in layer.libraries.items()]
        if self._compile_ahead is not None:
            self._compile_ahead(self._launches(layer, [make() for _, make in trials]))
        timed: list[tuple[int, int, _Trial]] = []
        for number, trial in enumerate(trials):
            nanoseconds = self._time(trial[1](), layer.values)
            if nanoseconds is not None:
                timed.append((nanoseconds, number, trial))
        if not timed:
            return None
        # What the model chose says what is right, or the library where that cannot be had.
        _, first, (_, reference) = min(timed, key=lambda each: each[1])
        for nanoseconds, number, (result, make) in sorted(timed, key=lambda each: each[:2]):
            if number == first or self._agree(reference(), make(), layer.values):
                return {**result, "nanoseconds": nanoseconds, "tried": len(timed)}
            self.notes.append(
                f"{layer.key}: {result} was fastest and is not used: its results are not those of "
                "the other configurations, so it was compiled wrongly"
            )
        raise AssertionError("unreachable: the first agrees with itself")

    def _launches(self, layer: Layer, steps: Sequence[Step]) -> list[KernelCall]:
        """The launches of the kernels among some steps, on memory that nothing runs on."""
        return [
            call
            for step in steps
            if isinstance(step, KernelStep)
            for call in step.calls(self._tensors(step, layer.values, on_device=False))
        ]

    def _time(self, step: Step, values: Callable[[str], Value]) -> int | None:
        """Nanoseconds of one run of a step; None where this device cannot run it."""
        try:
            with self.workspace.lock, self.device.entered():
                return self._timed(step, values)
        except torch.OutOfMemoryError:
            return None
        except Exception as error:
            if not _is_refusal(error):
                raise
            return None

    def _timed(self, step: Step, values: Callable[[str], Value]) -> int:
        tensors = self._tensors(step, values)
        if isinstance(step, KernelStep):
            calls = step.calls(tensors)
            self.device.compile(calls)

            def run() -> None:
                self.device.launch(calls)
        else:
            args, kwargs = fetch(step.args, tensors), fetch(step.kwargs, tensors)

            def run() -> None:
                step.function(*args, **kwargs)

        def repeatedly() -> None:
            for _ in range(LAUNCHES):
                run()

        # Recorded, since between launches one by one the device would wait for the host.
        again = self.device.record(repeatedly) if self.device.records else run
        launches = LAUNCHES if self.device.records else 1
        return min(self.device.time(again) for _ in range(ROUNDS)) // launches

    def _agree(self, one: Step, other: Step, values: Callable[[str], Value]) -> bool:
        """Whether two steps give the same results, but for rounding, for the same numbers."""
        with self.workspace.lock, self.device.entered():
            pairs = list(zip(self._results(one, values), self._results(other, values), strict=True))
            return all(_alike(ours, theirs) for ours, theirs in pairs)

    def _results(self, step: Step, values: Callable[[str], Value]) -> list[Tensor]:
        tensors = self._tensors(step, values)
        if isinstance(step, KernelStep):
            self.device.launch(step.calls(tensors))
            return [tensors[value.name] for value in step.writes]
        result = step.function(*fetch(step.args, tensors), **fetch(step.kwargs, tensors))
        return [result] if isinstance(result, Tensor) else list(result)

    def _tensors(
        self, step: Step, values: Callable[[str], Value], on_device: bool = True
    ) -> dict[str, Tensor]:
        """Memory of a trial's own, with numbers like those of activations: always the same ones."""
        assert self.module is not None
        if not on_device:
            nowhere = torch.empty(0, dtype=torch.uint8, device="meta")
            tensors = {name: values(name).within(nowhere, 0) for name in step.reads}
            if isinstance(step, KernelStep):
                written = (*step.writes, *step.scratch, *step.zeroed)
                tensors |= {value.name: value.within(nowhere, 0) for value in written}
            for constant in step.constants:
                sources = (getattr(self.module, name).to("meta") for name in constant.sources)
                tensors[constant.name] = constant.make(*sources)
            return tensors
        tensors = {}
        for name in dict.fromkeys(step.reads):
            value = values(name)
            tensors[name] = value.within(self.device.allocate(value.nbytes), 0)
            generator = torch.Generator(tensors[name].device).manual_seed(0)  # not the caller's
            if value.dtype == torch.uint8:
                tensors[name].random_(0, 256, generator=generator)
            else:
                tensors[name].normal_(generator=generator)
        if isinstance(step, KernelStep):
            for value in (*step.writes, *step.scratch, *step.zeroed):
                tensors[value.name] = value.within(self.device.allocate(value.nbytes), 0)
            for value in step.zeroed:
                tensors[value.name].zero_()
        for constant in step.constants:
            tensors[constant.name] = self.weights.get(self.module, constant).tensor
        return tensors


_Trial: TypeAlias = "tuple[dict[str, Any], Callable[[], Step]]"
"""What is stored if it wins, and the step."""


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two results are equal but for rounding, NaN in the same places."""
    first, second = one.float(), other.float()
    if not torch.equal(first.isnan(), second.isnan()):
        return False
    difference = (first - second).nan_to_num(0.0).abs().max()
    return bool(difference <= DISAGREEMENT[one.dtype] * first.nan_to_num(0.0).abs().max())


def _bound(step: Callable[[Any], KernelStep], config: Any) -> Callable[[], Step]:
    return lambda: step(config)


def _is_refusal(error: Exception) -> bool:
    """Whether a kernel cannot be had in this form: too large for the chip, or not supported."""
    if isinstance(error, (CannotCompile, CannotRecord, NotImplementedError)):
        return True
    if any(kind.__name__ == "TritonError" for kind in type(error).__mro__):
        return True  # the compiler's, among them OutOfResources
    return isinstance(error, RuntimeError) and "NOT_SUPPORTED" in str(error)
