"""The tests' judge: the user's model in float64, and proof that nobody touched the model itself.

What is held against an optimised model is eager's own error in the same precision, the larger of
its two memory formats. For float32 torch calls other oneDNN kernels for channels-last images than
for NCHW, and they sum in another order: on one 3x3 convolution of 128 channels the mean error is
1.0 units in the last place for NCHW and 2.5 for channels-last.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# The floor under a bound, in units in the last place of the output's largest value. Eager's error
# on a handful of numbers can be zero by luck, and an error this small is never a mistake: of 800
# random networks none exceeded twice eager's error by more than 0.6 units in float32 and 0.2 in
# bfloat16, while a lost or doubled BatchNorm is off by thousands (`test_oracle`).
FLOOR_ULPS = {"fp32": 3.0, "bf16": 1.0, "fp16": 1.0}


@dataclass(frozen=True)
class Error:
    """Largest absolute deviations from float64, each relative to its output's largest value.

    Attributes:
        fast: of the optimised model.
        eager: of the user's model in the same precision, the larger one of NCHW and channels-last.
        floor: what is forgiven whatever eager achieves.
    """

    fast: float
    eager: float
    floor: float

    @property
    def ratio(self) -> float:
        """The optimised model's error as a multiple of what is held against it."""
        return self.fast / max(self.eager, self.floor)


def cast(tree: Any, dtype: torch.dtype) -> Any:
    """Copy a nested structure's floating-point tensors to another dtype, keep everything else.

    Copies even where the dtype is right: a model may write into its input.
    """

    def change(leaf: Any) -> Any:
        return leaf.to(dtype, copy=True) if _is_floating(leaf) else leaf

    return pytree.tree_map(change, tree)


