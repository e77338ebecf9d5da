"""Proof that an optimised model is still the user's model.

The oracle is the model itself in float64. The yardstick is the model itself in the optimised
model's precision: an error is only meaningful as a multiple of what plain torch makes. Errors are
relative root-mean-square: ``|y - y64| / |y64|`` with Euclidean norms over all answers.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastres.accuracy.relative_error import relative, square, squared_error
from fastres.accuracy.top_k import of_answers, of_choice
from fastres.capture.capture import (
    STATE_CHANGES,
    TRACING,
    Captured,
    as_arguments,
    capture,
    in_eval_mode,
    own_dtype,
    refuse_torchscript,
)
from fastres.capture.guard import untouched
from fastres.capture.pipeline import around
from fastres.capture.wrappers import like, unwrapped
from fastres.errors import CaptureError, OptionError, VerificationError
from fastres.ir.precision import Recorder
from fastres.optimized import OptimizedModule
from fastres.options import PRECISIONS
from fastres.system.plain_tensors import refuse_watched, settled
from fastres.system.threads import safe_threads

BOUND = 2.0
"""How many times eager's own error ours may be."""

NUMBERS_AGREE = 0.9
"""Share of the whole numbers in an answer that must be the model's own; rounding may swap some."""

LAYER_SLACK = 2.0
"""How much further than the answer a single layer may be off before it is said to drift.

Both errors are sums of roundings, and in a single layer of a good network ours may be beyond the
bound by chance while the answers are well within it.
"""


@dataclass(frozen=True)
class Drift:
    """The first layer whose result is further from float64 than it should be."""

    module: str
    operation: str
    error: float
    eager_error: float

    def __str__(self) -> str:
        return (
            f"{self.module} ({self.operation}): error {self.error:.2e}, "
            f"eager's {self.eager_error:.2e}"
        )


@dataclass(frozen=True)
class Verification:
    """How an optimised model compares with the model it was made from.

    Attributes:
        error, eager_error: relative root-mean-square error against float64, over all answers.
        error_ratio: ``error`` as a multiple of ``eager_error`` (at least one unit in the last
            place of the precision, so that a lucky eager does not make the ratio infinite).
        top1_agreement: share of images on which the largest answer is the same as in float64.
        first_drift: first layer beyond :data:`LAYER_SLACK` times the bound, None if there is none.
        bound: what ``error_ratio`` was compared with.
        images: number of images.
        precision: the optimised model's dtype.
    """

    error: float
    eager_error: float
    error_ratio: float
    top1_agreement: float
    first_drift: Drift | None
    bound: float
    images: int
    precision: str

    @property
    def passed(self) -> bool:
        """Whether the error is within the bound; a NaN where float64 has a number is not."""
        return self.error_ratio <= self.bound

    def __str__(self) -> str:
        lines = [
            f"{'passed' if self.passed else 'FAILED'}: error {self.error:.2e}, "
            f"{self.error_ratio:.2f}x eager's own in {self.precision} ({self.eager_error:.2e}), "
            f"bound {self.bound:g}x",
            f"top-1 agreement with float64: {self.top1_agreement:.2%} of {self.images} images",
            f"first layer that drifts: {self.first_drift or 'none'}",
        ]
        return "\n".join(lines)


@safe_threads()
def verify(
    model: nn.Module, fast: OptimizedModule, data: Tensor | Iterable[Any], *, bound: float = BOUND
) -> Verification:
    """Compare ``fast`` with ``model`` on ``data``.

    Args:
        model: the model that ``fast`` was made from; it is not changed.
        fast: the optimised model.
        data: a batch [N, C, H, W], or an iterable of batches; a batch of several arguments is a
            tuple or dict, as for ``example_input``. As ``fast`` takes it: where that preprocesses
            images, these are images, and the reference preprocesses them in float64.
        bound: largest allowed multiple of eager's own error.

    Raises:
        OptionError: ``data`` has no batch or tensors without values, ``fast`` is not an optimised
            model, or something watches this thread's calls (a fake mode, say).
        CaptureError: ``model`` is TorchScript, or cannot be captured.
    """
    refuse_watched("verify")
    if not isinstance(fast, OptimizedModule):
        raise OptionError(f"fast is a {type(fast).__name__}: expected what optimize() returned")
    if not bound > 0:
        raise OptionError(f"bound={bound!r}: expected a positive multiple of eager's error")
    if not isinstance(model, nn.Module):
        raise OptionError(f"model is a {type(model).__name__}: expected an nn.Module")
    if not isinstance(data, Iterable):
        raise OptionError(
            f"data is a {type(data).__name__}: expected a tensor [N, C, H, W] or an iterable of "
            "such batches"
        )
    model, _ = unwrapped(model)
    refuse_torchscript(model)
    batches = [data] if isinstance(data, Tensor) else list(data)
    batches = pytree.tree_map(partial(settled, name="data"), batches)
    if not batches:
        raise OptionError("data has no batch: pass a tensor [N, C, H, W] or an iterable of them")
    comparison = compare(model, fast, batches)
    drifts = (first_drift(model, fast, batch, bound) for batch in batches)
    drift = next(filter(None, drifts), None)
    return Verification(
        error=comparison.error,
        eager_error=comparison.eager_error,
        error_ratio=comparison.ratio,
        top1_agreement=comparison.agreeing / max(comparison.images, 1),
        first_drift=drift,
        bound=bound,
        images=comparison.images,
        precision=str(precision_of(fast)).removeprefix("torch."),
    )


