"""The recorder of addresses sees what kernels touch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastres.kernels.launch.elementwise import add_relu_calls, scale_shift_calls
from fastres.kernels.tuning.elementwise import ElementwiseConfig
from tests.support.addresses import accesses, last_program, touched


@pytest.mark.parametrize("where", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_row_is_read_and_written_once(where: str, dtype: torch.dtype) -> None:
    x, y, out = (torch.zeros(21, dtype=dtype, device=where) for _ in range(3))
    (call,) = add_relu_calls(x, y, out, ElementwiseConfig(16))
    assert call.grid == (2, 1, 1)
    first, last = accesses(call), accesses(call, last_program(call))
    for kind, name in (("load", "x_ptr"), ("load", "y_ptr"), ("store", "out_ptr")):
        assert touched(first, kind, name).tolist() == list(range(16))
        assert touched(last, kind, name).tolist() == list(range(16, 21))
    assert len(first) == 3


def test_nothing_is_computed() -> None:
    x = torch.ones(2, 3, dtype=torch.float32)
    scale, shift = torch.ones(3), torch.ones(3)
    (call,) = scale_shift_calls(x, scale, shift, x, "none")
    assert np.array_equal(touched(accesses(call), "load", "scale_ptr"), [0, 1, 2])
    assert torch.equal(x, torch.ones(2, 3))
