"""A model against the module that was made from it, over batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fastres.accuracy.bounds import NUMBERS_AGREE
from fastres.accuracy.reference import InPrecision
from fastres.accuracy.relative_error import ErrorSums
from fastres.accuracy.top_k import of_answers, of_choice
from fastres.capture.capture import as_arguments, model_dtype
from fastres.capture.pipeline import with_preprocessing
from fastres.errors import VerificationError
from fastres.system.heap import give_back
from fastres.transforms import Preprocessing


class Optimized(Protocol):
    """What is compared: a model's optimised module, or anything that can stand in for one.

    Attributes:
        preprocessing: what is part of it beside the network, None where nothing is.
    """

    preprocessing: Preprocessing | None

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""

    @property
    def is_quantized(self) -> bool:
        """Whether it computes with integers."""

    @property
    def has_wider_layers(self) -> bool:
        """Whether parts of it hold what its dtype, float16, cannot."""

    def by_definition(self, *args: Any, **kwargs: Any) -> Any:
        """The answer without any engine."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The answer."""

    def intermediate(self, flat: Sequence[Any]) -> list[tuple[fx.Node, Tensor]]:
        """Every operator's result for flattened arguments."""


@dataclass
class Comparison:
    """Sums over batches that :func:`compare` makes.

    Attributes:
        sums: of the floating-point answers.
        images, agreeing: number of images, and of those whose first choice is float64's.
        numbers, equal_numbers: number of whole numbers answered, and of those that are the model's.
        different: numbers of a quantised model that are not its definition's.
        overflowed: answers that are numbers in float64, and NaN or infinite here.
    """

    sums: ErrorSums
    images: int = 0
    agreeing: int = 0
    numbers: int = 0
    equal_numbers: int = 0
    different: int = 0
    overflowed: int = 0

    @property
    def error(self) -> float:
        """Relative root-mean-square error of the optimised model."""
        return self.sums.error

    @property
    def eager_error(self) -> float:
        """Relative root-mean-square error of the model itself in the same precision."""
        return self.sums.eager_error

    @property
    def ratio(self) -> float:
        """Our error as a multiple of eager's; infinite where whole numbers are others."""
        if self.equal_numbers < NUMBERS_AGREE * self.numbers:
            return math.inf  # indices of the largest, say
        return self.sums.ratio


def compare(model: nn.Module, fast: Optimized, batches: Iterable[Any]) -> Comparison:
    """Run the model in float64 and in the precision of ``fast``, and ``fast``, on every batch.

    Where ``fast`` preprocesses, so does the reference: in float64, by its definition. Of integers
    torch's own error is that of their definition, operator by operator; where ``fast`` holds what
    float16 cannot, that of float16's rounding alone.

    Raises:
        VerificationError: ``fast`` answers with other structures, shapes or dtypes.
    """
    dtype, own, preprocessing = fast.dtype, model_dtype(model), fast.preprocessing
    top_k = None if preprocessing is None else preprocessing.top_k
    if preprocessing is not None:  # the reference says what all answers are
        model = with_preprocessing(model, replace(preprocessing, top_k=None))
    oracle = InPrecision(model, torch.float64)
    is_own = dtype == own and not fast.is_quantized and not fast.has_wider_layers
    itself = InPrecision(model, own)
    eager: Callable[[Any], Any] = itself
    if fast.is_quantized:
        eager = _defined(fast)
    elif not is_own:
        eager = InPrecision(model, dtype, fast.has_wider_layers)
    result = Comparison(ErrorSums(torch.finfo(dtype).eps))
    for batch in batches:
        args, kwargs = as_arguments(batch)
        with torch.no_grad():
            try:
                exact, plain = oracle(batch), eager(batch)
            except Exception:
                fast(*args, **kwargs)  # of wrong arguments its error says more
                raise
            give_back()
            ours = fast(*args, **kwargs)  # last: what it keeps for calls is not there before
            native = plain if itself is eager else itself(batch)
        if fast.is_quantized:
            result.different += different(pytree.tree_leaves(ours), pytree.tree_leaves(plain))
        if top_k is not None:
            _add_top_k(result, native, exact, plain, ours, top_k)
            continue
        _compare_kinds(result, native, ours)
        exact, plain, ours = map(_floating, (exact, plain, ours))
        for y64, ye, y in zip(exact, plain, ours, strict=True):
            result.sums.add(y, y64, ye)
            result.overflowed += _overflowed(y, y64)
        _count_top1(result, exact, ours)
    return result


