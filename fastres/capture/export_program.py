"""One call of ``torch.export`` (non-strict), with the sizes that may vary as symbols."""

from __future__ import annotations

import functools
import inspect
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fastres.capture.contract import Contract, contract_of, fixed_size
from fastres.capture.decisions import Decisions, TangledSizes
from fastres.capture.quick_shapes import quick_shapes
from fastres.errors import InputError
from fastres.system import forking

MAX_OPERATIONS = 60
"""Operations in the expression of one size, beyond which heights and widths become plain numbers.

A ResNet's sizes have at most a dozen. Padding computed from the image's size at every layer
(TensorFlow's SAME) nests divisions, and torch.export then takes minutes instead of seconds.
"""

MAX_PRODUCT_OPERATIONS = 8
"""The same for a size that is a quotient of height times width, as windowed attention has them.

sympy cannot divide such products again, so every further size is a nest of quotients.
"""


_QUESTIONS = frozenset(
    {
        *("__get__", "__set__", "stride", "storage_offset", "size", "dim", "numel", "device"),
        *("untyped_storage", "is_inference", "is_conj", "is_neg", "_is_view", "sym_max"),
    }
)
"""What is asked of a tensor and computes none; nine of ten calls are these."""

_MAX_POOLS = (F.max_pool2d, F._max_pool2d, torch.max_pool2d)  # type: ignore[attr-defined]


class TracingMode(TorchFunctionMode):
    """Sees the model's calls of torch while it is traced.

    Keeps ``F.avg_pool2d(f, f.shape[2:])`` independent of the image size: a pooling takes plain
    numbers, so tracing would bake the example's size in, while pooling over the whole image is
    ``adaptive_avg_pool2d(f, 1)``, which has no size in it. And gives up early on sizes that are
    too complicated for symbols.
    """

    def __init__(self, decisions: Decisions) -> None:
        super().__init__()
        self._decisions = decisions

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._decisions.has_begun and getattr(func, "__name__", "") in _QUESTIONS:
            return func(*args, **kwargs)
        self._watch(args)
        image = args[0] if args else kwargs.get("input")
        if func is F.avg_pool2d and _is_global_avg_pool(*args, **kwargs):
            return F.adaptive_avg_pool2d(image, 1)
        if func in _MAX_POOLS and _is_global_max_pool(*args, **kwargs):
            return F.adaptive_max_pool2d(image, 1)
        return func(*args, **kwargs)

    def _watch(self, args: Any) -> None:
        sizes: list[Any] = [s for leaf in args if isinstance(leaf, Tensor) for s in leaf.shape]
        symbolic = [size for size in sizes if isinstance(size, torch.SymInt)]
        if symbolic:
            self._decisions.watch(symbolic[0])
        if any(_is_tangled(size.node.expr) for size in symbolic):
            module = self._decisions.module()
            if module:  # else torch itself looks, say for a log of what failed
                raise TangledSizes(module)


@functools.lru_cache(1024)
def _is_tangled(size: Any) -> bool:
    from torch.utils._sympy.functions import FloorDiv, Mod  # imports sympy

    operations = size.count_ops()
    return operations > MAX_OPERATIONS or (
        operations > MAX_PRODUCT_OPERATIONS
        and any(len(part.args[0].free_symbols) > 1 for part in size.atoms(FloorDiv, Mod))
    )


def _is_global_avg_pool(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: Any = None,
) -> bool:
    return divisor_override is None and _covers_image(input, kernel_size, padding)


