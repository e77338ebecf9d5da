"""Boxes of pixels as configurations: which are offered, what they waste, and who tries them."""

from __future__ import annotations

import math

import pytest

from fastres.errors import OptionError
from fastres.kernels.spec import ConvSpec
from fastres.kernels.tuning.boxes import ONE_IN, WORTH_TRYING, box_candidates, to_try
from fastres.kernels.tuning.conv2d import (
    Conv2dConfig,
    allows_boxes,
    boxes,
    candidates,
    choose_conv2d,
    estimate_conv2d,
    fits,
    steps,
    tiles,
)
from fastres.kernels.tuning.gpus import GPUS

H100 = GPUS["h100"]
SAME = (1, 1, 1, 1)


def layer(n: int, channels: int, size: int) -> ConvSpec:
    return ConvSpec(n, channels, size, size, channels, 3, 3, padding=SAME)


LAYERS = [
    layer(n, channels, size)
    for n in (1, 32, 256)
    for channels, size in ((64, 56), (128, 28), (256, 14), (512, 7))
]


def box(images: int, high: int, wide: int) -> Conv2dConfig:
    return Conv2dConfig(images * high * wide, 64, 64, descriptors=True, box_h=high, box_w=wide)


@pytest.mark.parametrize(
    ("high", "wide", "descriptors", "message"),
    [
        (8, 0, True, "box_w=0: expected a power of two, or zero for both sides"),
        (0, 8, True, "box_h=0: expected a power of two"),
        (6, 8, True, "box_h=6: expected a power of two"),
        (8, -8, True, "box_w=-8: expected a power of two"),
        (16, 16, True, "a box of 16x16 pixels: expected at most block_m=128"),
        (8, 8, False, "a box of 8x8 pixels with descriptors=False: only descriptors copy boxes"),
    ],
)
def test_boxes_that_cannot_be(high: int, wide: int, descriptors: bool, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Conv2dConfig(128, 64, 64, descriptors=descriptors, box_h=high, box_w=wide)


def test_boxes_cover_the_output() -> None:
    spec = ConvSpec(5, 72, 14, 14, 100, 3, 3, padding=SAME)
    assert box(2, 8, 4).box_n == 2
    assert boxes(spec, box(2, 8, 4)) == 3 * 2 * 4
    assert tiles(spec, box(2, 8, 4)) == 3 * 2 * 4 * 2
    assert steps(spec, box(2, 8, 4)) == 9 * 2, "a step is of one tap, filled up with zeros"


@pytest.mark.parametrize(
    ("spec", "precision", "reason"),
    [
        (layer(1, 8, 7), "fp16", None),
        (ConvSpec(1, 8, 9, 9, 8, 3, 3, dilation=(2, 3)), "bf16", None),
        (ConvSpec(1, 4, 7, 7, 12, 3, 3), "tf32", None),
        (layer(1, 4, 7), "fp16", "rows of C=4 not a multiple of 16 bytes"),
        (ConvSpec(1, 8, 7, 7, 12, 3, 3), "fp16", "rows of K=12 not a multiple of 16 bytes"),
        (
            ConvSpec(1, 8, 7, 7, 8, 3, 3, stride=(1, 2)),
            "fp16",
            "strides skip pixels, and boxes leave none out",
        ),
        (
            ConvSpec(1, 16, 7, 7, 16, 3, 3, groups=2),
            "fp16",
            "2 groups, and boxes are of all channels",
        ),
    ],
    ids=str,
)
def test_what_boxes_can_copy(spec: ConvSpec, precision: str, reason: str | None) -> None:
    assert allows_boxes(spec, precision) == reason
    assert any(box_candidates(spec, precision, H100)) == (reason is None)


@pytest.mark.parametrize("gpu", GPUS)
def test_boxes_are_offered_where_the_hardware_copies_them(gpu: str) -> None:
    architecture = GPUS[gpu].architecture
    assert any(box_candidates(LAYERS[0], "fp16", GPUS[gpu])) == architecture.tensor_descriptors
    assert not any(box_candidates(LAYERS[0], "fp32", GPUS[gpu]))


def test_products_of_pixels_as_they_lie_in_memory_need_no_boxes() -> None:
    assert not any(box_candidates(ConvSpec(8, 64, 14, 14, 64, 1, 1), "fp16", H100))
    assert not any(box_candidates(layer(0, 64, 14), "fp16", H100))


@pytest.mark.parametrize("spec", LAYERS, ids=str)
def test_what_is_offered_fits_and_is_modelled(spec: ConvSpec) -> None:
    found = list(box_candidates(spec, "fp16", H100))
    assert found and len(set(found)) == len(found)
    for config in found:
        assert fits(config, "fp16", H100.architecture)
        assert config.block_n >= 64, "the rows of an asynchronous product"
        assert math.isfinite(estimate_conv2d(spec, config, "fp16", H100).seconds)


@pytest.mark.parametrize("spec", [spec for spec in LAYERS if spec.n > 1], ids=str)
def test_boxes_of_several_images_waste_little(spec: ConvSpec) -> None:
    pixels, most = spec.n * spec.p * spec.q, 1.0 if spec.n >= 128 else 1.15
    for block_m in (64, 128):
        found = [c for c in box_candidates(spec, "fp16", H100) if c.block_m == block_m]
        assert min(boxes(spec, config) for config in found) * block_m <= most * pixels


def test_waste_costs() -> None:
    """Of 14 x 14 pixels, boxes of 8 x 16 make 256, and of 2 x 2 of 32 images 196."""
    spec = layer(256, 256, 14)
    wasteful, exact = (
        estimate_conv2d(spec, config, "fp16", H100) for config in (box(1, 8, 16), box(32, 2, 2))
    )
    assert boxes(spec, box(1, 8, 16)) * 128 == 256 * 256
    assert boxes(spec, box(32, 2, 2)) * 128 == 256 * 196
    assert 1.15 < wasteful.seconds / exact.seconds < 256 / 196 * 1.1


@pytest.mark.parametrize("spec", LAYERS, ids=str)
def test_the_model_alone_never_chooses_boxes_and_tuning_tries_them(spec: ConvSpec) -> None:
    assert not any(config.box_w for config in candidates(spec, "fp16", H100))
    assert not choose_conv2d(spec, "fp16", H100).box_w
    order = to_try(spec, "fp16", H100)
    seconds = [estimate_conv2d(spec, config, "fp16", H100).seconds for config in order]
    boxed = [number for number, config in enumerate(order) if config.box_w]
    assert boxed == [ONE_IN * number + ONE_IN - 1 for number in range(len(boxed))]
    assert all(seconds[number] <= seconds[0] * WORTH_TRYING for number in boxed)
    others = [time for number, time in enumerate(seconds) if number not in boxed]
    assert others == sorted(others)
    assert boxed or spec.n == 1, "one image of few pixels is split over many programs instead"
