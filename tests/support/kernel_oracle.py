"""The kernels' judge, and tensors that catch kernels reading or writing where they must not.

What is held against a kernel is torch's own error in the same precision. Reference results are
always computed on the CPU, also where the kernel runs on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

PRECISIONS: dict[str, torch.dtype] = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "tf32": torch.float32,
    "fp32": torch.float32,
}
"""Each precision's dtype of activations and weights."""

EPSILON = {
    "fp16": torch.finfo(torch.float16).eps,
    "bf16": torch.finfo(torch.bfloat16).eps,
    "tf32": 2.0**-10,
    "fp32": torch.finfo(torch.float32).eps,
}
"""Distance from 1 to the next number of each precision."""

# The floor under a bound, in units in the last place of the output's largest value: torch's error
# on a handful of numbers can be zero by luck, and an error this small is never a mistake.
FLOOR_ULPS = {"fp16": 1.0, "bf16": 1.0, "tf32": 1.0, "fp32": 3.0}

GUARD_ELEMENTS = 4096
"""The least number of elements before and behind a guarded tensor; keeps 16-byte alignment."""

_GUARD = 113


def assert_kernel_as_accurate(
    got: Tensor,
    oracle64: Tensor,
    torch_same_precision: Tensor,
    precision: str,
    factor: float = 2.0,
) -> None:
    """Assert that ``got`` errs at most ``factor`` times as much as torch in the same precision.

    Errors are the largest absolute deviations from ``oracle64``, relative to its largest finite
    value; below ``FLOOR_ULPS`` nothing is held against a kernel.

    Args:
        got: the kernel's result, on any device.
        oracle64: the reference on the same inputs in float64.
        torch_same_precision: the reference in the kernel's own precision.
        precision: "fp16", "bf16", "tf32" or "fp32".

    Raises:
        AssertionError: too large an error; another shape or dtype; NaN or an infinity that is not
            where the oracle, rounded to the same dtype, has one.
    """
    dtype = PRECISIONS[precision]
    assert got.dtype == dtype, f"{got.dtype} is not {dtype}"
    assert oracle64.dtype == torch.float64, f"an oracle in {oracle64.dtype} is none"
    assert got.shape == oracle64.shape, f"{tuple(got.shape)} is not {tuple(oracle64.shape)}"
    assert torch_same_precision.shape == oracle64.shape
    ours, theirs = got.detach().cpu(), torch_same_precision.detach().cpu().double()
    rounded = oracle64.to(dtype)
    _assert_in_the_same_places("NaN", ours.isnan(), rounded.isnan())
    _assert_in_the_same_places("+inf", ours.isposinf(), rounded.isposinf())
    _assert_in_the_same_places("-inf", ours.isneginf(), rounded.isneginf())
    finite = rounded.isfinite()
    if not finite.any():
        return
    scale = float(oracle64[finite].abs().max()) or 1.0
    deviation = torch.where(finite, (ours.double() - oracle64).abs(), 0.0)
    error = float(deviation.max()) / scale
    comparable = finite & theirs.isfinite()
    own = float(torch.where(comparable, (theirs - oracle64).abs(), 0.0).max()) / scale
    bound = max(factor * own, FLOOR_ULPS[precision] * EPSILON[precision])
    if error > bound:
        place = tuple(int(i) for i in torch.unravel_index(deviation.argmax(), deviation.shape))
        wrong = int((deviation > bound * scale).sum())
        raise AssertionError(
            f"error {error:.3g} of the largest value, torch's own in {precision} is {own:.3g}, "
            f"allowed {bound:.3g}; {wrong} of {deviation.numel()} elements are off, the worst at "
            f"{place}: {float(ours[place]):.6g}, wanted {float(oracle64[place]):.6g}"
        )


def _assert_in_the_same_places(what: str, got: Tensor, wanted: Tensor) -> None:
    if not torch.equal(got, wanted):
        place = tuple(int(i) for i in (got != wanted).nonzero()[0])
        raise AssertionError(
            f"{what} in {int(got.sum())} places, wanted in {int(wanted.sum())}; first at {place}: "
            f"{'has' if got[place] else 'lacks'} it"
        )


def judge(
    got: Tensor, oracle: Callable[..., Tensor], arguments: tuple[Any, ...], precision: str
) -> None:
    """``assert_kernel_as_accurate`` against ``oracle(*arguments)``, computed both ways here."""
    wanted, same = oracle(*in_float64(arguments)), oracle(*in_precision(arguments, precision))
    assert_kernel_as_accurate(got, wanted, same, precision)


