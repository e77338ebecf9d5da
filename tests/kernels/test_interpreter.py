"""The interpreter under which kernels are tested does what a GPU does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from tests.support import interpreter


@triton.jit  # type: ignore[untyped-decorator]
def load_kernel(x_ptr, out_ptr, size, OTHER: tl.constexpr):  # type: ignore[no-untyped-def]
    offs = tl.arange(0, 8)
    if OTHER is None:
        x = tl.load(x_ptr + offs, mask=offs < size)
    else:
        x = tl.load(x_ptr + offs, mask=offs < size, other=OTHER)
    tl.store(out_ptr + offs, x.to(out_ptr.dtype.element_ty))


def loaded(x: torch.Tensor, other: float | None, dtype: torch.dtype) -> torch.Tensor:
    out = torch.empty(8, dtype=dtype)
    load_kernel[(1,)](x, out, 5, OTHER=other)
    return out


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_masked_load_without_other_gives_garbage(dtype: torch.dtype) -> None:
    interpreter.install()
    x = torch.ones(8, dtype=dtype)
    assert loaded(x, None, dtype).isnan().tolist() == [False] * 5 + [True] * 3
    assert loaded(x, 7.0, dtype).tolist() == [1.0] * 5 + [7.0] * 3


def test_float32_becomes_the_nearest_bfloat16(device: str) -> None:
    x = torch.cat([torch.randn(6), torch.tensor([math.inf, 3.4e38])])
    x[0], x[1] = 1 + 2**-8, 1 + 3 * 2**-8  # ties
    out = torch.empty(8, dtype=torch.bfloat16, device=device)
    load_kernel[(1,)](x.to(device), out, 8, OTHER=0.0)
    assert torch.equal(out.cpu(), x.to(torch.bfloat16))


def test_all_kinds_of_numbers_become_the_nearest_bfloat16() -> None:
    bits = torch.randint(-(2**31), 2**31, (100_000,), dtype=torch.int64).to(torch.int32)
    x = bits.view(torch.float32)
    got = torch.from_numpy(interpreter.bfloat16_bits(x.numpy()).view(np.int16)).view(torch.bfloat16)
    wanted = x.to(torch.bfloat16)
    assert torch.equal(got.isnan(), wanted.isnan())
    assert torch.equal(got.nan_to_num(0.0), wanted.nan_to_num(0.0))