def _is_global_max_pool(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> bool:
    plain = dilation in (1, (1, 1), [1, 1]) and not return_indices
    return plain and _covers_image(input, kernel_size, padding)


def _covers_image(image: Any, window: Any, padding: Any) -> bool:
    """Whether a pooling window is given as the image's own height and width, unpadded."""
    if not isinstance(image, Tensor) or image.dim() != 4 or padding not in (0, (0, 0), [0, 0]):
        return False
    sides = list(window) if isinstance(window, (tuple, list)) else [window]
    sides = sides * 2 if len(sides) == 1 else sides
    if len(sides) != 2 or not any(isinstance(side, torch.SymInt) for side in sides):
        return False
    height, width = image.shape[2:]
    if str(sides[0]) != str(height) and str(sides[1]) != str(width):
        return False
    # Where one number is for both sides, asking whether they are equal makes that a condition.
    return bool(sides[0] == height) and bool(sides[1] == width)


def with_batch_of_two(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call with a batch of two if it had one: torch.export takes a size of 1 for a constant."""
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    images = [t for t in tensors if t.dim() >= 4] or [t for t in tensors if t.dim() >= 2]
    if not images or images[0].shape[0] > 1:
        return args, kwargs

    def doubled(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.dim() >= 2 and leaf.shape[0] in (0, 1):
            return leaf.new_zeros((2, *leaf.shape[1:]))
        return leaf

    doubled_args, doubled_kwargs = pytree.tree_map(doubled, (args, kwargs))
    return doubled_args, doubled_kwargs


def dynamic_sizes(arguments: Any, images_vary: bool = True) -> Any:
    """What ``torch.export`` takes as ``dynamic_shapes``: batch, height and width may vary.

    With ``images_vary=False``, the batch only.
    """

    def axes(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return None
        varying = [0] if leaf.dim() >= 2 else []
        if leaf.dim() >= 4 and images_vary:
            varying += [leaf.dim() - 2, leaf.dim() - 1]
            if leaf.dtype == torch.uint8:  # may be NHWC; torch finds out that channels are fixed
                varying += [leaf.dim() - 3]
        # torch takes a size of one for a constant, and would warn.
        return {axis: Dim.AUTO for axis in varying if leaf.shape[axis] != 1}

    return pytree.tree_map(axes, arguments)


@dataclass(frozen=True)
class Exported:
    """A model as torch exported it, and what its sizes depend on.

    Attributes:
        decisions: the conditions on sizes that held during the export.
        fixed_by: the module whose sizes are too tangled to leave heights and widths open; "" where
            none is, None where they are open.
    """

    program: ExportedProgram
    decisions: Decisions
    fixed_by: str | None = None

    def inputs(self) -> tuple[list[str], list[Any]]:
        """Names of the arguments, and what torch recorded for each: a tensor or a plain value."""
        specs = self.program.graph_signature.input_specs
        placeholders = self.program.graph.find_nodes(op="placeholder")
        recorded = [
            (node.name, node.meta.get("val", getattr(spec.arg, "value", None)))
            for node, spec in zip(placeholders, specs, strict=True)
            if spec.kind == InputKind.USER_INPUT
        ]
        return [name for name, _ in recorded], [value for _, value in recorded]

    def contract(self) -> Contract:
        """The inputs that the program is valid for."""
        return contract_of(*self.inputs(), self.decisions.locations)

    def fixed_size_note(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """A sentence on heights and widths that the model's code made numbers of; "" for none."""
        if self.fixed_by is not None:
            by = f"module {self.fixed_by}" if self.fixed_by else "the model"
            return (
                f"the image size is fixed to the example's: {by} computes paddings or sizes from "
                "it, too tangled for torch.export; optimise once per size"
            )
        leaves = pytree.tree_leaves((args, kwargs))
        sides = [
            (value.shape[axis], example.shape[axis])
            for value, example in zip(self.inputs()[1], leaves, strict=True)
            if isinstance(value, Tensor) and value.dim() >= 4
            for axis in _image_axes(example)
        ]
        fixed = [got for size, got in sides if fixed_size(size) is not None and got > 1]
        symbols = {str(size) for size, _ in sides}
        locations = [
            each.location
            for each in self.decisions.specializations
            if fixed or each.symbols & symbols
        ]
        if not fixed and not locations:
            return ""
        what = f"a height or width of {fixed[0]} is" if fixed else "image sizes are"
        where = "the model's code does"
        if locations:
            where = f"{locations[0]} makes plain numbers of sizes"
        return (
            f"{what} fixed by the example: {where}; optimise once per size, or make that part "
            "adaptive (nn.AdaptiveAvgPool2d, say)"
        )

    def accepts(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the program is valid for a call with these arguments."""
        try:
            self.contract().check(pytree.tree_leaves((args, kwargs)))
        except InputError:
            return False
        return True


def export_with_dynamic_sizes(
    model: nn.Module, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Exported:
    """Export a model in eval mode with as many sizes left open as its own code allows.

    Raises:
        Exception: whatever the model's forward or torch.export raise.
    """
    fixed_by: str | None = None

    def export_once(args: Any, kwargs: Any, strict: bool = False) -> Exported:
        decisions = Decisions(model, strict)
        program = export(model, signature, args, kwargs, decisions, fixed_by is None)
        return Exported(program, decisions, fixed_by)

    try:
        result = export_once(*with_batch_of_two(args, kwargs))
    except TangledSizes as error:
        fixed_by = str(error)
        result = export_once(*with_batch_of_two(args, kwargs))
    if result.decisions.coincidences:
        result = _export_enlarged(export_once, args, kwargs) or export_once(
            *with_batch_of_two(args, kwargs), True
        )
    if not result.accepts(args, kwargs):  # the batch is fixed, say by len(x)
        result = export_once(args, kwargs, True)
    return result


def _export_enlarged(
    export_once: Callable[..., Exported], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Exported | None:
    """The model exported with an enlarged example, if that is valid for the original one too.

    In an enlarged image no size is 1, so that no size is taken for a constant by coincidence.
    """
    for factor in ENLARGEMENTS:
        try:
            result = export_once(*enlarged(*with_batch_of_two(args, kwargs), factor))
        except Exception:  # noqa: BLE001 - a model that takes no other size fails somehow
            return None
        if not result.decisions.coincidences:
            return result if result.accepts(args, kwargs) else None
    return None


ENLARGEMENTS = (2, 4, 8, 16)
"""Factors on height and width, tried in order until no size of the example is 1 by coincidence."""


def enlarged(
    args: tuple[Any, ...], kwargs: dict[str, Any], factor: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call with images of so many times the height and width."""

    def larger(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() < 4:
            return leaf
        fixed = {0, *range(1, leaf.dim())} - set(_image_axes(leaf))
        return leaf.new_empty([s if i in fixed else s * factor for i, s in enumerate(leaf.shape)])

    larger_args, larger_kwargs = pytree.tree_map(larger, (args, kwargs))
    return larger_args, larger_kwargs


def _image_axes(image: Tensor) -> tuple[int, int]:
    """The axes of height and width of [..., H, W], or of uint8 [..., H, W, C] with C <= 4."""
    last = image.dim() - 1
    pixels = image.dtype == torch.uint8 and image.shape[last] <= 4 < image.shape[last - 2]
    return (last - 2, last - 1) if pixels else (last - 1, last)


def export(
    model: nn.Module,
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    decisions: Decisions,
    images_vary: bool = True,
) -> ExportedProgram:
    """Export a model in eval mode; ``signature`` is that of its forward.

    Raises:
        TangledSizes: the symbols of height and width got too complicated.
        Exception: whatever the model's forward or torch.export raise.
    """
    shapes = dynamic_sizes(dict(signature.bind(*args, **kwargs).arguments), images_vary)
    # Without no_grad a `with torch.no_grad()` inside forward would become a nested graph.
    with torch.no_grad(), quick_shapes(), TracingMode(decisions), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # attributes set in forward: `state_restored` reports them
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)


def _reset_export_flags() -> None:
    """Clear torch's process-wide "is exporting" flags in a forked child, which has no such thread.

    The thread that exports, and would clear them, exists in the parent only.
    """
    if forking.cut_off():
        torch.compiler._is_compiling_flag = False
        torch.compiler._is_exporting_flag = False


if hasattr(os, "register_at_fork"):  # behind the hook of `forking`
    os.register_at_fork(after_in_child=_reset_export_flags)