@dataclass
class Comparison:
    """Sums over batches that :func:`compare` makes."""

    floor: float
    square: float = 0.0
    ours: float = 0.0
    eagers_square: float = 0.0
    eagers: float = 0.0
    images: int = 0
    agreeing: int = 0
    numbers: int = 0
    equal_numbers: int = 0

    @property
    def error(self) -> float:
        """Relative root-mean-square error of the optimised model."""
        return relative(self.ours, self.square)

    @property
    def eager_error(self) -> float:
        """Relative root-mean-square error of the model itself in the same precision."""
        return relative(self.eagers, self.eagers_square)

    @property
    def ratio(self) -> float:
        """Our error divided by eager's, which counts as one unit in the last place at least."""
        if self.equal_numbers < NUMBERS_AGREE * self.numbers:
            return math.inf  # whole numbers (indices of the largest, say) that are others
        eager = self.eager_error if math.isfinite(self.eager_error) else 0.0
        return self.error / max(eager, self.floor)


def precision_of(fast: OptimizedModule) -> torch.dtype:
    """The dtype that an optimised model computes in."""
    return PRECISIONS.get(
        fast.report.precision, getattr(torch, fast.report.precision, torch.float32)
    )


def compare(model: nn.Module, fast: OptimizedModule, batches: Iterable[Any]) -> Comparison:
    """Run the model in float64 and in the precision of ``fast``, and ``fast``, on every batch.

    Where ``fast`` preprocesses, so does the reference: in float64, by its definition.
    """
    dtype, own, surroundings = precision_of(fast), own_dtype(model), fast.preprocessing
    top_k = None if surroundings is None else surroundings.top_k
    if surroundings is not None:  # the reference says what all answers are
        model = around(model, replace(surroundings, top_k=None))
    oracle, eager = InPrecision(model, torch.float64), InPrecision(model, dtype)
    itself = eager if dtype == own else InPrecision(model, own)
    result = Comparison(torch.finfo(dtype).eps)
    for batch in batches:
        args, kwargs = as_arguments(batch)
        with torch.no_grad():
            given, exact, plain = fast(*args, **kwargs), oracle(batch), eager(batch)
            native = plain if itself is eager else itself(batch)
        if top_k is not None:
            _compare_leaders(result, native, exact, plain, given, top_k)
            continue
        _compare_kinds(result, native, given)
        exact, plain, given = map(_tensors, (exact, plain, given))
        _add_errors(result, exact, plain, given)
        _count_top1(result, exact, given)
    return result


def _add_errors(
    result: Comparison, exact: Sequence[Tensor], plain: Sequence[Tensor], given: Sequence[Tensor]
) -> None:
    for y64, ye, y in zip(exact, plain, given, strict=True):
        result.ours += squared_error(y, y64, ye)
        result.square += square(y64)
        result.eagers += squared_error(ye, y64, ye)
        result.eagers_square += square(y64)


def _compare_leaders(
    result: Comparison, native: Tensor, exact: Tensor, plain: Tensor, given: Any, top_k: int
) -> None:
    """Add what ``fast`` answers with ``top_k`` to the sums; the others are all answers.

    Eager's error is that of all its answers: of one number alone it may be nothing by chance.
    """
    _compare_kinds(Comparison(result.floor), tuple(torch.topk(native, top_k, dim=1)), given)
    values, indices = given
    best, ours = of_answers(exact, exact, top_k), of_choice(values, indices, exact)
    eagers = of_answers(plain, exact, top_k)
    for y64, ye, y in zip(best.tensors, eagers.tensors, ours.tensors, strict=True):
        result.ours += squared_error(y, y64, ye)
        result.square += square(y64)
    result.eagers += squared_error(plain, exact, plain)
    result.eagers_square += square(exact)
    result.images += len(best.first)
    result.agreeing += int((best.first == ours.first).sum())


