"""Configurations of the convolution as values: what is refused, and how work is split."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastres.errors import OptionError
from fastres.kernels.spec import ConvSpec
from fastres.kernels.tuning.conv2d import (
    Conv2dConfig,
    allows_descriptors,
    candidates,
    choose_conv2d,
    counters,
    steps,
    tiles,
    tuned_candidates,
    used_splits,
)
from fastres.kernels.tuning.gpus import ARCHITECTURES, GPUS, by_name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_m": 8}, "block_m=8: expected a power of two of at least 16"),
        ({"block_n": 48}, "block_n=48: expected a power of two"),
        ({"block_k": 0}, "block_k=0: expected a power of two"),
        ({"num_warps": 3}, "num_warps=3: expected 1, 2, 4, 8 or 16"),
        ({"split_k": 0}, "split_k=0: expected at least 1"),
        ({"group_m": -1}, "group_m=-1: expected at least 1"),
        ({"num_stages": 0}, "num_stages=0: expected at least 1"),
        ({"split_k": 2, "descriptors": True}, "split_k=2 with descriptors=True"),
        ({"fused_sum": True}, "fused_sum=True with split_k=1: expected sums to add"),
    ],
)
def test_configurations_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Conv2dConfig(**{"block_m": 16, "block_n": 16, "block_k": 16, **changes})


@given(
    channels=st.integers(1, 300),
    r=st.integers(1, 3),
    split_k=st.integers(1, 40),
    k=st.sampled_from([16, 32]),
)
def test_every_split_has_steps_and_together_they_have_all(
    channels: int, r: int, split_k: int, k: int
) -> None:
    spec = ConvSpec(1, channels, 8, 8, 16, r, r)
    config = Conv2dConfig(16, 16, k, split_k=split_k)
    total, splits = steps(spec, config), used_splits(spec, config)
    assert 1 <= splits <= split_k
    each = math.ceil(total / splits)  # as the kernel computes it
    assert (splits - 1) * each < total <= splits * each


def test_tiles_count_super_groups_and_splits() -> None:
    config = Conv2dConfig(32, 16, 16, split_k=2)
    assert tiles(ConvSpec(2, 64, 5, 5, 40, 1, 1), config) == 2 * 3 * 2
    assert tiles(ConvSpec(2, 128, 5, 5, 128, 1, 1, groups=32), config) == 2 * 2 * 4 * 2


def test_a_counter_for_each_tile_whose_sums_the_last_program_adds() -> None:
    config = Conv2dConfig(32, 16, 16, split_k=2, fused_sum=True)
    spec = ConvSpec(2, 64, 5, 5, 40, 1, 1)
    assert counters(spec, config) == 2 * 3
    assert counters(spec, replace(config, fused_sum=False)) == 0
    assert counters(replace(spec, c=16), config) == 0, "one step cannot be split"


def test_only_timing_chooses_sums_in_the_same_launch() -> None:
    spec, gpu = ConvSpec(1, 512, 7, 7, 512, 3, 3, padding=(1, 1, 1, 1)), by_name("h100")
    assert choose_conv2d(spec, "fp16", gpu).split_k > 1
    assert not any(config.fused_sum for config in candidates(spec, "fp16", gpu))
    found = tuned_candidates(spec, "fp16", gpu)
    assert found[0].fused_sum, "the model finds them faster, and is not believed"
    assert {replace(config, fused_sum=False) for config in found} == set(
        candidates(spec, "fp16", gpu)
    )


def test_shared_memory_is_for_the_steps_in_flight() -> None:
    config = Conv2dConfig(128, 64, 32, num_stages=3)
    one = (128 + 64) * 32 * 2
    assert config.shared_bytes("fp16", ARCHITECTURES["sm_80"]) == 2 * one
    assert config.shared_bytes("fp16", ARCHITECTURES["sm_90"]) == 3 * one
    assert config.shared_bytes("fp32", ARCHITECTURES["sm_90"]) == 2 * 2 * one
    single = Conv2dConfig(128, 64, 32, num_stages=1)
    assert single.shared_bytes("fp16", ARCHITECTURES["sm_80"]) == one


@pytest.mark.parametrize(
    ("spec", "precision", "reason"),
    [
        (ConvSpec(1, 8, 3, 3, 16, 1, 1), "fp16", None),
        (ConvSpec(1, 4, 3, 3, 12, 1, 1), "tf32", None),
        (ConvSpec(1, 4, 3, 3, 16, 1, 1), "bf16", "rows of C=4 not a multiple of 16 bytes"),
        (ConvSpec(1, 8, 3, 3, 12, 1, 1), "fp16", "rows of K=12 not a multiple of 16 bytes"),
        (ConvSpec(1, 8, 3, 3, 16, 1, 1, (1, 2)), "fp16", "not pointwise"),
        (ConvSpec(1, 8, 3, 3, 16, 1, 1, padding=(0, 1, 0, 0)), "fp16", "not pointwise"),
        (ConvSpec(1, 8, 3, 3, 16, 2, 1), "fp16", "not pointwise"),
        (ConvSpec(1, 16, 3, 3, 16, 1, 1, groups=2), "fp16", "not pointwise"),
    ],
    ids=str,
)
def test_what_descriptors_can_address(spec: ConvSpec, precision: str, reason: str | None) -> None:
    assert allows_descriptors(spec, precision) == reason


@pytest.mark.parametrize("gpu", ["a100", "h100", "mi300x"])
def test_descriptors_are_offered_where_hardware_and_tensors_have_them(gpu: str) -> None:
    pointwise, other = ConvSpec(1, 64, 8, 8, 64, 1, 1), ConvSpec(1, 64, 8, 8, 64, 3, 3)
    offered = {config.descriptors for config in candidates(pointwise, "fp16", GPUS[gpu])}
    assert offered == ({True, False} if gpu == "h100" else {False})
    assert not any(config.descriptors for config in candidates(other, "fp16", GPUS[gpu]))


def test_every_problem_has_a_candidate_on_every_gpu() -> None:
    without = [
        (name, precision, spec)
        for rows in (1, 12, 17, 40, 200)
        for filters in (1, 16, 17, 33, 64)
        for spec in [ConvSpec(rows, 16, 1, 1, filters, 1, 1)]
        for name, gpu in GPUS.items()
        for precision in ("fp16", "tf32", "fp32")
        if next(candidates(spec, precision, gpu), None) is None
    ]
    assert without == []