def in_precision(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of ``model`` in evaluation mode and another floating-point dtype."""
    return copy.deepcopy(model).eval().to(dtype)


def run_in(model: nn.Module, dtype: torch.dtype, *inputs: Any, **named: Any) -> Any:
    """What a copy of ``model`` gives in ``dtype``."""
    with torch.no_grad():
        return in_precision(model, dtype)(*cast(inputs, dtype), **cast(named, dtype))


def float64_error(
    model: nn.Module,
    fast: Callable[..., Any],
    *inputs: Any,
    precision: str = "fp32",
    **named: Any,
) -> Error:
    """Errors of ``fast`` and of eager in the same precision, both against the model in float64.

    Args:
        model: the user's model.
        fast: what was made from it.
        inputs, named: one call's arguments, float32.
        precision: "fp32", "bf16" or "fp16", in which eager runs for comparison.

    Raises:
        AssertionError: the structure, a shape, a value that is no floating-point tensor, or a NaN
            or infinity differs from the reference's.
    """
    dtype = PRECISIONS[precision]
    reference = run_in(model, torch.float64, *inputs, **named)
    eager_error = _tree_deviation(run_in(model, dtype, *inputs, **named), reference)
    channels_last = _channels_last(model, dtype, inputs, named)
    if channels_last is not None:
        eager_error = max(eager_error, _tree_deviation(channels_last, reference))
    with torch.no_grad():
        got = fast(*inputs, **named)
    for ours, wanted in zip(pytree.tree_leaves(got), pytree.tree_leaves(reference), strict=True):
        if not _is_floating(wanted):
            _assert_identical(ours, wanted)
    floor = FLOOR_ULPS[precision] * torch.finfo(dtype).eps
    return Error(_tree_deviation(got, reference), eager_error, floor)


def _channels_last(
    model: nn.Module, dtype: torch.dtype, inputs: tuple[Any, ...], named: dict[str, Any]
) -> Any:
    """What the model gives in channels-last; None where its views do not allow that format."""

    def change(leaf: Any) -> Any:
        image = isinstance(leaf, torch.Tensor) and leaf.dim() == 4
        return leaf.to(memory_format=torch.channels_last) if image else leaf

    try:
        with torch.no_grad():
            twin = in_precision(model, dtype).to(memory_format=torch.channels_last)
            given, named_given = pytree.tree_map(change, cast((inputs, named), dtype))
            return twin(*given, **named_given)
    except RuntimeError:
        return None


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()


def _tree_deviation(got: Any, wanted: Any) -> float:
    """The largest `_deviation` of the floating-point tensors of two alike structures."""
    got_leaves, got_structure = pytree.tree_flatten(got)
    wanted_leaves, wanted_structure = pytree.tree_flatten(wanted)
    assert got_structure == wanted_structure, f"{got_structure} is not {wanted_structure}"
    pairs = zip(got_leaves, wanted_leaves, strict=True)
    return max((_deviation(a, b) for a, b in pairs if _is_floating(b)), default=0.0)


def assert_as_accurate(
    model: nn.Module,
    fast: Callable[..., Any],
    *inputs: Any,
    precision: str = "fp32",
    factor: float = 2.0,
    **named: Any,
) -> Error:
    """Assert that ``fast`` errs at most ``factor`` times as much as eager in the same precision.

    Below ``FLOOR_ULPS`` units in the last place of an output's largest value nothing is held
    against it.
    """
    error = float64_error(model, fast, *inputs, precision=precision, **named)
    assert error.ratio <= factor, (
        f"error {error.fast:.3g} against float64 is {error.ratio:.2f} times eager's "
        f"{error.eager:.3g} in {precision} (floor {error.floor:.3g}); at most {factor} is allowed"
    )
    return error


def _assert_identical(ours: Any, wanted: Any) -> None:
    if isinstance(wanted, torch.Tensor):
        assert isinstance(ours, torch.Tensor) and torch.equal(ours, wanted)
    else:
        assert type(ours) is type(wanted) and ours == wanted, f"{ours!r} is not {wanted!r}"


def _deviation(ours: Any, wanted: torch.Tensor) -> float:
    """Largest absolute difference relative to the largest finite value wanted."""
    assert isinstance(ours, torch.Tensor), f"{type(ours).__name__} is not a tensor"
    assert ours.shape == wanted.shape, f"{tuple(ours.shape)} is not {tuple(wanted.shape)}"
    if wanted.numel() == 0:
        return 0.0
    ours = ours.double()
    finite = wanted.isfinite()
    assert torch.equal(ours.isfinite(), finite), (
        "NaN or infinity where float64 has none, or the reverse"
    )
    if not finite.any():
        return 0.0
    scale = wanted[finite].abs().max()
    return float((ours - wanted)[finite].abs().max()) / (float(scale) or 1.0)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Assert that the block leaves ``model`` bitwise as it was.

    Covers parameters and buffers (bytes, dtype, strides, storage, version counter,
    ``requires_grad``, gradient), each module's class, mode, hooks and plain attributes, and the
    tree of modules.
    """
    before = _snapshot(model)
    yield
    after = _snapshot(model)
    assert after.keys() == before.keys(), f"names changed: {sorted(after.keys() ^ before.keys())}"
    for name, value in before.items():
        assert after[name] == value, f"{name} changed from {value} to {after[name]}"


def _snapshot(model: nn.Module) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        state[f"{name}: class"] = type(module)
        for attribute, value in vars(module).items():
            if attribute in ("_parameters", "_buffers"):
                for key, tensor in value.items():
                    state[f"{name}: {attribute}: {key}"] = _fingerprint(tensor)
            elif attribute == "_modules":
                state[f"{name}: children"] = [(key, id(child)) for key, child in value.items()]
            elif isinstance(value, torch.Tensor):
                state[f"{name}: {attribute}"] = _fingerprint(value)
            elif "hooks" in attribute:
                state[f"{name}: {attribute}"] = [(key, id(hook)) for key, hook in value.items()]
            else:
                container = isinstance(value, (dict, list, set))
                state[f"{name}: {attribute}"] = copy.copy(value) if container else value
    return state


def _fingerprint(tensor: torch.Tensor | None) -> Any:
    if tensor is None:
        return None
    flat = tensor.detach().contiguous().reshape(-1)
    return (
        id(tensor),
        hashlib.blake2b(flat.view(torch.uint8).numpy().tobytes()).hexdigest(),
        tensor.dtype,
        tensor.shape,
        tensor.stride(),
        tensor.data_ptr(),
        tensor._version,
        tensor.requires_grad,
        None if tensor.grad is None else id(tensor.grad),
    )
