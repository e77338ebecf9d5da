"""Is an answer right? Against float64, with torch's own error in the same precision as measure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_day.faults import spoilt
from benchmarks.gpu_day.settings import REHEARSED

Tensors = Sequence[Tensor | None]

FACTOR = 2.0
"""How many times torch's own error ours may be."""

ULPS = {"fp16": 2.0**-10, "bf16": 2.0**-6 if REHEARSED else 2.0**-7, "tf32": 2.0**-10}
"""One unit in the last place of the largest value: what rounding an answer alone may cost.

Triton's interpreter cuts float32 off to bfloat16 where GPUs round it.
"""


def floor(precision: str, length: int) -> float:
    """An error, relative to the largest value, that is no mistake whatever torch's own is.

    float32 answers are wrong by what adding up ``length`` products costs. Each addition rounds a
    partial sum by at most 2**-24 of it; signs are as good as random, so that the errors of n
    additions grow like sqrt(n) (Higham and Mary, "A new approach to probabilistic rounding error
    analysis", 2019), and an order of summation that is another than torch's may be off by as much
    where torch is not by luck. A few roundings more are the bias, the residual and the answer's
    own. A product in TF32 (2**-11) or one that is missing (1 / sqrt(n)) is far above. In the other
    precisions rounding the answer exceeds that.
    """
    sums = math.sqrt(max(length, 1)) * 2.0**-24
    return ULPS.get(precision, 0.0) + max(sums, 2.0**-22)


def judge(
    actual: Tensor,
    oracle: Callable[[Tensors], Tensor],
    tensors: Tensors,
    length: int,
    precision: str,
    nan: bool = False,
) -> dict[str, Any]:
    """Whether a kernel's answer is right.

    Args:
        actual: the answer.
        oracle: the operator in plain torch.
        tensors: its arguments, in the kernel's dtype.
        length: products and additions behind each number, one after the other.
        precision: the kernel's.
        nan: whether there is NaN or infinity in the arguments. cuDNN spreads it to other groups,
            so that the answer in float64 is not asked of it, and torch's own error counts only
            where torch has a number.
    """
    actual = spoilt(actual)
    with torch.backends.cudnn.flags(enabled=not nan):
        exact = oracle([None if t is None else t.double() for t in tensors])
    torch_output = oracle(list(tensors)).double()
    rounded = exact.to(actual.dtype)
    same = all(
        torch.equal(kind(actual), kind(rounded))
        for kind in (torch.isnan, torch.isposinf, torch.isneginf)
    )
    finite = rounded.isfinite()
    scale = float(exact[finite].abs().max()) if bool(finite.any()) else 0.0

    def worst(output: Tensor, mask: Tensor) -> float:
        if exact.numel() == 0:
            return 0.0
        difference = torch.where(mask, (output.double() - exact).abs(), 0.0)
        return float(difference.max()) / (scale or 1.0)  # all zero: what is not is wrong by itself

    our_error, torch_error = (
        worst(actual, finite),
        worst(torch_output, finite & torch_output.isfinite()),
    )
    bound = max(FACTOR * torch_error, floor(precision, length))
    return {
        "ok": same and our_error <= bound,
        "error": our_error,
        "torchs": torch_error,
        "bound": bound,
        "same NaN and infinity": same,
    }


def relative_error(output: Tensor, exact: Tensor) -> float:
    """Root-mean-square error, relative; infinite where either is no number."""
    difference = (output.double() - exact.double()).square().sum().sqrt()
    value = float(difference / exact.double().square().sum().sqrt().clamp_min(1e-30))
    return value if math.isfinite(value) else math.inf
