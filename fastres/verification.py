"""Proof that an optimised model is still the user's model.

The oracle is the model itself in float64. The yardstick is the model itself in the optimised
model's precision: an error is only meaningful as a multiple of what plain torch makes. Errors are
relative root-mean-square: ``|y - y64| / |y64|`` with Euclidean norms over all answers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fastres.capture import as_arguments, capture, in_eval_mode
from fastres.errors import OptionError, VerificationError
from fastres.optimized import OptimizedModule
from fastres.options import PRECISIONS

BOUND = 2.0
"""How many times eager's own error ours may be."""

LAYER_SLACK = 2.0
"""How much further than the answer a single layer may be off before it is said to drift.

Both errors are sums of roundings, and in a single layer of a good ResNet-50 in float32 ours was
2.05 times eager's by chance, while the answers were 1.2 times.
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


def verify(
    model: nn.Module, fast: OptimizedModule, data: Tensor | Iterable[Any], *, bound: float = BOUND
) -> Verification:
    """Compare ``fast`` with ``model`` on ``data``.

    Args:
        model: the model that ``fast`` was made from; it is not changed.
        fast: the optimised model.
        data: a batch [N, C, H, W], or an iterable of batches; a batch of several arguments is a
            tuple or dict, as for ``example_input``.
        bound: largest allowed multiple of eager's own error.

    Raises:
        OptionError: ``data`` has no batch, or ``fast`` is not an optimised model.
    """
    if not isinstance(fast, OptimizedModule):
        raise OptionError(f"fast is a {type(fast).__name__}: expected what optimize() returned")
    if not bound > 0:
        raise OptionError(f"bound={bound!r}: expected a positive multiple of eager's error")
    batches = [data] if isinstance(data, Tensor) else list(data)
    if not batches:
        raise OptionError("data has no batch: pass a tensor [N, C, H, W] or an iterable of them")
    comparison = compare(model, fast, batches)
    return Verification(
        error=comparison.error,
        eager_error=comparison.eager_error,
        error_ratio=comparison.ratio,
        top1_agreement=comparison.agreeing / max(comparison.images, 1),
        first_drift=_first_drift(model, fast, batches[0], bound),
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
    eagers: float = 0.0
    images: int = 0
    agreeing: int = 0

    @property
    def error(self) -> float:
        """Relative root-mean-square error of the optimised model."""
        return _relative(self.ours, self.square)

    @property
    def eager_error(self) -> float:
        """Relative root-mean-square error of the model itself in the same precision."""
        return _relative(self.eagers, self.square)

    @property
    def ratio(self) -> float:
        """Our error divided by eager's, which counts as one unit in the last place at least."""
        eager = self.eager_error if math.isfinite(self.eager_error) else 0.0
        return self.error / max(eager, self.floor)


def _relative(squared_error: float, square: float) -> float:
    if squared_error == 0.0:
        return 0.0
    return math.sqrt(squared_error / square) if square else math.inf


def precision_of(fast: OptimizedModule) -> torch.dtype:
    """The dtype that an optimised model computes in."""
    return PRECISIONS.get(
        fast.report.precision, getattr(torch, fast.report.precision, torch.float32)
    )


def compare(model: nn.Module, fast: OptimizedModule, batches: Iterable[Any]) -> Comparison:
    """Run the model in float64 and in the precision of ``fast``, and ``fast``, on every batch."""
    dtype = precision_of(fast)
    oracle = in_precision(model, torch.float64)
    eager = in_precision(model, dtype)
    result = Comparison(torch.finfo(dtype).eps)
    for batch in batches:
        args, kwargs = as_arguments(batch)
        with torch.no_grad():
            exact = _tensors(oracle(*_cast(args, torch.float64), **_cast(kwargs, torch.float64)))
            plain = _tensors(eager(*_cast(args, dtype), **_cast(kwargs, dtype)))
            given = _tensors(fast(*args, **kwargs))
        if [t.shape for t in exact] != [t.shape for t in given]:
            raise VerificationError(
                f"the optimised model answers {[list(t.shape) for t in given]}, the model "
                f"{[list(t.shape) for t in exact]}, for the same input"
            )
        for y64, ye, y in zip(exact, plain, given, strict=True):
            result.ours += _squared_error(y, y64, ye)
            result.eagers += _squared_error(ye, y64, ye)
            result.square += float(torch.where(torch.isfinite(y64), y64, 0).square().sum())
        _count_top1(result, exact, given)
    return result


