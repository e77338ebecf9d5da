"""``precision="auto"``: the fastest precision whose answers are near enough, measured here.

Every precision that the device has is made, checked against float64 on the user's images and timed,
all of them in turn, so that a busy machine is busy for all. The model's own precision is one of
them; another one is taken only if it is faster beyond noise. Where answers overflow that are
numbers in float64, a precision is not taken, however PyTorch does in it.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastres.accuracy.bounds import SAMPLE_IMAGES
from fastres.accuracy.compare import compare
from fastres.accuracy.sample import random_arguments
from fastres.capture.capture import as_arguments
from fastres.checks import is_number, refusal
from fastres.dtypes import ROWS
from fastres.errors import FastresError, FastresWarning, OptionError
from fastres.optimization.by_layer import sensitivity
from fastres.optimized import OptimizedModule
from fastres.quantization.calibration import some
from fastres.quantization.settings import CALIBRATED
from fastres.system.progress import Progress

MAX_ERROR = 0.05
"""Relative root-mean-square error that is allowed where the caller allows none by name."""

AUTOMATIC = {"cpu": ("fp32", "bf16", "int8"), "cuda": ("fp32", "bf16", "fp16", "int8")}
"""What is tried beside the model's own precision, by the device's type: what it computes fast."""

COMPARED = 16
"""Images that are compared with float64."""

ROUNDS = 9
WORTH = 0.98
"""Share of the own precision's time beyond which another is not worth it: what is noise."""


MEASURING = 60.0
"""Seconds, at most, for finding out which layers int8 costs the most."""

_now = time.monotonic

Make = Callable[[str | None, Mapping[str, str]], OptimizedModule]


@dataclass(frozen=True)
class Limits:
    """How far answers may be off, and how long the search may take.

    Attributes:
        max_error: relative root-mean-square error against float64.
        max_accuracy_drop: share of labelled images that may be answered worse than by the model, in
            place of ``max_error``; None where only errors count.
        time_limit: seconds after which nothing further is tried; None is no limit.

    Raises:
        OptionError: a value is no such number.
    """

    max_error: float = MAX_ERROR
    max_accuracy_drop: float | None = None
    time_limit: float | None = None

    def __post_init__(self) -> None:
        if not is_number(self.max_error) or not self.max_error > 0:
            raise refusal("max_error", self.max_error, "a positive relative error, 0.05 say")
        drop = self.max_accuracy_drop
        if drop is not None and (not is_number(drop) or not 0 <= drop <= 1):
            raise refusal("max_accuracy_drop", drop, "a share of images from 0 to 1, 0.005 say")
        limit = self.time_limit
        if limit is not None and (not is_number(limit) or not limit > 0):
            raise refusal("time_limit", limit, "a positive number of seconds")


class _Search:
    """What is being tried, shown on a terminal, until the time is up.

    Attributes:
        left_out: what was not tried because it was.
    """

    def __init__(self, time_limit: float | None, progress: Progress) -> None:
        self._limit = math.inf if time_limit is None else time_limit
        self._progress = progress
        self._began = _now()
        self.left_out: list[str] = []

    @property
    def remaining(self) -> float:
        """Seconds; negative when the time is up."""
        return self._limit - (_now() - self._began)

    def goes_on(self, name: str) -> bool:
        """Whether there is time to try something; if not, it is noted down."""
        if self.remaining <= 0:
            self.left_out.append(name)
            return False
        self.show(name)
        return True

    def show(self, name: str) -> None:
        """Show what is being done."""
        self._progress.show(f"precision 'auto': {name}")


@dataclass
class _Candidate:
    name: str
    fast: OptimizedModule | None = None
    seconds: list[float] = field(default_factory=list)
    error: float = 0.0
    accuracy: float | None = None
    refused: str | None = None

    def __str__(self) -> str:
        if self.fast is None:
            return f"{self.name}: {self.refused}"
        parts = [f"{min(self.seconds) * 1e3:.2f} ms"] if self.seconds else []
        parts.append(f"error {self.error:.1e}")
        if self.accuracy is not None:
            parts.append(f"accuracy {self.accuracy:.2%}")
        if self.refused is not None:
            parts.append(self.refused)
        return f"{self.name}: {', '.join(parts)}"