def _defined(fast: Optimized) -> Callable[[Any], Any]:
    def answer(batch: Any) -> Any:
        args, kwargs = as_arguments(batch)
        return fast.by_definition(*args, **kwargs)

    return answer


def different(ours: Iterable[Any], expected: Iterable[Any]) -> int:
    """How many numbers of flattened answers are others."""
    pairs = zip(ours, expected, strict=True)
    return sum(int((a != b).sum()) for a, b in pairs if isinstance(a, Tensor))


def _add_top_k(
    result: Comparison, native: Tensor, exact: Tensor, plain: Any, ours: Any, top_k: int
) -> None:
    """Add what ``fast`` answers with ``top_k`` to the sums; the others are all answers.

    Eager's error is that of all its answers: of one number alone it may be nothing by chance.
    """
    _compare_kinds(Comparison(ErrorSums(0.0)), tuple(torch.topk(native, top_k, dim=1)), ours)
    values, indices = ours
    if bool(torch.isfinite(exact).all()):
        result.overflowed += int((~torch.isfinite(values)).sum())
    if isinstance(plain, tuple):  # the definition of a quantised model answers with the k largest
        best, found = of_answers(exact, exact, top_k), of_choice(values, indices, exact)
        largest, places = plain
        defined = of_choice(largest, places, exact)
        for y64, ye, y in zip(best.tensors, defined.tensors, found.tensors, strict=True):
            result.sums.add(y, y64, ye)
        result.images += len(best.first)
        result.agreeing += int((best.first == found.first).sum())
        return
    best, found = of_answers(exact, exact, top_k), of_choice(values, indices, exact)
    eagers = of_answers(plain, exact, top_k)
    for y64, ye, y in zip(best.tensors, eagers.tensors, found.tensors, strict=True):
        result.sums.add_ours(y, y64, ye)
    result.sums.add_eagers(plain, exact)
    result.images += len(best.first)
    result.agreeing += int((best.first == found.first).sum())


def _compare_kinds(result: Comparison, native: Any, ours: Any) -> None:
    """Structure, shapes and dtypes must be the model's; whole numbers are counted.

    Raises:
        VerificationError: they are not.
    """
    expected, got = (pytree.tree_flatten(answer) for answer in (native, ours))
    if str(expected[1]) != str(got[1]):
        raise VerificationError(f"the model answers {expected[1]}, the optimised model {got[1]}")
    for want, have in zip(expected[0], got[0], strict=True):
        if not isinstance(want, Tensor) or not isinstance(have, Tensor):
            if want != have:
                raise VerificationError(f"the model answers {want!r}, the optimised model {have!r}")
            continue
        if (want.shape, want.dtype) != (have.shape, have.dtype):
            raise VerificationError(
                f"the model answers {want.dtype} {list(want.shape)}, the optimised model "
                f"{have.dtype} {list(have.shape)}, for the same input"
            )
        if not want.is_floating_point():
            result.numbers += want.numel()
            result.equal_numbers += int((want == have).sum())


def _overflowed(y: Tensor, y64: Tensor) -> int:
    return int((torch.isfinite(y64) & ~torch.isfinite(y)).sum())


def _floating(result: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(result)
    return [
        leaf.detach() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]


def _count_top1(result: Comparison, exact: Sequence[Tensor], ours: Sequence[Tensor]) -> None:
    if not exact or exact[0].dim() < 2:
        return
    expected, got = exact[0].flatten(1), ours[0].flatten(1)
    result.images += expected.shape[0]
    if expected.numel():
        result.agreeing += int((expected.argmax(1) == got.argmax(1)).sum())
