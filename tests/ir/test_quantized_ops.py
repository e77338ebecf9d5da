"""Each quantised operator: registered right, and equal to its definition bit for bit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from fastres.ir import ops
from tests.ir.test_ops import CONVOLUTIONS, Conv, layouts
from tests.support import loops, quantized_loops

TARGETS = {target._opname: target for target in ops.REFERENCE}

ZERO_POINTS = (0, 255, 77)
ACTIVATIONS = ("none", "relu", "relu6", "hardswish")
SCALE = 0.05
"""Of what is read; outside of which 6 and the bends of a hardswish lie."""


def bytes_(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def weights(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """int8, a scale for each filter, and an int32 bias of the size of the sums."""
    weight = torch.randint(-127, 128, shape, dtype=torch.int8)
    scale = torch.rand(shape[0]) * 0.01 + 0.002
    return weight, scale, torch.randint(-20_000, 20_000, (shape[0],), dtype=torch.int32)


def convolution(
    case: Conv, zeros: tuple[int, int, int] = (131, 0, 77), scale: float = 0.4
) -> tuple[Any, ...]:
    """The arguments of a case, with zero points of x, residual and result."""
    weight, weight_scale, bias = weights(case.k, case.x[1] // case.groups, *case.kernel)
    shape = (list(case.stride), list(case.padding), list(case.dilation), case.groups)
    size = loops.convolve(torch.zeros(case.x), weight, *shape).shape
    return (
        bytes_(*case.x), weight, weight_scale, bias if case.bias else torch.zeros_like(bias),
        bytes_(*size) if case.residual else None, *shape, case.pre_activation, case.activation,
        SCALE, zeros[0], 0.031, zeros[1], scale, zeros[2],
    )  # fmt: skip


def bottleneck(
    case: Conv, next_k: int | None, step: tuple[int, int] | None, zeros: tuple[int, ...]
) -> tuple[Any, ...]:
    """The arguments of a tail of five filters; ``step`` is the stride of a shortcut of three
    channels, on images that have a row and columns too many.
    """
    weight, scale, bias = weights(case.k, case.x[1] // case.groups, *case.kernel)
    shape = (list(case.stride), list(case.padding), list(case.dilation), case.groups)
    n, _, p, q = loops.convolve(torch.zeros(case.x), weight, *shape).shape
    nothing = (None, None, None)
    residual, beside = bytes_(n, 5, p, q), nothing
    if step is not None:
        residual = bytes_(n, 3, (p - 1) * step[0] + 1, q * step[1])
    return (
        bytes_(*case.x), weight, scale, bias, *weights(5, case.k, 1, 1), residual,
        *(beside if step is None else weights(5, 3, 1, 1)), list(step or (1, 1)),
        *(nothing if next_k is None else weights(next_k, 5, 1, 1)), *shape,
        [SCALE, 0.3, 0.031, 0.4, 0.2, 0.1], list(zeros),
    )  # fmt: skip


def stem(
    case: Conv, pool: tuple[tuple[int, int], ...], activation: str, zeros: tuple[int, int]
) -> tuple[Any, ...]:
    """The arguments of a convolution with a pool of these taps, stride and padding."""
    filters = weights(case.k, case.x[1], *case.kernel)
    return (
        bytes_(*case.x), *filters, list(case.stride), list(case.padding), activation,
        *map(list, pool), SCALE, zeros[0], 0.4, zeros[1],
    )  # fmt: skip


def linear(
    rows: tuple[int, ...], activation: str, scale: float | None, zeros: tuple[int, int]
) -> tuple[Any, ...]:
    return (bytes_(*rows), *weights(4, rows[-1]), activation, SCALE, zeros[0], scale, zeros[1])


def pooling(shape: tuple[int, ...], keepdim: bool, zeros: tuple[int, int]) -> tuple[Any, ...]:
    return (bytes_(*shape), keepdim, SCALE, zeros[0], 0.021, zeros[1])


def addition(
    shape: tuple[int, ...], activation: str, zeros: tuple[int, int, int], scale: float = 0.06
) -> tuple[Any, ...]:
    x, y, z = zeros
    return (bytes_(*shape), bytes_(*shape), activation, SCALE, x, 0.013, y, scale, z)


def numbers(shape: tuple[int, ...], zero: int) -> tuple[Any, ...]:
    return torch.randn(shape) * 8, SCALE, zero


def cases() -> dict[str, tuple[str, Callable[[], tuple[Any, ...]]]]:
    """Name -> (operator, a function that draws its arguments)."""
    found: dict[str, tuple[str, Callable[[], tuple[Any, ...]]]] = {}

    def add(operator: str, name: str, draw: Callable[..., tuple[Any, ...]], *given: Any) -> None:
        found[f"{operator}: {name}"] = (operator, partial(draw, *given))

    known = {
        name: case
        for name, case in CONVOLUTIONS.items()
        if {case.pre_activation, case.activation} <= set(ACTIVATIONS)
    }
    for name, case in known.items():
        add("quantized_conv2d", name, convolution, case)
    for zeros in itertools.product(ZERO_POINTS, repeat=3):
        case = Conv(x=(1, 2, 3, 4), residual=True, activation="relu")
        add("quantized_conv2d", f"zeros {zeros}", convolution, case, zeros)
    for before, after in itertools.product(ACTIVATIONS, repeat=2):
        case = Conv(x=(1, 2, 4, 3), residual=True, pre_activation=before, activation=after)
        add("quantized_conv2d", f"{before}, {after}", convolution, case, (3, 9, 40))
    for name, coarse in (("fine", 1e-4), ("coarse", 1e3), ("far too fine", 1e-30)):
        case = Conv(x=(1, 2, 4, 3), residual=True)
        add("quantized_conv2d", f"a {name} scale", convolution, case, (131, 40, 77), coarse)
        case = replace(case, activation="hardswish")
        add("quantized_conv2d", f"hardswish, {name}", convolution, case, (131, 40, 77), coarse)
    behind_relu, anything = (0, 0, 0, 130, 0, 0), (131, 60, 90, 200, 40, 33)
    for name, next_k, step, zeros_of_6 in (
        ("plain", None, None, behind_relu),
        ("plain", 3, None, anything),
        ("stride beyond the filter", None, (2, 1), anything),
        ("grouped", 3, (1, 2), behind_relu),
        ("empty batch", 3, (2, 2), anything),
    ):
        made = (CONVOLUTIONS[name], next_k, step, zeros_of_6)
        add("quantized_bottleneck", f"{name}, {next_k}, {step}", bottleneck, *made)
    for name, pool, activation, zeros_of_2 in (
        ("plain", ((3, 3), (2, 2), (1, 1)), "none", (131, 77)),
        ("plain", ((2, 3), (1, 2), (0, 1)), "hardswish", (0, 40)),
        ("empty batch", ((2, 2), (2, 2), (1, 0)), "relu", (255, 0)),
    ):
        made_of = (CONVOLUTIONS[name], pool, activation, zeros_of_2)
        add("quantized_conv2d_max_pool2d", f"{name}, {activation}", stem, *made_of)
    rows: list[tuple[int, ...]] = [(3, 5), (1, 1), (0, 5), (2, 4, 5), (5,)]
    for shape in rows:
        for activation, scale in itertools.product(("none", "hardswish"), (None, 0.2)):
            name = f"{shape}, {activation}, {scale}"
            add("quantized_linear", name, linear, shape, activation, scale, (131, 77))
    for zeros, activation in itertools.product(
        itertools.product(ZERO_POINTS, repeat=2), ("relu", "relu6")
    ):
        add("quantized_linear", f"{zeros}, {activation}", linear, (2, 9), activation, 0.2, zeros)
    images: list[tuple[int, ...]] = [
        (2, 3, 5, 7),
        (3, 1, 1, 1),
        (0, 3, 4, 4),
        (1, 1, 1, 6),
        (1, 2, 16, 17),
    ]
    for shape, keepdim in itertools.product(images, (True, False)):
        add("quantized_global_avg_pool", f"{shape}, {keepdim}", pooling, shape, keepdim, (131, 77))
    for pair in itertools.product(ZERO_POINTS, repeat=2):
        add("quantized_global_avg_pool", f"zeros {pair}", pooling, (1, 9, 3, 3), True, pair)
    for shape in [*images, (4,)]:
        add("quantized_add", f"{shape}", addition, shape, "relu", (131, 5, 77))
    for activation in ACTIVATIONS:
        add("quantized_add", activation, addition, images[0], activation, (131, 5, 77))
    for zeros in itertools.product(ZERO_POINTS, repeat=3):
        add("quantized_add", f"zeros {zeros}", addition, (1, 2, 3, 4), "none", zeros)
    for shape, zero in itertools.product([*images, (7,)], ZERO_POINTS):
        add("quantize", f"{shape}, {zero}", numbers, shape, zero)
        add("dequantize", f"{shape}, {zero}", lambda s, z: (bytes_(*s), SCALE, z), shape, zero)
    return found


CASES = cases()


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, tuple[Any, ...]]:
    name, draw = CASES[request.param]
    return name, draw()


def assert_equal(got: Tensor, wanted: Tensor) -> None:
    assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
    assert torch.equal(got, wanted)


def listed(results: Tensor | list[Tensor]) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else results


def defined(name: str, arguments: tuple[Any, ...]) -> Tensor | list[Tensor]:
    result: Tensor | list[Tensor] = getattr(quantized_loops, name)(*arguments)
    return result


def test_there_is_a_case_for_every_operator() -> None:
    assert {name for name, _ in CASES.values()} == quantized_loops.OPERATORS
    quantized = {name for name in TARGETS if "quantize" in name}
    assert quantized == quantized_loops.OPERATORS


def test_equals_the_definition(case: tuple[str, tuple[Any, ...]]) -> None:
    name, arguments = case
    got, wanted = listed(TARGETS[name](*arguments)), listed(defined(name, arguments))
    for one, other in zip(got, wanted, strict=True):
        assert_equal(one, other)


@pytest.mark.sampled(9)
@pytest.mark.parametrize("name", CASES)
def test_opcheck(name: str) -> None:
    operator, draw = CASES[name]
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(TARGETS[operator], draw(), test_utils=utilities)


@pytest.mark.campaign
@pytest.mark.parametrize("operator", sorted(quantized_loops.OPERATORS))
def test_opcheck_in_full(operator: str) -> None:
    draw = next(draw for name, draw in CASES.values() if name == operator)
    torch.library.opcheck(TARGETS[operator], draw())


def test_arguments_are_kept_and_memory_layouts_do_not_matter(
    case: tuple[str, tuple[Any, ...]],
) -> None:
    name, arguments = case
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    before = [(t.clone(), t._version) for t in tensors]
    wanted = listed(TARGETS[name](*arguments))
    addresses = {t.untyped_storage().data_ptr() for t in tensors}
    for result in wanted:
        assert not result.numel() or result.untyped_storage().data_ptr() not in addresses
    for tensor, (copy, version) in zip(tensors, before, strict=True):
        assert tensor._version == version
        assert torch.equal(tensor, copy)
    for position, argument in enumerate(arguments):
        if not isinstance(argument, Tensor) or argument.dim() < 2:
            continue
        for layout, x in layouts(argument).items():
            changed = (*arguments[:position], x, *arguments[position + 1 :])
            got = listed(TARGETS[name](*changed))
            assert all(torch.equal(*pair) for pair in zip(got, wanted, strict=True)), layout


@pytest.mark.parametrize("zero", [0, 255, 130])
def test_both_ends_are_reached_and_not_left(zero: int) -> None:
    """Results lie beyond uint8 at both ends, and stay there at the least and the most."""
    arguments = list(convolution(Conv(x=(2, 6, 5, 5), residual=True), (131, 90, zero), 0.02))
    got = ops.quantized_conv2d(*arguments)
    arguments[-2] *= 64  # and are different numbers inside of it
    inside = ops.quantized_conv2d(*arguments)
    (wanted,) = listed(defined("quantized_conv2d", (*arguments[:-2], 0.02, zero)))
    assert_equal(got, wanted)
    ends = [end for end, reached in ((0, zero > 0), (255, zero < 255)) if reached]
    assert all((got == end).float().mean() > 0.1 for end in ends)
    assert len(inside[got == ends[-1]].unique()) > 3


HALVES = torch.tensor([0.5, 1.5, 2.5, 3.5, 62.5, -0.5, -1.5, -2.5, 0.49999997, 1.4999999])
EVEN = torch.tensor([0, 2, 2, 4, 62, 0, -2, -2, 0, 1])


@pytest.mark.parametrize("zero", [3, 4, 100, 101])
def test_half_goes_to_even_before_the_zero_point_is_added(zero: int) -> None:
    wanted = (EVEN + zero).to(torch.uint8)
    assert_equal(ops.quantize(HALVES, 1.0, zero), wanted)
    # The same halves as sums of products: of one pixel of value 1 with odd weights, halved.
    x, scale = torch.full((1, 1, 1, 1), 8, dtype=torch.uint8), torch.full((8,), 0.5)
    weight = (HALVES[:8] * 2).to(torch.int8).view(8, 1, 1, 1)
    bias = torch.zeros(8, dtype=torch.int32)
    rest = (None, [1, 1], [0, 0, 0, 0], [1, 1], 1, "none", "none", 1.0, 7, 1.0, 0, 1.0, zero)
    assert_equal(ops.quantized_conv2d(x, weight, scale, bias, *rest).flatten(), wanted[:8])
    ends = ("none", 1.0, 7, 1.0, zero)
    got = ops.quantized_linear(x.flatten(1), weight.flatten(1), scale, bias, *ends)
    assert_equal(got.flatten(), wanted[:8])
    a = (HALVES[:8] * 2).to(torch.int32) + 100
    b = torch.full((8,), 5, dtype=torch.uint8)
    added = ops.quantized_add(a.to(torch.uint8), b, "none", 0.5, 100, 0.5, 5, 1.0, zero)
    assert_equal(added, wanted[:8])
    pixels = torch.stack([a.to(torch.uint8), torch.full((8,), 100, dtype=torch.uint8)], 1)
    means = ops.quantized_global_avg_pool(pixels.view(1, 8, 1, 2), False, 1.0, 100, 1.0, zero)
    assert_equal(means.flatten(), wanted[:8])


def test_not_a_number_is_the_zero_point_and_infinity_an_end() -> None:
    x = torch.tensor([math.nan, math.inf, -math.inf, 3e38, -3e38, -0.0])
    assert ops.quantize(x, 1e-3, 9).tolist() == [9, 255, 0, 255, 0, 9]


def test_what_quantize_gives_back_is_within_half_a_step() -> None:
    x = torch.linspace(-2.0, 3.0, 4001)
    scale, zero = 5.0 / 255, 102
    apart = ops.dequantize(ops.quantize(x, scale, zero), scale, zero) - x
    assert float(apart.abs().max()) <= scale * 0.5001


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_are_exact(sign: int) -> None:
    """4608 products of 255 and 127: beyond what float32 holds, and saturated nowhere."""
    x = torch.full((1, 512, 3, 3), 255, dtype=torch.uint8)
    weight = torch.full((1, 512, 3, 3), sign * 127, dtype=torch.int8)
    total = 512 * 9 * 255 * 127
    for offset in (-1, 0, 1):
        bias = torch.tensor([offset - sign * total], dtype=torch.int32)
        got = ops.quantized_conv2d(
            x, weight, torch.ones(1), bias, None, [1, 1], [0] * 4, [1, 1], 1, "none", "none",
            1.0, 0, 1.0, 0, 1.0, 50,
        )  # fmt: skip
        assert got.item() == 50 + offset


class EveryOperator(nn.Module):
    """Each quantised operator once, in a chain."""

    def __init__(self) -> None:
        super().__init__()
        shapes = {"conv": (4, 3, 3, 3), "square": (4, 4, 3, 3), "wide": (4, 4, 1, 1)}
        for name, shape in (*shapes.items(), ("head", (5, 4))):
            for part, value in zip(("weight", "scale", "bias"), weights(*shape), strict=True):
                self.register_buffer(f"{name}_{part}", value)

    def forward(self, x: Tensor) -> Tensor:
        made: Any = self
        shape = ([1, 1], [0, 1, 1, 2], [1, 1], 1)
        q = ops.quantize(x, 0.03, 120)
        filters = (made.conv_weight, made.conv_scale, made.conv_bias)
        rest = (None, *shape, "none", "relu", 0.03, 120, 1.0, 0, 0.2, 3)
        y = ops.quantized_conv2d(q, *filters, *rest)
        square = (made.square_weight, made.square_scale, made.square_bias)
        wide = (made.wide_weight, made.wide_scale, made.wide_bias)
        none, ends = (None, None, None), ([1, 1], [1, 1, 1, 1], [1, 1], 1)
        units = ([0.2, 0.3, 0.2, 1.0, 0.2, 1.0], [3, 0, 3, 0, 3, 0])
        (y,) = ops.quantized_bottleneck(
            *(y, *square, *wide, y, *none, [1, 1], *none, *ends, *units)
        )
        pool = ([2, 2], [1, 1], [1, 1])
        y = ops.quantized_conv2d_max_pool2d(
            *(y, *square, [1, 1], [1, 1, 1, 1], "relu", *pool, 0.2, 3, 0.2, 3)
        )
        y = ops.quantized_add(y, y, "relu", 0.2, 3, 0.2, 3, 0.4, 0)
        means = ops.quantized_global_avg_pool(y, False, 0.4, 0, 0.1, 0)
        head = (made.head_weight, made.head_scale, made.head_bias)
        classes = ops.quantized_linear(means, *head, "none", 0.1, 0, 0.2, 128)
        result: Tensor = ops.dequantize(classes, 0.2, 128)
        return result


@pytest.mark.campaign
def test_operators_can_be_exported_and_decomposed() -> None:
    model, x = EveryOperator().eval(), torch.randn(2, 3, 6, 5)
    program = export(model, (x,), dynamic_shapes=({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},))
    plain = program.run_decompositions({**ops.REFERENCE})
    names = [[str(node.target) for node in each.graph.nodes] for each in (program, plain)]
    assert {name for name in names[0] if name.startswith("fastres")} == {
        f"fastres.{name}.default" for name in quantized_loops.OPERATORS
    }
    assert not [name for name in names[1] if "fastres" in name]
    for image in (x, torch.randn(3, 3, 9, 4)):
        for other in (program, plain):
            assert torch.equal(other.module()(image), model(image))


@pytest.mark.campaign
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_operators_can_be_compiled_by_torch(backend: str) -> None:
    torch.compiler.reset()
    model, x = EveryOperator().eval(), torch.randn(2, 3, 6, 5)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    assert torch.equal(compiled(x), model(x))