def in_precision(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of the model in eval mode, its floating-point weights and buffers in ``dtype``."""
    twin, _ = in_eval_mode(model)
    return copy.deepcopy(twin).to(dtype)


def _cast(arguments: Any, dtype: torch.dtype) -> Any:
    def cast(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            copied = leaf.detach().clone()  # a model may write to its input
            return copied.to(dtype) if leaf.is_floating_point() else copied
        return leaf

    return pytree.tree_map(cast, arguments)


def _tensors(result: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(result)
    return [
        leaf.detach() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]


def _squared_error(y: Tensor, y64: Tensor, eager: Tensor) -> float:
    """Sum of squares of ``y - y64``; infinite where only one of ``y`` and eager is a number.

    Where both the model and we overflow to NaN or infinity, it is the model's doing.
    """
    if bool((torch.isnan(y) != torch.isnan(eager)).any()):
        return math.inf
    if bool((torch.isinf(y) != torch.isinf(eager)).any()):
        return math.inf
    difference = y.double() - y64
    return float(torch.where(torch.isfinite(difference), difference, 0).square().sum())


def _count_top1(result: Comparison, exact: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    if not exact or exact[0].dim() < 2:
        return
    wanted, got = exact[0].flatten(1), given[0].flatten(1)
    result.images += wanted.shape[0]
    if wanted.numel():
        result.agreeing += int((wanted.argmax(1) == got.argmax(1)).sum())


def _first_drift(model: nn.Module, fast: OptimizedModule, batch: Any, bound: float) -> Drift | None:
    """Compare every operator's result with the same value of the captured model."""
    dtype = precision_of(fast)
    args, kwargs = as_arguments(batch)
    twin, _ = in_eval_mode(model)
    captured = capture(twin, batch)
    flat = pytree.tree_leaves(
        (
            captured.signature.bind(*args, **kwargs).args,
            captured.signature.bind(*args, **kwargs).kwargs,
        )
    )
    exact = _values(captured.module, torch.float64, flat)
    plain = _values(captured.module, dtype, flat)
    floor = torch.finfo(dtype).eps
    for node, value in fast.intermediate(flat):
        y64 = exact.get(node.meta.get("source"))
        ye = plain.get(node.meta.get("source"))
        if y64 is None or ye is None or y64.shape != value.shape:
            continue
        square = float(y64.square().sum())
        error = _relative(_squared_error(value, y64, ye), square)
        eager_error = _relative(_squared_error(ye, y64, ye), square)
        if error > LAYER_SLACK * bound * max(eager_error, floor):
            operation = str(node.target).removesuffix(".default")
            return Drift(
                str(node.meta.get("module") or "(the model itself)"), operation, error, eager_error
            )
    return None


class _Recorder(fx.Interpreter):
    """Runs a captured graph in one dtype and keeps every tensor by its node's name."""

    def __init__(self, module: fx.GraphModule, dtype: torch.dtype) -> None:
        super().__init__(module)
        self.dtype = dtype
        self.kept: dict[Any, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "get_attr" and isinstance(value, Tensor) and value.is_floating_point():
            return value.to(self.dtype)
        if n.op == "call_function" and isinstance(value, Tensor) and value.is_floating_point():
            self.kept[n.name] = value
        return value


def _values(module: fx.GraphModule, dtype: torch.dtype, flat: Sequence[Any]) -> dict[Any, Tensor]:
    recorder = _Recorder(module, dtype)
    with torch.no_grad():
        recorder.run(*_cast(list(flat), dtype))
    return recorder.kept