def in_float64(arguments: Any) -> Any:
    """Copies of all tensors in a nested structure, on the CPU; floating-point ones in float64."""

    def change(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        leaf = leaf.detach().cpu()
        return leaf.double() if leaf.is_floating_point() else leaf

    return pytree.tree_map(change, arguments)


def in_precision(arguments: Any, precision: str) -> Any:
    """The same with floating-point tensors as torch gets them for ``precision``.

    For tf32 they are float32, rounded to its 10 bits of fraction as a GPU's tensor cores do.
    """

    def change(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        leaf = leaf.detach().cpu()
        if not leaf.is_floating_point():
            return leaf
        leaf = leaf.to(PRECISIONS[precision])
        return rounded_to_tf32(leaf) if precision == "tf32" else leaf

    return pytree.tree_map(change, arguments)


def rounded_to_tf32(x: Tensor) -> Tensor:
    """float32 numbers rounded to the nearest with 10 bits of fraction, ties away from zero."""
    bits = x.contiguous().view(torch.int32)
    rounded = ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
    return torch.where(x.isfinite(), rounded.view(x.shape), x)


def random_tensor(*shape: int, precision: str, device: str = "cpu", scale: float = 1.0) -> Tensor:
    """Normal numbers, row-major; drawn on the CPU so that they are the same on every device."""
    return (torch.randn(shape) * scale).to(PRECISIONS[precision]).to(device)


def random_images(*shape: int, precision: str, device: str = "cpu", scale: float = 1.0) -> Tensor:
    """Normal numbers [N, C, H, W] in channels-last memory, between NaN (see :func:`fenced`)."""
    return fenced(random_tensor(*shape, precision=precision, scale=scale).to(device))


def random_vector(size: int, device: str = "cpu", scale: float = 1.0) -> Tensor:
    """A bias, a scale or a shift: float32 whatever the precision, between NaN."""
    return fenced((torch.randn(size) * scale).to(device))


def channels_last(x: Tensor) -> Tensor:
    """Dense channels-last memory, also where torch thinks that any order is (one channel, say)."""
    out = torch.empty_strided(
        x.shape, channels_last_strides(x.shape), dtype=x.dtype, device=x.device
    )
    return out.copy_(x)


def channels_last_strides(shape: Any) -> tuple[int, ...]:
    """Strides of a dense [N, C, H, W] tensor whose channels lie next to each other."""
    _, c, h, w = shape
    return (h * w * c, 1, w * c, c)


def fenced(x: Tensor) -> Tensor:
    """The same numbers inside a larger buffer of NaN (or of 255): to read beyond them shows.

    Four-dimensional tensors become channels-last, others row-major; both dense.
    """
    inner = _inside(x.shape, x.dtype, x.device)[1]
    return inner.copy_(x)


def strided(x: Tensor) -> Tensor:
    """The same numbers at every other place of a larger buffer of NaN: a view that is not dense."""
    wide = _poison(torch.empty([2 * size for size in x.shape], dtype=x.dtype, device=x.device))
    view = wide[tuple(slice(None, None, 2) for _ in x.shape)]
    return view.copy_(x)


def layouts(x: Tensor) -> dict[str, Tensor]:
    """Images at other places in memory: what a public function must take as well."""
    return {
        "NCHW": x.contiguous(memory_format=torch.contiguous_format).clone(),
        "strided": strided(x),
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "batch last": x.movedim(0, -1).contiguous().movedim(-1, 0),
    }


@contextmanager
def guarded_output(
    *shape: int, precision: str = "fp32", device: str = "cpu", dtype: torch.dtype | None = None
) -> Iterator[Tensor]:
    """A poisoned output tensor; assert at the end that nothing around it was written.

    Four-dimensional tensors are channels-last, others row-major. What the kernel leaves unwritten
    stays NaN, which :func:`assert_kernel_as_accurate` finds.
    """
    dtype = PRECISIONS[precision] if dtype is None else dtype
    buffer, inner = _inside(shape, dtype, torch.device(device))
    buffer.fill_(_GUARD)  # not NaN, which is what a kernel makes of what it read out of bounds
    _poison(inner)
    before = buffer.clone()
    start, end = inner.storage_offset(), inner.storage_offset() + inner.numel()
    yield inner
    for name, part in (("before", slice(0, start)), ("behind", slice(end, None))):
        changed = (_bits(buffer[part]) != _bits(before[part])).nonzero().flatten()
        assert changed.numel() == 0, (
            f"{changed.numel()} elements {name} the output were written, the first one "
            f"{int(changed[0])} elements into that part"
        )


def _inside(shape: Any, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """A poisoned buffer and a dense tensor in its middle."""
    size = 1
    for length in shape:
        size *= length
    # As wide as the tensor itself, so that a whole row or image too far still falls into it.
    guard = -(-max(size, GUARD_ELEMENTS) // 16) * 16
    buffer = _poison(torch.empty(size + 2 * guard, dtype=dtype, device=device))
    if len(shape) == 4:
        strides = channels_last_strides(shape)
    else:
        strides = torch.empty(tuple(shape), device="meta").stride()
    return buffer, buffer.as_strided(tuple(shape), strides, guard)


def _poison(x: Tensor) -> Tensor:
    return x.fill_(float("nan")) if x.is_floating_point() else x.fill_(torch.iinfo(x.dtype).max)


def _bits(x: Tensor) -> Tensor:
    """NaN equals itself as an integer."""
    return x.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.itemsize])
