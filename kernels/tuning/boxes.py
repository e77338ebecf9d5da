"""Candidates for the convolution by boxes of pixels (:mod:`fastres.kernels.triton.tiled`).

A box is so many images by rows by columns. What of it lies beyond the image's last row and column
is computed for nothing: of 14 x 14 pixels, boxes of 8 x 16 make 256 products of 196. Boxes of
several images fit better, 2 x 2 pixels of 32 images without any waste. Of all shapes of a size,
those offered waste least, and among these, copy the fewest pixels more than once.

None of it was measured yet: boxes are tried by tuning, and never chosen by the model alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from fastres.kernels.spec import ConvSpec
from fastres.kernels.tuning.conv2d import (
    Conv2dConfig,
    allows_boxes,
    boxes,
    estimate_conv2d,
    fits,
    is_pointwise,
    multiplies_asynchronously,
    on_matrix_units,
    powers_of_two,
    tuned_candidates,
)
from fastres.kernels.tuning.gpus import Gpu
from fastres.kernels.tuning.traffic import ELEMENT_BYTES

LARGEST = 256
"""Of a tile's sides."""

ONE_IN = 3
"""Of what tuning tries, one in so many is by boxes: the model may be wrong about either kind."""

WORTH_TRYING = 1.5
"""Modelled time, over that of the best other configuration, up to which boxes are tried."""


def box_candidates(spec: ConvSpec, precision: str, gpu: Gpu) -> Iterator[Conv2dConfig]:
    """Configurations by boxes that fit the problem and the GPU; none for plain matrix products."""
    target = gpu.architecture
    if (
        not target.tensor_descriptors
        or is_pointwise(spec)
        or allows_boxes(spec, precision) is not None
        or not on_matrix_units(precision, target)
        or spec.n * spec.p * spec.q == 0
    ):
        return
    # Filters are the rows of the products here, and asynchronous ones have 64 of them.
    least = 64 if multiplies_asynchronously(precision, target) else 16
    widths = [size for size in powers_of_two(max(spec.k, least), LARGEST) if size >= least]
    depths = powers_of_two(spec.c, 128 // ELEMENT_BYTES[precision])[-2:]
    for block_m in powers_of_two(spec.n * spec.p * spec.q, LARGEST):
        for box_h, box_w in _shapes(spec, block_m):
            for block_n, block_k, num_warps, num_stages in itertools.product(
                widths, depths, (4, 8), (4, 3)
            ):
                config = Conv2dConfig(
                    block_m,
                    block_n,
                    block_k,
                    num_warps=num_warps,
                    num_stages=num_stages,
                    descriptors=True,
                    box_h=box_h,
                    box_w=box_w,
                )
                if fits(config, precision, target):
                    yield config


def by_model(
    configs: Iterable[Conv2dConfig], spec: ConvSpec, precision: str, gpu: Gpu
) -> dict[Conv2dConfig, float]:
    """The modelled seconds of each, the fastest first, and of equal ones the deeper pipeline."""
    modelled = {each: estimate_conv2d(spec, each, precision, gpu).seconds for each in configs}
    return dict(sorted(modelled.items(), key=lambda it: (it[1], -min(it[0].num_stages, 4))))


def to_try(spec: ConvSpec, precision: str, gpu: Gpu) -> list[Conv2dConfig]:
    """Those of ``conv2d.tuned_candidates`` and boxes, in the order in which tuning tries them.

    Boxes take every third place, as long as the model does not find them far slower.
    """
    order = tuned_candidates(spec, precision, gpu)
    boxed = by_model(box_candidates(spec, precision, gpu), spec, precision, gpu)
    limit = estimate_conv2d(spec, order[0], precision, gpu).seconds * WORTH_TRYING
    for number, config in enumerate(each for each in boxed if boxed[each] <= limit):
        order.insert(ONE_IN * number + ONE_IN - 1, config)
    return order


def _shapes(spec: ConvSpec, pixels: int) -> list[tuple[int, int]]:
    """Rows and columns of the best box of so many pixels, and of the best one of one image."""

    def cost(shape: tuple[int, int]) -> tuple[int, int]:
        config = Conv2dConfig(pixels, 16, 16, descriptors=True, box_h=shape[0], box_w=shape[1])
        down = shape[0] + (spec.r - 1) * spec.dilation[0]
        across = shape[1] + (spec.s - 1) * spec.dilation[1]
        return boxes(spec, config), config.box_n * down * across

    sides = [1 << power for power in range(pixels.bit_length())]
    shapes = [(h, w) for h, w in itertools.product(sides, sides) if h * w <= pixels]
    flat = [(h, w) for h, w in shapes if h * w == pixels]
    return list(dict.fromkeys([min(shapes, key=cost), min(flat, key=cost)]))