def _compare_kinds(result: Comparison, native: Any, given: Any) -> None:
    """Structure, shapes and dtypes must be the model's; whole numbers are counted.

    Raises:
        VerificationError: they are not.
    """
    wanted, got = (pytree.tree_flatten(answer) for answer in (native, given))
    if str(wanted[1]) != str(got[1]):
        raise VerificationError(f"the model answers {wanted[1]}, the optimised model {got[1]}")
    for w, g in zip(wanted[0], got[0], strict=True):
        if not isinstance(w, Tensor) or not isinstance(g, Tensor):
            if w != g:
                raise VerificationError(f"the model answers {w!r}, the optimised model {g!r}")
            continue
        if (w.shape, w.dtype) != (g.shape, g.dtype):
            raise VerificationError(
                f"the model answers {w.dtype} {list(w.shape)}, the optimised model {g.dtype} "
                f"{list(g.shape)}, for the same input"
            )
        if not w.is_floating_point():
            result.numbers += w.numel()
            result.equal_numbers += int((w == g).sum())


class InPrecision:
    """The model in another precision: a converted copy, run by torch alone.

    A model whose forward names a dtype cannot be converted; of such a model, its captured graph is
    run instead, with that dtype read as the other one.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._model, _ = in_eval_mode(model)
        self._twin = like(self._model)
        if dtype != own_dtype(self._model):
            self._twin.to(dtype)
        self._dtype = dtype

    def __call__(self, batch: Any) -> Any:
        """The answer for a batch as :func:`verify` takes it.

        Raises:
            CaptureError: forward changes a buffer, which an optimised model would not.
        """
        own = own_dtype(self._model)
        args, kwargs = _cast(as_arguments(batch), own, self._dtype)
        before = self._state()
        try:
            # A forward may print, and keep something on a class, which the twin has in common.
            with TRACING, untouched(self._twin), contextlib.redirect_stdout(io.StringIO()):
                answer = self._twin(*args, **kwargs)
                after = self._state()
        except RuntimeError:
            if self._dtype == own:
                raise  # nothing was converted, the model itself fails
            captured = capture(self._model, batch)
            recorder = Recorder(captured.module, own, self._dtype)
            flat = recorder.run(*_cast(captured.example, own, self._dtype))
            return pytree.tree_unflatten(list(flat), captured.out_spec)
        for name, state in after.items():
            if state != before.get(name):
                module = name.rpartition(".")[0] or "the model"
                raise CaptureError(STATE_CHANGES.format(module=module))
        return answer

    def _state(self) -> dict[str, tuple[int, int]]:
        """What tells whether a buffer was written or replaced."""
        return {
            name: (id(buffer), 0 if buffer.is_inference() else buffer._version)
            for name, buffer in self._twin.named_buffers()
        }


def _cast(arguments: Any, own: torch.dtype, dtype: torch.dtype) -> Any:
    """Copies (a model may write to its input), those of the model's own dtype cast."""

    def cast(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        copied = leaf.detach().clone()
        return copied.to(dtype) if copied.dtype == own else copied

    return pytree.tree_map(cast, arguments)


def _tensors(result: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(result)
    return [
        leaf.detach() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]


def _count_top1(result: Comparison, exact: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    if not exact or exact[0].dim() < 2:
        return
    wanted, got = exact[0].flatten(1), given[0].flatten(1)
    result.images += wanted.shape[0]
    if wanted.numel():
        result.agreeing += int((wanted.argmax(1) == got.argmax(1)).sum())


def first_drift(model: nn.Module, fast: OptimizedModule, batch: Any, bound: float) -> Drift | None:
    """The first operator whose result is further off than the captured model's; None for none."""
    dtype = precision_of(fast)
    twin, _ = in_eval_mode(model)
    captured = capture(around(twin, fast.preprocessing), batch)
    own = own_dtype(twin)
    exact, plain = (_values(captured, own, precision) for precision in (torch.float64, dtype))
    flat = _cast(captured.example, own, own)
    floor = torch.finfo(dtype).eps
    for node, value in fast.intermediate(flat):
        y64 = exact.get(node.meta.get("source"))
        ye = plain.get(node.meta.get("source"))
        if y64 is None or ye is None or y64.shape != value.shape:
            continue
        whole = float(y64.square().sum())
        error = relative(squared_error(value, y64, ye), whole)
        eager_error = relative(squared_error(ye, y64, ye), whole)
        if error > LAYER_SLACK * bound * max(eager_error, floor):
            operation = str(node.target).removesuffix(".default")
            return Drift(
                str(node.meta.get("module") or "(the model itself)"), operation, error, eager_error
            )
    return None


def _values(captured: Captured, own: torch.dtype, dtype: torch.dtype) -> dict[Any, Tensor]:
    recorder = Recorder(captured.module, own, dtype)
    with torch.no_grad():
        recorder.run(*_cast(captured.example, own, dtype))
    return recorder.kept