def _fastest(
    model: nn.Module,
    make: Make,
    precisions: Sequence[str],
    batches: Sequence[Any],
    timed: Any,
    limits: Limits,
    sensitive: Callable[[float], Sequence[str]],
    search: _Search,
) -> OptimizedModule:
    """The fastest of several precisions within the limits, with what was tried on its receipt.

    Args:
        model: the user's.
        make: optimises it in a precision, with modules that stay wider; None is its own.
        precisions: to try beside its own.
        batches: as the model takes them, or with labels behind each.
        timed: ``(args, kwargs)`` of the call that is timed.
        limits: how far answers may be off.
        sensitive: names of the layers that int8 costs the most, the worst first, found within so
            many seconds.
        search: says how long to go on.

    Raises:
        OptionError: ``max_accuracy_drop`` without labels.
        FastresError: the model's own precision cannot be made.
    """
    calls, labels = zip(*(_call_and_labels(batch) for batch in batches), strict=True)
    labelled = all(label is not None for label in labels)
    if limits.max_accuracy_drop is not None and not labelled:
        raise OptionError(
            "max_accuracy_drop: got images without labels, expected calibration of (images, "
            "labels) pairs; pass max_error to go by the answers' error instead."
        )
    compared = _leading(calls, COMPARED)
    judge = _Judge(model, compared, timed, calls, labels if labelled else None, limits)
    own = _Candidate("own precision", make(None, {}))
    judge(own, None)
    found = [own]
    for precision in precisions:
        if not search.goes_on(precision):
            continue
        candidate = _made(precision, make, {})
        found.append(candidate)
        judge(candidate, own)
        if precision == "int8" and candidate.fast is not None and candidate.refused:
            found += _mixed(make, judge, own, sensitive, search)
    search.show("timing")
    _time([each for each in found if each.fast is not None], timed)
    within = [each for each in found if each.fast is not None and each.refused is None]
    chosen = min(within, key=lambda each: _ratio(each, own), default=own)
    if own.refused is None and _ratio(chosen, own) > WORTH:
        chosen = own
    assert chosen.fast is not None
    bound = f"max_error={limits.max_error:g}"
    if limits.max_accuracy_drop is not None:
        bound = f"max_accuracy_drop={limits.max_accuracy_drop:g}"
    chosen.fast.report.notes += [
        f"precision 'auto' took {chosen.name}, the fastest within {bound}",
        *(f"tried {each}" for each in found),
    ]
    if search.left_out:
        chosen.fast.report.notes.append(
            f"the search was cut short by time_limit={limits.time_limit:g} seconds: not tried: "
            f"{', '.join(search.left_out)}"
        )
    return chosen.fast


def _made(name: str, make: Make, keep: Mapping[str, str]) -> _Candidate:
    precision = "int8" if keep else name
    try:
        return _Candidate(name, make(precision, keep))
    except FastresError as error:
        return _Candidate(name, refused=str(error).split(";")[0])


def _mixed(
    make: Make,
    judge: _Judge,
    own: _Candidate,
    sensitive: Callable[[float], Sequence[str]],
    search: _Search,
) -> list[_Candidate]:
    """int8 with ever more of the worst layers in bfloat16, until the answers are near enough."""
    if not search.goes_on("int8 with some layers in bf16"):
        return []
    names = sensitive(min(MEASURING, search.remaining))
    found = []
    count = 1
    while count < len(names):
        name = f"int8 with {count} layer{'s' if count > 1 else ''} in bf16"
        if not search.goes_on(name):
            break
        keep = dict.fromkeys(names[:count], "bf16")
        candidate = _made(name, make, keep)
        found.append(candidate)
        judge(candidate, own)
        if candidate.fast is None or candidate.refused is None:
            break
        count *= 2
    return found


class _Judge:
    """Measures a candidate's error and accuracy, and says where they are beyond the limits."""

    def __init__(
        self,
        model: nn.Module,
        compared: Sequence[Any],
        sample: Any,
        calls: Sequence[Any],
        labels: Sequence[Tensor] | None,
        limits: Limits,
    ) -> None:
        self._model, self._compared, self._calls = model, compared, calls
        self._samples = _leading([sample], SAMPLE_IMAGES)
        self._labels, self._limits = labels, limits

    def __call__(self, candidate: _Candidate, own: _Candidate | None) -> None:
        if candidate.fast is None:
            return
        comparison = compare(self._model, candidate.fast, self._compared)
        candidate.error = comparison.error
        if self._labels is not None:
            candidate.accuracy = self._accuracy(candidate.fast)
        count = comparison.overflowed
        if candidate.fast.dtype == torch.float16:
            count += compare(self._model, candidate.fast, self._samples).overflowed
        if count:
            candidate.refused = f"{count} of its answers overflow{'' if count > 1 else 's'}"
            return
        if own is None:
            return
        if self._limits.max_accuracy_drop is not None:
            assert own.accuracy is not None and candidate.accuracy is not None
            drop = own.accuracy - candidate.accuracy
            if drop > self._limits.max_accuracy_drop:
                candidate.refused = f"its accuracy drops by {drop:.2%}"
        elif not candidate.error <= self._limits.max_error:
            candidate.refused = "its error is larger than is allowed"

    def _accuracy(self, fast: OptimizedModule) -> float:
        assert self._labels is not None
        right = images = 0
        for (args, kwargs), labels in zip(self._calls, self._labels, strict=True):
            answers = pytree.tree_leaves(fast(*args, **kwargs))[0]
            right += int((answers.argmax(dim=1).cpu() == labels.cpu()).sum())
            images += len(labels)
        return right / max(1, images)


