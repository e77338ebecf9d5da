"""Calibration data in, the ranges of a graph's values out."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fastres.errors import InputError, OptionError
from fastres.quantization.observers import OBSERVERS, Observer, Scale
from fastres.quantization.settings import Quantization

EXPECTED = (
    "expected an iterable of batches as the model takes them: tensors [N, C, H, W], tuples of "
    "arguments, dicts of keyword arguments, or a DataLoader's (images, labels)"
)


MOST_COMPARED = 64
"""Images whose answers are kept, to be compared with those of the quantised graph."""


@dataclass
class Seen:
    """What was run in a calibration.

    Attributes:
        images: how many were seen.
        calls, answers: the first batches as the graph's arguments and, of each, its first result.
    """

    images: int = 0
    calls: list[list[Any]] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)

    def without_calls(self) -> Seen:
        """The same without images and answers, to be kept with a model."""
        return Seen(self.images)


@dataclass(frozen=True)
class Calibration:
    """What was found out about a graph's values, by their nodes' names.

    Attributes:
        scales: how each value is quantised.
        means: [C] float64, each channel's mean over images and pixels, of what convolutions and
            classifiers read: for the correction of biases.
        seen: what was run.
    """

    scales: Mapping[str, Scale]
    means: Mapping[str, Tensor] = field(default_factory=dict)
    seen: Seen = field(default_factory=Seen, compare=False)


@dataclass(frozen=True)
class Quantized:
    """What made a quantised graph of a fused one, and makes one of new weights."""

    settings: Quantization
    calibration: Calibration

    def without_calls(self) -> Quantized:
        """The same without images and answers, to be kept with a model."""
        seen = self.calibration.seen.without_calls()
        return replace(self, calibration=replace(self.calibration, seen=seen))

    @property
    def seen(self) -> Seen:
        """What was run in the calibration."""
        return self.calibration.seen


class _Recording(fx.Interpreter):
    """Runs a graph and shows the values of some of its nodes to observers."""

    def __init__(self, module: fx.GraphModule, nodes: Iterable[fx.Node]) -> None:
        super().__init__(module)
        self.observers = {node.name: Observer() for node in nodes}
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        observer = self.observers.get(n.name)
        if observer is not None and isinstance(value, Tensor):
            observer.observe(value)
            rest = [dim for dim in range(value.dim()) if dim != 1]
            total = value.sum(dim=rest, dtype=torch.float64).cpu()
            self.sums[n.name] = self.sums.get(n.name, torch.zeros_like(total)) + total
            count = value.numel() // max(1, value.shape[1])
            self.counts[n.name] = self.counts.get(n.name, 0) + count
        return value


def calibrate(
    module: fx.GraphModule,
    nodes: Iterable[fx.Node],
    data: Any,
    how: Calls,
    observer: str,
) -> Calibration:
    """Run a fused float32 graph on calibration data and choose the ranges of its values.

    Nothing is changed, and Ctrl-C ends it.

    Args:
        nodes: whose values are to be quantised.
        data: an iterable of batches.
        how: how a batch becomes the graph's arguments.
        observer: one of :data:`fastres.quantization.observers.OBSERVERS`.

    Raises:
        OptionError: the data is no iterable of batches, or holds none.
        InputError: a batch is none that the model takes, or holds NaN or infinity.
    """
    recording = _Recording(module, nodes)

    def run(flat: Sequence[Any]) -> Sequence[Any]:
        results: Sequence[Any] = recording.run(*flat)
        _refuse_nonfinite(recording.observers)
        return results

    seen = run_on(data, how, run)
    choose = OBSERVERS[observer]
    return Calibration(
        {
            name: Scale.covering(*choose(each)) if each.seen else Scale(1.0, 0)
            for name, each in recording.observers.items()
        },
        {name: total / recording.counts[name] for name, total in recording.sums.items()},
        seen,
    )


def run_on(data: Any, how: Calls, run: Callable[[Sequence[Any]], Sequence[Any]]) -> Seen:
    """Run a fused graph on all batches of calibration data, and keep the first answers.

    On a terminal a bar shows how far it is. Ctrl-C ends it.

    Args:
        data: an iterable of batches.
        how: how a batch becomes the graph's arguments.
        run: flattened arguments to flattened results.

    Raises:
        OptionError: the data is no iterable of batches, or holds none.
        InputError: a batch is none that the model takes, or holds NaN or infinity.
    """
    seen = Seen()
    for number, batch in enumerate(_shown(_batches(data))):
        flat = how.flat(batch, number)
        with torch.no_grad():
            results = run(flat)
        if seen.images < MOST_COMPARED:
            seen.calls.append(flat)
            seen.answers.append(results[0])
        seen.images += next(value.shape[0] for value in flat if isinstance(value, Tensor))
    if not seen.images:
        raise OptionError(f"calibration holds no image: {EXPECTED}; 100 to 500 images are enough")
    return seen


def _refuse_nonfinite(observers: Mapping[str, Observer]) -> None:
    for name, each in observers.items():
        if each.seen and not (each.low > -(2.0**64) and each.high < 2.0**64):
            raise InputError(
                f"calibration: {name} reaches {each.low:g} to {each.high:g}, which eight bits "
                "cannot cover; expected a network and images whose values are finite"
            )


def _batches(data: Any) -> Iterator[Any]:
    if isinstance(data, Tensor):
        if data.dim() == 4:
            return iter(data.split(32))
        raise OptionError(
            f"calibration: got a tensor {list(data.shape)}, expected [N, C, H, W] or an iterable "
            "of such batches"
        )
    if isinstance(data, (str, bytes, os.PathLike, Mapping)) or not isinstance(data, Iterable):
        raise OptionError(f"calibration: got a {type(data).__name__}; {EXPECTED}")
    return iter(data)


MOST_IMAGES = 512
"""That :func:`some` keeps of data that is read more than once."""


def some(data: Any) -> list[Any]:
    """The first batches of calibration data, :data:`MOST_IMAGES` images or a little more.

    Raises:
        OptionError: the data is no iterable of batches, or holds none.
    """
    found: list[Any] = []
    images = 0
    for batch in _batches(data):
        found.append(batch)
        tensors = (x for x in pytree.tree_leaves(batch) if isinstance(x, Tensor) and x.dim())
        images += len(next(tensors, ()))
        if images >= MOST_IMAGES:
            break
    if not found:
        raise OptionError(f"calibration holds no image: {EXPECTED}; 100 to 500 images are enough")
    return found


def _shown(batches: Iterator[Any]) -> Iterator[Any]:
    """The batches, with a bar on standard error if that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("calibration", total=None)
        for batch in batches:
            yield batch
            progress.advance(task)


