"""The cost model: what must hold whatever its constants, and which choices come out of it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastres.kernels.spec import BottleneckSpec, ConvSpec, PoolLinearSpec, StemSpec
from fastres.kernels.tuning import conv2d, cost, gpus
from fastres.kernels.tuning.bottleneck import candidates as bottleneck_candidates
from fastres.kernels.tuning.bottleneck import choose_bottleneck, estimate_bottleneck
from fastres.kernels.tuning.conv2d import Conv2dConfig, choose_conv2d, estimate_conv2d
from fastres.kernels.tuning.cost import Loop, Work, estimate, floor_seconds, streaming
from fastres.kernels.tuning.fusing import (
    as_if_ours,
    modelled,
    seconds_unfused,
    why_library,
    why_not_fused,
)
from fastres.kernels.tuning.gpus import GPUS, Gpu
from fastres.kernels.tuning.traffic import Spec, flops, least_bytes

A100, H100, T4 = GPUS["a100"], GPUS["h100"], GPUS["t4"]
PAD = (1, 1, 1, 1)
OURS = [gpu for gpu in GPUS.values() if why_library(gpu) is None]


def conv(n: int = 32, c: int = 128, size: int = 28, k: int = 128, r: int = 3) -> ConvSpec:
    return ConvSpec(n, c, size, size, k, r, r, padding=PAD if r == 3 else (0, 0, 0, 0))


def bottleneck(n: int, width: int, size: int, next_k: int | None = None) -> BottleneckSpec:
    return BottleneckSpec(conv(n, width, size, width), 4 * width, None, next_k)


def work(**changes: object) -> Work:
    loop = Loop(steps=16, flops=2e6, fetched_bytes=32768, instructions=100, stages=3)
    base = Work(
        programs=432,
        num_warps=4,
        registers=128,
        shared_bytes=32768,
        loops=(loop,),
        bytes=5e7,
        flops=432 * 16 * 2e6,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


specs = st.builds(
    ConvSpec,
    n=st.integers(1, 64),
    c=st.sampled_from([1, 3, 16, 40, 64, 256]),
    h=st.integers(1, 56),
    w=st.integers(1, 56),
    k=st.sampled_from([1, 16, 64, 100, 512]),
    r=st.just(3),
    s=st.just(3),
    stride=st.sampled_from([(1, 1), (2, 2), (1, 2)]),
    padding=st.just(PAD),
)


@settings(max_examples=30)
@given(spec=specs, gpu=st.sampled_from(OURS), precision=st.sampled_from(gpus.PRECISIONS))
def test_the_choice_is_the_best_candidate_and_above_the_floor(
    spec: ConvSpec, gpu: Gpu, precision: str
) -> None:
    chosen = choose_conv2d(spec, precision, gpu)
    offered = list(conv2d.candidates(spec, precision, gpu))
    assert chosen in offered
    found = estimate_conv2d(spec, chosen, precision, gpu)
    best = min(estimate_conv2d(spec, each, precision, gpu).seconds for each in offered)
    assert best <= found.seconds <= 1.01 * best
    assert found.seconds >= floor_seconds(flops(spec), least_bytes(spec, precision), precision, gpu)
    assert math.isfinite(found.seconds)


@settings(max_examples=30)
@given(spec=specs, gpu=st.sampled_from(OURS))
def test_chosen_tiles_fit(spec: ConvSpec, gpu: Gpu) -> None:
    chosen = choose_conv2d(spec, "fp16", gpu)
    assert conv2d.fits(chosen, "fp16", gpu.architecture)
    assert chosen.shared_bytes("fp16", gpu.architecture) <= gpu.architecture.shared_bytes_per_block


def test_there_is_a_choice_for_the_smallest_problem() -> None:
    tiny = ConvSpec(1, 1, 1, 1, 1, 1, 1)
    seconds = {
        (name, precision): modelled(tiny, precision, gpu).estimate.seconds
        for name, gpu in GPUS.items()
        for precision in gpus.PRECISIONS
    }
    assert {case: found for case, found in seconds.items() if not 0 < found < 1e-4} == {}


def test_an_empty_batch_costs_nothing() -> None:
    spec = conv(n=0)
    assert estimate_conv2d(spec, choose_conv2d(spec, "fp16", A100), "fp16", A100).seconds == 0
    assert streaming(0, 0, A100).seconds == 0
    assert modelled(bottleneck(0, 64, 56), "fp16", A100).estimate.seconds == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"bytes": 5e9},
        {"programs": 433},
        {"registers": 255},
        {"shared_bytes": 160 * 1024},
        {"loops": (Loop(32, 2e6, 32768, 100, 3),)},
        {"loops": (Loop(16, 8e6, 32768, 100, 3),)},
        {"loops": (Loop(16, 2e6, 131072, 100, 3),)},
        {"loops": (Loop(16, 2e6, 32768, 4000, 3),)},
        {"loops": (Loop(16, 2e6, 32768, 100, 1),)},
    ],
)
def test_more_work_or_less_room_is_never_faster(changes: dict[str, object]) -> None:
    before, after = (estimate(each, "fp16", A100) for each in (work(), work(**changes)))
    assert after.seconds >= before.seconds


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({"bytes": 5e9}, "memory"),
        ({"loops": (Loop(16, 2e8, 32768, 100, 3),)}, "matrix"),
        ({"loops": (Loop(16, 2e6, 3e7, 100, 3),)}, "L2"),
        ({"loops": (Loop(16, 2e6, 32768, 40000, 3),)}, "issue"),
        (
            {"programs": 8, "loops": (Loop(64, 2e4, 256, 10, 2),), "bytes": 1e4, "flops": 1e7},
            "latency",
        ),
        ({"loops": (), "bytes": 10.0, "programs": 1, "flops": 0.0}, "launch"),
        ({"registers": 300}, "does not fit"),
    ],
)
def test_the_limit_is_named(changes: dict[str, object], limit: str) -> None:
    assert estimate(work(**changes), "fp16", A100).limit == limit


def test_the_last_wave_costs_a_whole_one() -> None:
    """108 multiprocessors hold 4 programs each: one more program than that is a second wave."""
    one = estimate(work(programs=432, bytes=0.0, flops=0.0), "fp16", A100)
    two = estimate(work(programs=433, bytes=0.0, flops=0.0), "fp16", A100)
    assert one.waves == pytest.approx(1.0)
    assert two.seconds - one.seconds > 0.25 * (one.seconds - cost.LAUNCH_S)


@pytest.mark.parametrize("gpu", [A100, H100, GPUS["l4"], GPUS["mi300x"]], ids=lambda g: g.name)
def test_time_grows_with_the_batch(gpu: Gpu) -> None:
    times = [modelled(conv(n), "fp16", gpu).estimate.seconds for n in (1, 8, 32, 128, 512)]
    assert times == sorted(times)


def test_faster_memory_is_never_slower() -> None:
    spec = conv(256, 64, 56, 256, 1)
    slow, fast = (modelled(spec, "fp16", GPUS[name]).estimate for name in ("h100", "h200"))
    assert fast.seconds < slow.seconds


def test_split_sums_for_one_image_and_not_for_many() -> None:
    late = ConvSpec(1, 512, 7, 7, 512, 3, 3, padding=PAD)
    assert choose_conv2d(late, "fp16", A100).split_k > 1
    assert choose_conv2d(late, "fp16", H100).split_k > 1
    assert choose_conv2d(replace(late, n=256), "fp16", A100).split_k == 1
    assert choose_conv2d(conv(256), "fp16", H100).split_k == 1


def test_tiles_are_large_where_there_is_work() -> None:
    few, many = (choose_conv2d(conv(n), "fp16", A100) for n in (1, 256))
    assert many.block_m * many.block_n >= 64 * 128
    assert few.block_m * few.block_n < many.block_m * many.block_n


def test_asynchronous_products_have_their_rows() -> None:
    assert choose_conv2d(conv(1), "fp16", H100).block_m >= 64


def test_channels_without_whole_copies_do_not_get_the_largest_tile() -> None:
    """Three channels are loaded one by one, and each load holds an address in registers."""
    stem = ConvSpec(32, 3, 224, 224, 64, 7, 7, (2, 2), (3, 3, 3, 3))
    chosen = choose_conv2d(stem, "fp16", H100)
    assert chosen.block_m * chosen.block_n <= 128 * 64 * chosen.num_warps // 4


@pytest.mark.parametrize("gpu", OURS, ids=lambda gpu: gpu.name)
def test_the_bottleneck_choice_is_a_candidate(gpu: Gpu) -> None:
    spec = bottleneck(32, 64, 56, 64)
    chosen = choose_bottleneck(spec, "fp16", gpu)
    assert chosen in list(bottleneck_candidates(spec, "fp16", gpu))
    found = estimate_bottleneck(spec, chosen, "fp16", gpu)
    floor = floor_seconds(flops(spec), least_bytes(spec, "fp16"), "fp16", gpu)
    assert floor < found.seconds < 20 * floor


@pytest.mark.parametrize("name", ["a100", "h100", "l4", "rtx4090"])
def test_early_tails_are_fused_at_any_batch(name: str) -> None:
    for batch in (8, 32, 256):
        assert why_not_fused(bottleneck(batch, 64, 56, 64), "fp16", GPUS[name]) is None


def test_late_tails_of_few_images_are_not_fused() -> None:
    """A program would make all 512 filters of its pixels, and most multiprocessors had none."""
    spec = bottleneck(1, 512, 7)
    reason = why_not_fused(spec, "fp16", A100)
    assert reason is not None and "as one kernel on a100" in reason
    assert modelled(spec, "fp16", A100).estimate.seconds > seconds_unfused(spec, "fp16", A100)


def test_what_fits_nowhere_says_so() -> None:
    reason = why_not_fused(bottleneck(32, 512, 7, 512), "fp16", GPUS["mi300x"])
    assert reason is not None and "do not fit" in reason


def test_unsupported_blocks_have_their_own_reason() -> None:
    spec = BottleneckSpec(replace(conv(), k=300), 1200)
    assert (
        why_not_fused(spec, "fp16", A100) == "300 filters are more than 256 and no multiple of 64"
    )


def test_a_convolution_is_nothing_fused() -> None:
    assert why_not_fused(conv(), "fp16", A100) is None


def test_without_tensor_cores_in_triton_the_library_is_taken() -> None:
    reason = why_library(T4)
    assert reason is not None and "no tensor-core instructions for sm_75" in reason
    assert why_not_fused(bottleneck(32, 64, 56), "fp16", T4) == reason
    assert modelled(conv(), "fp16", T4).configuration == "library"
    assert as_if_ours(T4).architecture.tensor_core == "mma"
    assert [gpu.name for gpu in GPUS.values() if why_library(gpu) is not None] == ["t4"]


def test_the_classifier_shares_its_means_only_for_few_images() -> None:
    few, many = (PoolLinearSpec(n, 512, 7, 7, 1000) for n in (1, 256))
    assert why_not_fused(few, "fp16", A100) is None
    assert why_not_fused(many, "fp16", A100) is not None


def test_the_stem_is_fused() -> None:
    stem = ConvSpec(32, 3, 224, 224, 64, 7, 7, (2, 2), (3, 3, 3, 3))
    spec = StemSpec(stem, (3, 3), (2, 2), (1, 1))
    assert why_not_fused(spec, "fp16", A100) is None


@pytest.mark.parametrize(
    ("spec", "elements"),
    [
        (ConvSpec(2, 8, 4, 4, 16, 1, 1), 2 * 16 * 8 + 16 * 8 + 2 * 16 * 16),
        # A strided 1x1 reads a quarter of the pixels, a 3x3 all of them.
        (ConvSpec(2, 8, 4, 4, 16, 1, 1, (2, 2)), 2 * 4 * 8 + 16 * 8 + 2 * 4 * 16),
        (
            ConvSpec(2, 8, 4, 4, 16, 3, 3, (2, 2), PAD),
            2 * 16 * 8 + 16 * 9 * 8 + 2 * 4 * 16,
        ),
        (ConvSpec(1, 8, 2, 2, 8, 1, 1, groups=4), 4 * 8 + 8 * 2 + 4 * 8),
        (
            BottleneckSpec(ConvSpec(1, 8, 4, 4, 8, 3, 3, padding=PAD), 32, None, 8),
            16 * 8 + 8 * 9 * 8 + 16 * 32 + 32 * 8 + 16 * 32 + 8 * 32 + 16 * 8,
        ),
        (
            BottleneckSpec(
                ConvSpec(1, 8, 4, 4, 8, 3, 3, (2, 2), PAD),
                32,
                ConvSpec(1, 16, 4, 4, 32, 1, 1, (2, 2)),
            ),
            16 * 8 + 8 * 9 * 8 + 4 * 16 + 32 * 16 + 32 * 8 + 4 * 32,
        ),
        (
            StemSpec(ConvSpec(1, 3, 8, 8, 4, 3, 3, padding=PAD), (2, 2), (2, 2), (0, 0)),
            64 * 3 + 4 * 9 * 3 + 16 * 4,
        ),
        (PoolLinearSpec(2, 8, 3, 3, 5), 2 * 8 * 9 + 5 * 8 + 2 * 5),
    ],
)
def test_least_bytes_count_each_tensor_once(spec: Spec, elements: int) -> None:
    assert least_bytes(spec, "fp16") == 2 * elements
    assert least_bytes(spec, "tf32") == 4 * elements


def test_a_residual_is_read() -> None:
    spec = conv()
    more = least_bytes(spec, "fp16", residual=True) - least_bytes(spec, "fp16")
    assert more == 2 * spec.n * spec.k * spec.p * spec.q


def test_fusing_a_bottleneck_saves_a_third_of_its_bytes() -> None:
    """The narrow tensor is not written and read, and the wide one not read by the next block."""
    fused = least_bytes(bottleneck(32, 64, 56, 64), "fp16")
    apart = (
        least_bytes(conv(32, 64, 56, 64), "fp16")
        + least_bytes(conv(32, 64, 56, 256, 1), "fp16", residual=True)
        + least_bytes(conv(32, 256, 56, 64, 1), "fp16")
    )
    assert 0.35 < 1 - fused / apart < 0.40


def test_configurations_are_values() -> None:
    assert choose_conv2d(conv(), "fp16", A100) == choose_conv2d(conv(), "fp16", A100)
    assert isinstance(choose_conv2d(conv(), "fp16", A100), Conv2dConfig)
