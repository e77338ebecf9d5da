"""Memory formats and dtypes of images: every number arrives, and nothing else is written."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fastres.errors import InputError
from fastres.kernels.launch.layout import convert_calls, to_channels_last, to_nchw
from fastres.kernels.tuning.elementwise import TransposeConfig, choose_transpose
from tests.support.addresses import accesses, last_program, touched
from tests.support.kernel_oracle import (
    PRECISIONS,
    channels_last_strides,
    fenced,
    guarded_output,
    layouts,
    random_images,
    random_tensor,
)

SHAPES = {
    "photographs": (2, 3, 9, 11),
    "several tiles and partial ones": (2, 37, 7, 9),
    "whole tiles": (1, 32, 8, 8),
    "one pixel": (2, 19, 1, 1),
    "one channel": (2, 1, 5, 7),
    "one of everything": (1, 1, 1, 1),
    "empty batch": (0, 3, 4, 4),
}
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SMALL = TransposeConfig(16, 32)


def fenced_nchw(x: Tensor) -> Tensor:
    return fenced(x.reshape(-1)).view(x.shape)


def check_convert(
    shape: tuple[int, ...], source: torch.dtype, target: torch.dtype, device: str
) -> None:
    """From and to both formats; the only arithmetic is torch's own rounding."""
    x = (torch.randn(shape) * 50 + 100).clamp(0, 255).to(source)
    wanted = x.to(target)
    for given in (fenced(x.to(device)), fenced_nchw(x.to(device))):
        with guarded_output(*shape, dtype=target, device=device) as out:
            for call in convert_calls(given, out, SMALL):
                call.run()
        assert torch.equal(out.cpu(), wanted)
        with guarded_output(math.prod(shape), dtype=target, device=device) as flat:
            for call in convert_calls(given, flat.view(shape), SMALL):
                call.run()
        assert torch.equal(flat.view(shape).cpu(), wanted)


@pytest.mark.parametrize("name", SHAPES)
def test_both_ways(name: str, device: str) -> None:
    check_convert(SHAPES[name], torch.float32, torch.float32, device)


@pytest.mark.parametrize("target", DTYPES)
@pytest.mark.parametrize("source", [*DTYPES, torch.uint8])
def test_casts(source: torch.dtype, target: torch.dtype, device: str) -> None:
    check_convert((2, 3, 5, 7), source, target, device)


def test_casts_of_special_numbers(device: str) -> None:
    x = random_tensor(2, 5, 3, 2, precision="fp32")
    x[1, :, 2, 1] = torch.tensor([math.nan, math.inf, -math.inf, 1e5, 1 + 2**-9])
    for dtype in DTYPES:
        wanted = x.to(dtype)
        for got in (to_channels_last(x.to(device), dtype), to_nchw(x.to(device), dtype)):
            assert torch.equal(got.isnan().cpu(), wanted.isnan())
            assert torch.equal(got.cpu().nan_to_num(7.0), wanted.nan_to_num(7.0))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_public_functions(precision: str, device: str) -> None:
    x = random_images(2, 5, 4, 3, precision=precision, device=device)
    for name, given in {"channels last": x, **layouts(x)}.items():
        got = to_channels_last(given)
        assert torch.equal(got, x), name
        assert got.stride() == channels_last_strides(x.shape)
        assert got.data_ptr() != given.data_ptr()
        back = to_nchw(given)
        assert torch.equal(back, x), name
        assert back.is_contiguous()


def check_large_transposition() -> None:
    """The last tile of a tensor that is not there, both ways."""
    n, c, h, w = 2**16, 33, 2**5, 2**6
    nchw = torch.empty(n, c, h, w, dtype=torch.float16, device="meta")
    nhwc = torch.empty(n, h, w, c, dtype=torch.float16, device="meta").permute(0, 3, 1, 2)
    for x, out, rows, columns in ((nchw, nhwc, c, h * w), (nhwc, nchw, h * w, c)):
        (call,) = convert_calls(x, out)
        found = accesses(call, last_program(call))
        high, wide = call.constants["BLOCK_SIZE_R"], call.constants["BLOCK_SIZE_C"]
        r = np.arange((rows - 1) // high * high, rows, dtype=np.int64)
        s = np.arange((columns - 1) // wide * wide, columns, dtype=np.int64)
        first = (n - 1) * c * h * w
        read = (first + r[:, None] * columns + s).flatten()
        written = np.sort((first + s[:, None] * rows + r).flatten())
        assert np.array_equal(touched(found, "load", "x_ptr"), read)
        assert np.array_equal(touched(found, "store", "out_ptr"), written)


def test_offsets_past_32_bits() -> None:
    check_large_transposition()


@pytest.mark.parametrize(
    ("rows", "columns", "tile"),
    [
        (64, 3136, (64, 64)),
        (3136, 64, (64, 64)),
        (3, 50176, (4, 1024)),
        (50176, 3, (1024, 4)),
        (1, 49, (1, 64)),
        (49, 1, (64, 1)),
        (2048, 49, (64, 64)),
    ],
)
def test_tiles(rows: int, columns: int, tile: tuple[int, int]) -> None:
    config = choose_transpose(rows, columns)
    assert (config.block_rows, config.block_columns) == tile


def test_refusals() -> None:
    x = random_images(2, 3, 4, 5, precision="fp32")
    with pytest.raises(InputError, match="x has 3 axes: expected four"):
        to_channels_last(x[0])
    with pytest.raises(InputError, match=r"out is \[1, 3, 4, 5\].*two tensors \[N, C, H, W\] of"):
        convert_calls(x, x[:1])
    with pytest.raises(InputError, match=r"out of torch.uint8: expected one of float16"):
        to_nchw(x, torch.uint8)
    with pytest.raises(InputError, match=r"x of torch.int64: expected one of float16"):
        to_nchw(x.long())
    with pytest.raises(InputError, match=r"x .*has strides .*expected dense NCHW or channels-last"):
        convert_calls(layouts(x)["strided"], x)
    with pytest.raises(InputError, match="of one shape on one device"):
        convert_calls(x, x.to("meta"))