@dataclass(frozen=True)
class Calls:
    """How a model is called.

    Attributes:
        signature: of its ``forward``.
        in_spec: of ``(args, kwargs)`` as it was captured.
        check: raises InputError where flattened arguments are none that the graph takes.
        device: where it runs.
    """

    signature: inspect.Signature
    in_spec: pytree.TreeSpec
    check: Callable[[Sequence[Any]], Any]
    device: torch.device

    def flat(self, batch: Any, number: int) -> list[Any]:
        """A batch as the graph's arguments.

        Raises:
            InputError: the model does not take it.
        """
        args, kwargs = self._call(batch, number)
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InputError(
                f"calibration: batch {number} does not fit the model's forward: {error}; {EXPECTED}"
            ) from error
        flat, spec = pytree.tree_flatten((bound.args, bound.kwargs))
        if spec != self.in_spec:
            raise InputError(
                f"calibration: batch {number} has the arguments {spec}, expected {self.in_spec} "
                "as the model was captured"
            )
        flat = [value.to(self.device) if isinstance(value, Tensor) else value for value in flat]
        try:
            self.check(flat)
        except InputError as error:
            raise InputError(f"calibration: batch {number}: {error}") from error
        for value in flat:
            if isinstance(value, Tensor) and value.is_floating_point():
                if not value.numel():
                    raise InputError(
                        f"calibration: batch {number} is empty {list(value.shape)}; expected at "
                        "least one image"
                    )
                if not bool(torch.isfinite(value).all()):
                    raise InputError(
                        f"calibration: batch {number} holds NaN or infinity; expected images as "
                        "the model will see them"
                    )
        return flat

    def _call(self, batch: Any, number: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if isinstance(batch, Tensor):
            return (batch,), {}
        if isinstance(batch, Mapping):
            return (), dict(batch)
        if isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)):
            if len(batch) == 2 and self._takes_one():  # of a DataLoader: images and labels
                return (batch[0],), {}
            return tuple(batch), {}
        raise InputError(f"calibration: batch {number} is a {type(batch).__name__}; {EXPECTED}")

    def _takes_one(self) -> bool:
        return self.in_spec == pytree.tree_structure(((0,), {}))
