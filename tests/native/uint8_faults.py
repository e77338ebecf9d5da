"""Seeded faults in the kernels and the planner of uint8, and the checks that are to notice them.

As ``faults``; the checks are a few of those of ``test_uint8_tiles`` and ``test_uint8_plans``.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastres.ir import ops
from fastres.kernels.quantized import multipliers
from fastres.runtime.native import (
    pack,
    pack_groups,
    packed_weights,
    plan_builder,
    subgraph_builder,
)
from tests.native import test_uint8_plans, test_uint8_tiles
from tests.native.faults import ROWS, Fault, outcome
from tests.support.native import emulator, quantized_graphs
from tests.support.native.quantized_graphs import Building, Value

ISAS = ("avx2", "avx512_vnni")
"""Those that the checks run."""

AVX2, AVX512 = ("tiles_avx2_uint8.cpp",), ("tiles_avx512_uint8.cpp",)
_CLAMPED = "_mm{}_min_ps(_mm{}_set1_ps(kBeyondUint8), x)"


def _away_from_zero(bits: int) -> str:
    width = f"_mm{bits}"
    half = f"{width}_or_ps({width}_and_ps(x, {width}_set1_ps(-0.0f)), {width}_set1_ps(0.5f))"
    return f"{width}_cvttps_epi32({width}_add_ps({_CLAMPED.format(bits, bits)}, {half}))"


FAULTS = [
    Fault(
        *("tiles_avx512_uint8.cpp", "sums of two products saturated"),
        "sum[i][0] = _mm512_dpbusd_epi32(sum[i][0], a, low);",
        "sum[i][0] = _mm512_add_epi32(sum[i][0], _mm512_madd_epi16(_mm512_maddubs_epi16(a, low), "
        "_mm512_set1_epi16(1)));",
    ),
    Fault(
        *("tiles_avx2_uint8.cpp", "sums of two products saturated"),
        "_mm256_add_epi32(sum[i][0], _mm256_madd_epi16(a, low))",
        "_mm256_add_epi32(sum[i][0], _mm256_cvtepi16_epi32(_mm256_castsi256_si128("
        "_mm256_permute4x64_epi64(_mm256_packs_epi32(_mm256_madd_epi16(a, low), "
        "_mm256_madd_epi16(a, low)), 0x08))))",
    ),
    Fault(
        *("tiles_avx2_uint8.cpp", "odd channels taken for signed ones"),
        *("_mm256_srli_epi16(four, 8)", "_mm256_srai_epi16(four, 8)"),
    ),
    Fault(
        *("finish_uint8_avx512.h", "half away from zero"),
        *(f"_mm512_cvtps_epi32({_CLAMPED.format(512, 512)})", _away_from_zero(512)),
        AVX512,
    ),
    Fault(
        *("finish_uint8_avx2.h", "half away from zero"),
        *(f"_mm256_cvtps_epi32({_CLAMPED.format(256, 256)})", _away_from_zero(256)),
        AVX2,
    ),
    Fault(
        *("rows.h", "half away from zero"),
        "x = (x + even) - even;",
        "for (int i = 0; i < 16; i++) x[i] = (float)(int)(x[i] + (x[i] < 0 ? -0.5f : 0.5f));",
        ROWS,
    ),
    Fault(
        *("finish_uint8_avx512.h", "what is beyond int32 becomes the least"),
        *(_CLAMPED.format(512, 512), "x"),
        AVX512,
    ),
    Fault(
        *("finish_uint8_avx2.h", "what is beyond int32 becomes the least"),
        *(_CLAMPED.format(256, 256), "x"),
        AVX2,
    ),
    Fault(
        *("finish_uint8_avx512.h", "one multiplier for all channels"),
        *("_mm512_loadu_ps(multiplier)", "_mm512_set1_ps(*multiplier)"),
        AVX512,
    ),
    Fault(
        *("finish_uint8_avx512.h", "no zero point of the residual"),
        *("_mm512_sub_epi32(q, _mm512_set1_epi32(t.residual_zero))", "q"),
        AVX512,
    ),
    Fault(
        *("finish_uint8_avx2.h", "no zero point of the residual"),
        *("_mm256_sub_epi32(q, _mm256_set1_epi32(t.residual_zero))", "q"),
        AVX2,
    ),
    Fault(
        *("finish_uint8_avx512.h", "two pixels exchanged"),
        *("_mm512_packus_epi16(first, second)", "_mm512_packus_epi16(second, first)"),
        AVX512,
    ),
    Fault(
        *("map_rows.h", "no zero point of a second summand"),
        *("load_integers(b, v, op.residual_zero, other)", "load_integers(b, v, 0, other)"),
        ROWS,
    ),
    Fault(
        *("pooling_rows.h", "no zero point in a mean"),
        *(
            "v, op.input_zero, q);\n                sum += q;",
            "v, 0, q);\n                sum += q;",
        ),
        ROWS,
    ),
    Fault(
        *("map_rows.h", "no zero point where wider numbers are quantised"),
        "quantize(value / op.outside_scale, op.output_zero, q);",
        "quantize(value / op.outside_scale, 0, q);",
        ROWS,
    ),
    Fault(
        *("edge_rows.h", "only the first line copied out"),
        *(
            "(const typename N::Stored *)(line + block * from.plane)",
            "(const typename N::Stored *)line",
        ),
        ROWS,
    ),
    Fault(
        *("plan.cpp", "zeros in borders"),
        *("    fill(plan, *room);\n    return room;", "    return room;"),
    ),
    Fault(
        *("convolution.cpp", "both halves of a line written to the first"),
        *("panel / 2 * tensor.plane + panel % 2 * 32", "panel / 2 * tensor.plane"),
    ),
    Fault(
        *("tiles_depthwise_avx512.cpp", "the first of two pixels twice"),
        *("t.input_px[2 * i + 1 < M ? 2 * i + 1 : 2 * i]", "t.input_px[2 * i]"),
    ),
    Fault(
        *("sums_avx512.h", "weights taken for pixels"),
        *("_mm512_dpbusd_epi32(sum, x, weights)", "_mm512_dpbusd_epi32(sum, weights, x)"),
        ("tiles_grouped_avx512.cpp",),
    ),
    Fault(
        *("sums_avx2_uint8.h", "odd taps taken for signed ones"),
        *("_mm256_srli_epi16(x, 8)", "_mm256_srai_epi16(x, 8)"),
        ("tiles_depthwise_avx2.cpp",),
    ),
    Fault(
        *("sums_avx2_uint8.h", "odd channels taken for signed ones"),
        *("_mm256_srli_epi16(x, 8)", "_mm256_srai_epi16(x, 8)"),
        ("tiles_grouped_avx2.cpp",),
    ),
    Fault(
        *("tiles_depthwise_avx2.cpp", "two vectors exchanged"),
        *(
            "finish_uint8(t, i, 1, with_bias(t, 1, _mm256_permute2x128_si256(c, d, 0x20)))",
            "finish_uint8(t, i, 1, with_bias(t, 1, _mm256_permute2x128_si256(a, b, 0x31)))",
        ),
    ),
]


def _swapped_channels(weight: Tensor, lanes: int) -> Tensor:
    return _pack(weight, lanes).flip(-1).contiguous()


def _first_two_apart(packed: Tensor) -> Tensor:
    halves: Tensor = packed.unflatten(-1, (2, 2)).movedim(-2, -3)
    return halves.to(torch.int16).contiguous()


def _one_scale(self: Any, scale: tuple[str, Tensor], x_scale: float, unit: float) -> Tensor:
    value = scale[1].max().expand_as(scale[1])
    return pack.pack_vector(multipliers(x_scale, value, unit), len(value))


def _uncorrected(self: Any, bias: tuple[str, Tensor], _: Any, zero: int, channels: int) -> Tensor:
    return pack.pack_vector(bias[1], channels, torch.int32)


_pack, _scale_of = pack.pack, subgraph_builder.scale_of

PLANNER_FAULTS: dict[str, tuple[Any, str, Any]] = {
    "planner: zeros in borders": (
        plan_builder, "_without_needless_fill", lambda layout: replace(layout, fill=0),
    ),
    "planner: borders one more than what stands for zero": (
        plan_builder, "_without_needless_fill",
        lambda layout: replace(layout, fill=(layout.fill + 1) % 256),
    ),
    "packed: one scale for all filters": (packed_weights.PackedWeights, "multiplier", _one_scale),
    "packed: a bias without the input's zero point": (
        packed_weights.PackedWeights, "integer_bias", _uncorrected,
    ),
    "pack: channels of a unit in another order": (pack, "pack", _swapped_channels),
    "pack: the first channels apart, not the even ones": (pack, "widened", _first_two_apart),
    "pack_groups: fours of taps for channels in order": (
        pack_groups, "interleaved", lambda unit: torch.arange(pack.PANEL, dtype=torch.int64),
    ),
    "subgraph_builder: an input's zero point forgotten": (
        subgraph_builder, "scale_of", lambda node: (_scale_of(node)[0], 0),
    ),
}  # fmt: skip
"""What is wrong -> (owner, attribute, its replacement)."""


NETWORKS = (
    "bottleneck", "activations", "sums", "as_uint8", "flattened", "groups", "through_wider_numbers",
)  # fmt: skip


def run_checks() -> None:
    """Graphs with all operators, and the numbers at which kernels go wrong.

    Raises:
        AssertionError: something is wrong.
    """
    for isa in ISAS:
        if isa not in vars(quantized_graphs)["loaded"]().isas:
            continue
        for value, weight in ((255, 127), (255, -127)):
            test_uint8_tiles.test_extreme_sums(value, weight, isa)
        test_uint8_tiles.test_half_goes_to_even(isa)
        test_uint8_tiles.test_results_beyond_int32_are_the_least_or_the_most("none", 32, isa)
        for name in NETWORKS:
            building, module = test_uint8_plans.made(name, turn=1)
            test_uint8_plans.check(module, building.inputs, isa)
        _check_halves(isa)


def _check_halves(isa: str) -> None:
    """Numbers half-way between two integers come in, and are added up."""
    b = Building()
    x = b.float_image(4, 5, 5)
    x.tensor[:] = (x.tensor * 20).round() + 0.5
    q = Value(*b.call(ops.quantize, x, 1.0, 113), 1.0, 113)
    weights = b.weights(q, 4, 4, 1, 1)
    b.held(weights[0]).copy_(torch.eye(4)[:, :, None, None])
    y = b.conv(q, 4, (1, 1), padding=(0, 0, 0, 0), weights=weights)
    half = b.call(ops.quantized_add, q, q, "none", 0.25, 113, 0.25, 113, 1.0, 7)
    total = Value(*half, 1.0, 7)
    module = b.finish(b.dequantize(y), b.dequantize(total), b.dequantize(q))
    test_uint8_plans.check(module, b.inputs, isa)


def main(arguments: list[str]) -> None:
    """For ``name=library`` pairs, and the planner's faults with the first library: the outcomes."""
    torch.set_num_threads(1)
    users = (emulator, quantized_graphs, test_uint8_plans, test_uint8_tiles)
    pairs = [tuple(argument.split("=", 1)) for argument in arguments]
    for name, library in [*pairs, *((name, pairs[0][1]) for name in PLANNER_FAULTS)]:
        said = outcome(name, Path(library), PLANNER_FAULTS, run_checks, users)
        print(f"{name}={said}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