def _time(candidates: Sequence[_Candidate], call: Any) -> None:
    args, kwargs = call
    with torch.no_grad():
        for number in range(ROUNDS + 2):
            for each in candidates:
                assert each.fast is not None
                began = time.perf_counter()
                answer = each.fast(*args, **kwargs)
                leaves = [x for x in pytree.tree_leaves(answer) if isinstance(x, Tensor)]
                if leaves and leaves[0].is_cuda:
                    torch.cuda.synchronize(leaves[0].device)
                if number >= 2:  # behind the first calls
                    each.seconds.append(time.perf_counter() - began)


def _ratio(candidate: _Candidate, own: _Candidate) -> float:
    """The median of paired ratios of times."""
    import statistics  # which brings decimal and fractions

    return statistics.median(a / b for a, b in zip(candidate.seconds, own.seconds, strict=True))


def _call_and_labels(batch: Any) -> tuple[Any, Tensor | None]:
    """``(args, kwargs)`` of a batch, and the labels where it is (images, labels)."""
    if isinstance(batch, Sequence) and len(batch) == 2:
        images, labels = batch
        if (
            isinstance(images, Tensor)
            and isinstance(labels, Tensor)
            and labels.dim() == 1
            and len(labels) == len(images)
            and not labels.is_floating_point()
        ):
            return ((images,), {}), labels
    return as_arguments(batch), None


def _leading(calls: Sequence[Any], images: int) -> list[Any]:
    """Calls with so many images together."""
    found = []
    for args, kwargs in calls:
        if images <= 0:
            break
        first = next(x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor))
        count = min(images, len(first))

        def cut(value: Any, count: int = count, whole: int = len(first)) -> Any:
            same = isinstance(value, Tensor) and value.dim() and len(value) == whole
            return value[:count] if same else value

        cut_args, cut_kwargs = pytree.tree_map(cut, (args, kwargs))
        found.append((cut_args, cut_kwargs))
        images -= count
    return found


def automatic(
    model: nn.Module,
    example_input: Any,
    calibration: Any,
    limits: Limits,
    optimize: Callable[..., OptimizedModule],
    again: Mapping[str, Any],
    of_int8: Mapping[str, Any],
) -> OptimizedModule:
    """``precision="auto"``.

    Args:
        optimize: the function.
        again: its other arguments.
        of_int8: those of int8.
    """
    batches = None if calibration is None else some(calibration)

    def make(precision: str | None, keep: Mapping[str, str]) -> OptimizedModule:
        chosen: dict[str, Any] = {}
        if precision in CALIBRATED:
            chosen = {"calibration": batches}
        if precision == "int8":
            chosen |= {**of_int8, "keep": {**(of_int8["keep"] or {}), **keep}}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FastresWarning)  # of the chosen one again below
            return optimize(model, example_input, precision=precision, **again, **chosen)

    def sensitive(seconds: float) -> list[str]:
        table = sensitivity(model, batches, example_input, time_limit=seconds)
        return [row.module for row in table]

    with torch.no_grad(), Progress() as progress:
        search = _Search(limits.time_limit, progress)
        search.show("the model's own precision")
        own = make(None, {})
        device = torch.device(own.report.device).type
        precisions = [
            row.name
            for row in ROWS
            if row.name in AUTOMATIC[device]
            and row.dtype != own.dtype
            and (batches is not None or not row.quantized)
        ]
        if example_input is not None:
            timed = as_arguments(example_input)
        else:
            flat = random_arguments(own.internals.example, own.report.device)
            timed = pytree.tree_unflatten(flat, own.internals.in_spec)
        return _fastest(
            model,
            lambda precision, keep: own if precision is None else make(precision, keep),
            precisions,
            [timed] if batches is None else batches,
            timed,
            limits,
            sensitive,
            search,
        )
