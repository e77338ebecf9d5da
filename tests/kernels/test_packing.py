"""Packed weights: every weight at its place, zeros elsewhere, few multiplications by them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastres.errors import InputError
from fastres.kernels.packing import (
    groups_together,
    pack_conv2d,
    pack_linear,
    packed_shape,
    rounded,
    super_groups,
)
from tests.support.kernel_oracle import rounded_to_tf32

# channels and filters per group, groups -> groups of a super-group
TOGETHER = {
    (64, 64, 1): 1,
    (4, 4, 32): 8,  # ResNeXt 32x4d, conv2_x
    (8, 8, 32): 4,
    (16, 16, 32): 2,
    (32, 32, 32): 1,
    (64, 64, 2): 1,
    (1, 1, 96): 32,  # depthwise
    (1, 1, 7): 7,
    (1, 2, 24): 12,  # 16 do not divide 24
    (3, 5, 5): 5,
    (11, 3, 5): 1,  # 2 do not divide 5
    (40, 8, 2): 1,
    (4, 40, 4): 1,
}


@pytest.mark.parametrize(("shape", "expected"), TOGETHER.items(), ids=str)
def test_groups_that_are_packed_together(shape: tuple[int, int, int], expected: int) -> None:
    assert groups_together(*shape) == expected


def convolve_packed(x: torch.Tensor, packed: torch.Tensor, k: int, r: int, s: int) -> torch.Tensor:
    """The convolution of each super-group's channels with its dense weight."""
    blocks = packed if packed.dim() == 3 else packed[None]
    images = x.chunk(len(blocks), dim=1)
    return torch.cat(
        [
            torch.conv2d(image, block.unflatten(1, (r, s, -1)).permute(0, 3, 1, 2))
            for image, block in zip(images, blocks, strict=True)
        ],
        dim=1,
    )


@given(
    channels=st.integers(1, 6),
    filters=st.integers(1, 6),
    groups=st.integers(1, 24),
    r=st.integers(1, 3),
    s=st.integers(1, 3),
)
@settings(max_examples=30)
def test_packed_weight_convolves_as_the_grouped_one(
    channels: int, filters: int, groups: int, r: int, s: int
) -> None:
    c, k = channels * groups, filters * groups
    weight = torch.randn(k, channels, r, s, dtype=torch.float64)
    x = torch.randn(2, c, r + 1, s, dtype=torch.float64)
    packed = pack_conv2d(weight, groups)
    assert packed.shape == packed_shape(c, k, r, s, groups)
    assert packed.is_contiguous()
    assert packed.count_nonzero() == weight.count_nonzero()
    torch.testing.assert_close(
        convolve_packed(x, packed, k, r, s), torch.conv2d(x, weight, groups=groups)
    )


def test_without_groups_the_packed_weight_is_channels_last_memory() -> None:
    weight = torch.randn(5, 4, 3, 2)
    rows = weight.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
    assert torch.equal(pack_conv2d(weight), rows.reshape(5, 24))


@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_packing_keeps_the_dtype_and_copies(groups: int, dtype: torch.dtype) -> None:
    weight = torch.randn(8, 8 // groups, 1, 1).to(dtype)
    packed = pack_conv2d(weight, groups)
    assert packed.dtype == dtype
    packed.zero_()
    assert weight.count_nonzero() > 0


@pytest.mark.parametrize("groups", [1, 32])
def test_packing_takes_meta_tensors(groups: int) -> None:
    weight = torch.empty(128, 128 // groups, 3, 3, device="meta")
    packed = pack_conv2d(weight, groups)
    assert packed.device.type == "meta"
    assert packed.shape == packed_shape(128, 128, 3, 3, groups)


def test_a_weight_with_nan_stays_in_its_own_group() -> None:
    weight = torch.full((8, 4, 1, 1), 1.0)
    weight[0, 0] = float("nan")
    packed = pack_conv2d(weight, 2)
    assert packed.isnan().sum() == 1
    assert packed[0, 0, 0].isnan()


def test_resnext_is_packed_into_blocks_of_32_channels() -> None:
    assert [super_groups(c, c, 32) for c in (128, 256, 512, 1024)] == [4, 8, 16, 32]


@pytest.mark.parametrize("groups", [1, 4])
def test_weights_for_tf32_are_rounded_to_the_nearest(groups: int) -> None:
    weight = torch.randn(8, 8 // groups, 3, 3).transpose(2, 3)
    packed = pack_conv2d(weight, groups, "tf32")
    assert torch.equal(packed, pack_conv2d(rounded_to_tf32(weight), groups))
    assert not torch.equal(packed, pack_conv2d(weight, groups))
    for precision in (None, "fp32"):
        assert torch.equal(pack_conv2d(weight, groups, precision), pack_conv2d(weight, groups))
    matrix = torch.randn(5, 7)
    assert torch.equal(pack_linear(matrix, "tf32"), rounded_to_tf32(matrix))


def test_rounding_to_tf32_keeps_infinity_and_every_nan() -> None:
    nans = torch.tensor([0x7FFFFFFF, 0x7FC00000, -1], dtype=torch.int32).view(torch.float32)
    assert rounded(nans, "tf32").isnan().all()
    ends = torch.tensor([float("inf"), float("-inf"), 0.0, 1.0, -(1 + 2.0**-10)])
    assert torch.equal(rounded(ends, "tf32"), ends)
    assert rounded(torch.tensor(1 + 2.0**-11), "tf32") == 1 + 2.0**-10  # ties away from zero


def test_linear_weights_are_copied() -> None:
    weight = torch.randn(3, 5).t()
    packed = pack_linear(weight)
    assert packed.is_contiguous()
    assert torch.equal(packed, weight)
    packed.zero_()
    assert weight.count_nonzero() > 0


def test_what_cannot_be_packed() -> None:
    with pytest.raises(InputError, match=r"shape \[4, 2, 3\] with groups=1: expected"):
        pack_conv2d(torch.zeros(4, 2, 3))
    with pytest.raises(InputError, match=r"groups=3: expected .* filters divisible by groups"):
        pack_conv2d(torch.zeros(4, 2, 3, 3), 3)
    with pytest.raises(InputError, match=r"groups=0"):
        pack_conv2d(torch.zeros(4, 2, 3, 3), 0)
    with pytest.raises(InputError, match=r"shape \[4\]: expected two axes"):
        pack_linear(torch.zeros(4))
